"""BN603: validation data that differs from the training data."""

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
    """The validation data at the first layers has another mean or variance than the training data.

    ## What it does
    At the layers with no other layer before them, the rule measures the mean and variance of the input over a
    validation and compares them with the running statistics. It reports only layers with training batches that agree
    with the running statistics: then the data differs, and the running average does not lag. The first finding is an
    info; it is a warning in the next validation, or at once if the shift is large.

    ## Why is this bad?
    In evaluation the layer subtracts and divides by the statistics of the training data. Validation images that were
    scaled, cropped or normalized in another way, or come from another source, arrive shifted in every later layer. The
    usual cause is one transformation that is missing, or done twice.

    ## Example
    >>> from bnmonitor.testing import held_out_window
    >>> [finding] = ValidationShift().check(held_out_window(mean=2.0))
    >>> str(finding.severity), round(finding.value, 2)
    ('warning', 2.0)

    Validation data with the mean and variance of the training data stays quiet:

    >>> ValidationShift().check(held_out_window(mean=0.05))
    []

    ## Code
    Wrong::

        train = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
        val = transforms.ToTensor()

    Right::

        prepare = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
        train = transforms.Compose([transforms.RandomCrop(32, 4), prepare])
        val = prepare

    ## What to do
    Compare the transformations of both loaders: scaling to 0..1, mean and standard deviation, channel order, resizing.
    If the data is meant to differ, estimate the running statistics on data of its own kind (AdaBN;
    :func:`bnmonitor.remedies.recalibrate`).

    ## Thresholds
    ``shift = .25`` standard deviations in the median channel, or ``log_ratio = .5`` in the log of the ratio of the
    variances, over ``least_samples = 256`` samples, which put the mean off by .06 standard deviations at most. Beyond
    ``warn_shift = 1`` and ``warn_log_ratio = 1.4`` a single validation is enough for a warning.

    ## Look-alikes
    Augmentation changes the training data and not the validation data: mixing images takes up to a third off the
    variance, a log ratio of .4. BN304 judges running statistics that lag behind, and BN303 those that are cold.

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
        """Find the layers that received other data in the latest validation."""
        structure, held_out = window.facts.structure, window.facts.held_out
        if not held_out or structure is None or not structure.places:
            return []
        newest = held_out[-1]
        mean_lag, log_lag = lag(window)
        judged = structure.roots() & (newest.size >= self.least_samples) & warm(window)[-1]
        # If the training batches do not agree with the running statistics, or may not, the data is not to blame.
        judged &= (mean_lag < self.lag_shift) & ((log_lag < self.lag_log_ratio) | log_lag.isnan())
        shift, log_ratio = _distance(newest, window)
        off = judged & ((shift > self.shift) | (log_ratio > self.log_ratio))
        return [
            self._finding(window, i, float(shift[i]), float(log_ratio[i])) for i in off.nonzero().flatten().tolist()
        ]

    def _finding(self, window: Window, layer: int, shift: float, log_ratio: float) -> Finding:
        by_mean = not log_ratio > self.log_ratio or shift / self.shift > log_ratio / self.log_ratio
        held_out = window.facts.held_out
        again = False
        for older in held_out[:-1]:
            before = _distance(older, window)
            enough = bool(older.size[layer] >= self.least_samples)
            again |= enough and bool((before[0][layer] > self.shift) | (before[1][layer] > self.log_ratio))
        large = shift > self.warn_shift or log_ratio > self.warn_log_ratio
        return Finding(
            severity=Severity.WARNING if large or again else Severity.INFO,
            layer=layer,
            first_step=window.steps[0] if held_out[0].step < window.steps[0] else held_out[0 if again else -1].step,
            value=shift if by_mean else log_ratio,
            threshold=self.shift if by_mean else self.log_ratio,
            message=f"the validation data differs from the training data: over {int(held_out[-1].size[layer])} samples "
            f"the mean is off by {number(shift)} standard deviations in the median channel, the log variance by "
            f"{number(log_ratio)}; the training batches agree with the running statistics",
            advice="compare the transformations of both loaders (scaling, mean and standard deviation, channel order); "
            "if the data is meant to differ, estimate the running statistics on it",
        )


def _distance(held_out: HeldOut, window: Window) -> tuple[Tensor, Tensor]:
    """Distance of the mean and of the log variance in the median channel: two ``[L]``."""
    eps = window.layers.eps_by_channel
    running = held_out.running_var + eps
    shift = (held_out.mean - held_out.running_mean).abs() / running.sqrt()
    log_ratio = ((held_out.var + eps) / running).log().abs()
    alive = held_out.running_var > FLAT * eps
    return median(shift.where(alive, torch.nan), window), median(log_ratio.where(alive, torch.nan), window)
