"""BN204: accumulated gradients, which do not enlarge the batch of a normalization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor._text import number
from bnmonitor.measures import normalizing, samples_normalized
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class AccumulationKeepsSmallBatch(Rule):
    """Gradients are accumulated to a batch that would be large enough, but each part of it is normalized separately.

    ## What it does
    Compares the N samples that are normalized together with the k N samples of an optimizer step, under
    ``accumulate_grad_batches=k``. One alert for the whole model.

    ## Why is this bad?
    For every other kind of layer, accumulating gradients is the same as a larger batch. A BatchNorm uses the statistics
    of each micro-batch, with its noise, and updates its running statistics k times per optimizer step. Results that
    were published with a batch of k N are not reproduced.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> [finding] = AccumulationKeepsSmallBatch().check(make_window(sizes=8, facts={"accumulate": 8}))
    >>> str(finding.severity), finding.value
    ('warning', 8.0)

    Accumulating batches that are large enough on their own stays quiet:

    >>> AccumulationKeepsSmallBatch().check(make_window(sizes=64, facts={"accumulate": 8}))
    []

    ## Code
    Wrong::

        Trainer(accumulate_grad_batches=16)  # with batches of 2: each is normalized by itself

    Right::

        Trainer(devices=8, sync_batchnorm=True)  # or nn.GroupNorm in the model

    ## What to do
    Use ``Trainer(sync_batchnorm=True)`` on several devices, ``GroupNorm``, or frozen statistics for a pretrained
    network. At least choose a momentum with which the running average remembers the same number of optimizer steps:
    ``momentum = 1 - (1 - m)^(1/k)``.

    ## Thresholds
    ``warn_below = 32`` samples: below this, and not above, accuracy depends on how many samples are normalized together
    (Wu and Johnson 2021). The rule reports only if k N reaches it: otherwise the batch is meant to be small.

    ## Look-alikes
    Frozen normalization, and kinds other than BatchNorm that do not depend on the batch: the rule judges none of these.

    ## References
    pytorch/pytorch#46516; Lightning-AI/pytorch-lightning#17446; ultralytics/yolov5#1630.
    """

    code: ClassVar[str] = "BN204"
    name: ClassVar[str] = "accumulation-keeps-small-batch"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"accumulation", "batch_size"})
    exact: ClassVar[bool] = True

    warn_below: int = 32

    def check(self, window: Window) -> list[Finding]:
        """Judge the micro-batch of the whole model once."""
        parts, size = window.facts.accumulate, samples_normalized(window)
        judged = normalizing(window) & size.isfinite()
        if parts < 2 or not judged.any():
            return []
        samples = float(size[judged].median())
        if not samples < self.warn_below <= parts * samples:
            return []
        layers = tuple((judged & (size < self.warn_below)).nonzero().flatten().tolist())
        momentum = float(window.momentum[-1, layers[0]])
        slower = f", and momentum={number(1 - (1 - momentum) ** (1 / parts))}" if 0 < momentum < 1 else ""
        return [
            Finding(
                severity=Severity.WARNING,
                layer=layers[0],
                layers=layers,
                first_step=window.steps[0],
                value=samples,
                threshold=float(self.warn_below),
                message=f"an optimizer step sees {number(parts * samples)} samples, but only the {number(samples)} of "
                f"a micro-batch are normalized together (fewer than {self.warn_below}): "
                f"accumulate_grad_batches={parts} does not change that",
                advice="use a larger batch and accumulate fewer, Trainer(sync_batchnorm=True) on several devices, "
                f"or GroupNorm{slower}",
            )
        ]
