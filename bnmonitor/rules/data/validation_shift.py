"""BN603: validation data that is not like the training data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bnmonitor._text import number
from bnmonitor.limits import FLAT, LAG_LOG_DEVIATION, LAG_MEAN
from bnmonitor.measures import lag, median, warm
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import HeldOut, Window


@dataclass(frozen=True, kw_only=True)
class ValidationShift(Rule):
    """What the layers that see the data get in validation has other moments than in training.

    ## What it does
    At the layers with no other before them it measures mean and variance of the input over a validation, and compares
    them with the running statistics. It speaks only where the training batches agree with these: then it is the data
    that differs, not the running average that lags. At first it is an info; in the next validation, or if the shift
    is large, a warning.

    ## Why is this bad?
    In evaluation the layer subtracts and divides by what the training data had. Validation images that were scaled,
    cropped or normalized in another way, or come from another source, arrive shifted in every layer behind. The usual
    cause is one transformation that is missing, or done twice.

    ## Example
    >>> from bnmonitor.testing import held_out_window
    >>> [finding] = ValidationShift().check(held_out_window(mean=2.0))
    >>> str(finding.severity), round(finding.value, 2)
    ('warning', 2.0)

    The moments of the training data stay quiet:

    >>> ValidationShift().check(held_out_window(mean=0.05))
    []

    ## What to do
    Compare the transformations of both loaders: scaling to 0..1, mean and standard deviation, channel order,
    resizing. If the data is meant to differ, estimate the statistics on its own kind (AdaBN;
    :func:`bnmonitor.remedies.recalibrate`).

    ## Thresholds
    ``shift = .25`` deviations in the middle channel, or ``log_ratio = .5`` of the variances, over ``least_samples =
    256`` samples, whose mean is off by .06 deviations at most. Beyond ``warn_shift = 1`` and ``warn_log_ratio = 1.4``
    a single validation is enough for a warning.

    ## Look-alikes
    Augmentation changes the training data and not the validation data: mixing images takes up to a third off the
    variance, a log ratio of .4. Statistics that lag behind are for BN304, those that are cold for BN303.

    ## References
    Wu and Johnson, Rethinking "Batch" in BatchNorm, 2021; Li et al., Revisiting batch normalization for practical
    domain adaptation, 2017; JDAI-CV/fast-reid#278.
    """

    code: ClassVar[str] = "BN603"
    name: ClassVar[str] = "validation-shift"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"buffers", "samples", "dataflow", "validation"})
    yields_to: ClassVar[frozenset[str]] = frozenset({"BN303", "BN304"})

    shift: float = 0.25
    log_ratio: float = 0.5
    warn_shift: float = 1.0
    warn_log_ratio: float = 1.4
    least_samples: int = 256
    lag_shift: float = LAG_MEAN
    lag_log_ratio: float = LAG_LOG_DEVIATION

    def check(self, window: Window) -> list[Finding]:
        """Find the layers that were given other data in the latest validation."""
        structure, held_out = window.facts.structure, window.facts.held_out
        if not held_out or structure is None or not structure.places:
            return []
        newest = held_out[-1]
        mean_lag, log_lag = lag(window)
        judged = structure.roots() & (newest.size >= self.least_samples) & warm(window)[-1]
        # Where training does not agree with the running statistics either, or is not known to, it is no matter of data.
        judged &= (mean_lag < self.lag_shift) & ((log_lag < self.lag_log_ratio) | log_lag.isnan())
        shift, log_ratio = _apart(newest, window)
        off = judged & ((shift > self.shift) | (log_ratio > self.log_ratio))
        return [
            self._finding(window, i, float(shift[i]), float(log_ratio[i])) for i in off.nonzero().flatten().tolist()
        ]

    def _finding(self, window: Window, layer: int, shift: float, log_ratio: float) -> Finding:
        by_mean = not log_ratio > self.log_ratio or shift / self.shift > log_ratio / self.log_ratio
        held_out = window.facts.held_out
        again = False
        for older in held_out[:-1]:
            before = _apart(older, window)
            enough = bool(older.size[layer] >= self.least_samples)
            again |= enough and bool((before[0][layer] > self.shift) | (before[1][layer] > self.log_ratio))
        large = shift > self.warn_shift or log_ratio > self.warn_log_ratio
        return Finding(
            severity=Severity.WARNING if large or again else Severity.INFO,
            layer=layer,
            first_step=window.steps[0] if held_out[0].step < window.steps[0] else held_out[0 if again else -1].step,
            value=shift if by_mean else log_ratio,
            threshold=self.shift if by_mean else self.log_ratio,
            message=f"validation data differs from training data: over {int(held_out[-1].size[layer])} samples its "
            f"mean is off by {number(shift)} deviations in the middle channel, its log variance by {number(log_ratio)};"
            " the training batches agree with the running statistics",
            advice="compare the transformations of both loaders (scaling, mean and deviation, channel order); if the "
            "data is meant to differ, estimate the statistics on it",
        )


def _apart(held_out: HeldOut, window: Window) -> tuple[Tensor, Tensor]:
    """How far mean and log variance are off in the middle channel: two ``[L]``."""
    eps = window.layers.eps_by_channel
    running = held_out.running_var + eps
    shift = (held_out.mean - held_out.running_mean).abs() / running.sqrt()
    log_ratio = ((held_out.var + eps) / running).log().abs()
    alive = held_out.running_var > FLAT * eps
    return median(shift.where(alive, torch.nan), window), median(log_ratio.where(alive, torch.nan), window)
