"""BN509: one layer at several places of the network, with different inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from bnmonitor._text import count
from bnmonitor.measures import call_gaps
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule, apart, sampled, unused
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class SharedAtSeveralPlaces(Rule):
    """One layer normalizes at several places of the network, and its inputs there have different distributions.

    ## What it does
    The autograd graph of a step shows at how many places of the network a layer is called: a block in a loop, a norm
    behind several convolutions, a head on several levels of a pyramid. The rule compares the inputs of the calls: the
    distance between their means in standard deviations, and the log of the ratio of their variances, in the median
    channel. The last samples together, two at least and ``samples = 4`` at most, must show a difference.

    ## Why is this bad?
    In training each call is normalized with its own statistics, so the training goes well. The running statistics are
    one average over all places, and right for none of them: evaluation computes something else than training, and in
    a loop the error grows with every turn. A list of blocks that was copied with ``[block] * n``, ``list[:]`` or
    ``copy.copy`` holds the same layers again, often without anybody's intention.

    ## Example
    >>> import dataclasses, torch
    >>> from bnmonitor.testing import make_sample, make_structure, make_window
    >>> window = make_window(channels=[4], updates=3, facts={"structure": make_structure(calls=3, places=3)})
    >>> sample = make_sample(window.layers, calls=3)
    >>> def shared(shift):
    ...     seen = dataclasses.replace(sample, distance=torch.tensor([[shift], [9.0], [0.0], [0.0]]))
    ...     return dataclasses.replace(window, earlier=(seen,), sample=seen)
    >>> [finding] = SharedAtSeveralPlaces().check(shared(0.6))
    >>> str(finding.severity), round(finding.value, 1)
    ('warning', 0.6)

    Places with similar inputs stay quiet:

    >>> SharedAtSeveralPlaces().check(shared(0.02))
    []

    ## Code
    Wrong::

        self.blocks = nn.ModuleList([Block(64)] * 4)  # one block, four times

    Right::

        self.blocks = nn.ModuleList([Block(64) for _ in range(4)])

        # or, where the weights are shared on purpose, a normalization for each turn:
        self.norms = nn.ModuleList([nn.BatchNorm2d(64) for _ in range(4)])

    ## What to do
    Make a layer for each place (``copy.deepcopy``). If the weights are shared on purpose, give each place its own
    normalization, or use one without running statistics, such as GroupNorm.

    ## Thresholds
    Those of BN502: ``warn_shift = .25`` standard deviations, or ``warn_log_ratio = .5`` in the log of the variances (a
    factor 1.65); ``error_shift = 1`` and ``error_log_ratio = 1.4`` (a factor 4); and ``least_noise = 3`` times the
    difference that samples of this size have by chance. A decoder that was a shallow copy of its encoder measured .7
    to 1.4 and 1.5 to 2.3: its loss was .20 in training and .90 in evaluation.

    ## Look-alikes
    One encoder with two inputs, or a discriminator of real and generated images, is at one place: BN502 judges that.
    A loop whose turns have the same distribution is no fault.

    ## References
    yassouali/pytorch-segmentation#159; dreamquark-ai/tabnet#76; open-mmlab/mmrazor#75; Cooijmans et al., Recurrent
    batch normalization, 2016; Liu et al., MetaPruning, 2019.
    """

    code: ClassVar[str] = "BN509"
    name: ClassVar[str] = "shared-at-several-places"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"buffers", "ledger", "samples", "dataflow"})
    exact: ClassVar[bool] = True

    warn_shift: float = 0.25
    error_shift: float = 1.0
    warn_log_ratio: float = 0.5
    error_log_ratio: float = 1.4
    least_noise: float = 3.0
    samples: int = 4

    def check(self, window: Window) -> list[Finding]:
        """Find the layers whose places have different inputs."""
        structure, sample = window.facts.structure, window.sample
        if sample is None or structure is None or len(structure.places) != len(window.layers):
            return []
        samples = [*window.earlier[1 - self.samples :], sample]
        shift, ratio = call_gaps(samples, len(window.layers), self.least_noise)
        several = torch.tensor([place.places > 1 for place in structure.places], dtype=torch.bool, device="cpu")
        tracking = torch.tensor(window.layers.tracking, dtype=torch.bool, device="cpu")
        mixed = (shift > self.warn_shift) | (ratio > self.warn_log_ratio)
        judged = mixed & several & tracking & window.training[-1]
        return [
            self._finding(window, i, float(shift[i]), float(ratio[i]), structure.places[i].places, len(samples))
            for i in judged.nonzero().flatten().tolist()
        ]

    def _finding(self, window: Window, layer: int, shift: float, ratio: float, places: int, samples: int) -> Finding:
        error = shift > self.error_shift or ratio > self.error_log_ratio
        by_mean = shift / self.warn_shift >= ratio / self.warn_log_ratio
        limits = (self.error_shift, self.error_log_ratio) if error else (self.warn_shift, self.warn_log_ratio)
        severity = Severity.INFO if unused(window, layer) else Severity.ERROR if error else Severity.WARNING
        return Finding(
            severity=severity,
            layer=layer,
            first_step=sampled(window),
            value=shift if by_mean else ratio,
            threshold=limits[0] if by_mean else limits[1],
            message=f"the layer is called at {count(places, 'place')} of the network with different inputs: "
            f"{apart(shift, ratio)}; evaluation normalizes all of them with one average that fits none",
            advice="make a layer of its own for each place (copy.deepcopy of the block); if the weights are shared on "
            "purpose, give each place its own BatchNorm",
            certain=samples > 1,
        )
