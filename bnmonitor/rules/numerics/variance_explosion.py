"""BN106: batch variance that has left its own past behind."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from bnmonitor._text import count, number
from bnmonitor.frame import Window
from bnmonitor.rules.base import Finding, Rule, Severity, rate_note
from bnmonitor.statistics import segment_max, segment_median


@dataclass(frozen=True, kw_only=True)
class VarianceExplosion(Rule):
    """The batch variance of a channel has grown a hundredfold against its own baseline.

    ## What it does
    Compares each channel's batch variance, in three steps in a row, with its own baseline: the robust middle of its
    past after warm-up, which follows slow changes and stands still while an alert is open.

    ## Why is this bad?
    In training mode the layer divides the growth away, so the loss hides it for a while. The running statistics lag
    behind (evaluation is wrong until they catch up), half precision overflows, and most of the time the weights that
    made it are still growing: a learning rate that is too high is the usual cause.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> [finding] = VarianceExplosion().check(make_window(batch_var=[1.0, 250.0, 1.0]))
    >>> str(finding.severity), finding.channels
    ('warning', (1,))

    Tenfold is growth, not an explosion:

    >>> VarianceExplosion().check(make_window(batch_var=[1.0, 10.0, 1.0]))
    []

    ## What to do
    Look at the learning rate at the step where it began: lower its peak, lengthen the warm-up, or clip gradients
    (``Trainer(gradient_clip_val=1.0)``). If only the first layer is concerned, look at the data of that step instead:
    a missing normalization, a broken batch.

    ## Thresholds
    ``warn_factor = 100`` and ``error_factor = 1e4`` in variance: ten and a hundred times the deviation. A channel's
    baseline counts as at least a tenth of its layer's middle one and ten times eps, so that a channel which comes to
    life does not count as exploding. Three steps in a row, so that one odd batch does not count.

    ## Look-alikes
    The first steps, before the baseline exists, are not judged. Weights before a normalization grow slowly in healthy
    training without weight decay; the baseline follows that with a memory of 500 steps.

    ## References
    Bjorck et al., Understanding Batch Normalization, 2018; matterport/Mask_RCNN#573.
    """

    code: ClassVar[str] = "BN106"
    name: ClassVar[str] = "variance-explosion"
    severity: ClassVar[Severity] = Severity.WARNING
    holds: ClassVar[bool] = True

    warn_factor: float = 100.0
    error_factor: float = 1e4
    steps_in_a_row: int = 3

    def check(self, window: Window) -> list[Finding]:
        """Find the layers with an exploded channel."""
        layers = window.layers
        recent = window.last(max(1, window.fresh) + self.steps_in_a_row - 1)
        if len(recent) < self.steps_in_a_row:
            return []
        reference = self._reference(window)
        lasting = recent.batch_var.unfold(0, self.steps_in_a_row, 1).amin(-1)
        growth = (lasting + 1e-30).log().nan_to_num(-torch.inf).amax(0) - reference
        worst = segment_max(growth, layers.owner, len(layers))
        return [
            self._finding(window, growth, reference, layer)
            for layer in (worst > math.log(self.warn_factor)).nonzero().flatten().tolist()
        ]

    def _reference(self, window: Window) -> torch.Tensor:
        layers, own = window.layers, window.baseline.log_var
        typical = segment_median(own, layers.owner, len(layers))[layers.owner] + math.log(0.1)
        return torch.maximum(torch.maximum(own, typical), (10 * layers.eps_by_channel).log())

    def _finding(self, window: Window, growth: torch.Tensor, reference: torch.Tensor, layer: int) -> Finding:
        span = window.layers.span(layer)
        channels = window.layers.locate(growth > math.log(self.warn_factor), layer)
        over = (window.batch_var[:, span] + 1e-30).log() - reference[span] > math.log(self.warn_factor)
        lasting = over[:, list(channels)].unfold(0, self.steps_in_a_row, 1).all(-1).any(1)
        step = window.steps[int(lasting.long().argmax())]
        factor = math.exp(min(80.0, float(growth[span].max())))
        error = factor > self.error_factor
        return Finding(
            severity=Severity.ERROR if error else Severity.WARNING,
            layer=layer,
            channels=channels,
            first_step=step,
            value=factor,
            threshold=self.error_factor if error else self.warn_factor,
            message=f"batch variance of {count(len(channels), 'channel')} is up to {number(factor)} times its own "
            f"baseline{rate_note(window, step)}",
            advice="lower the peak learning rate or clip gradients: Trainer(gradient_clip_val=1.0); "
            "if only the first layer is concerned, look at the data of that step",
        )
