"""BN304: running statistics that describe an older network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from bnmonitor._text import number, weight
from bnmonitor.limits import FLAT, LAG_LOG_DEVIATION, LAG_MEAN, SEVERE_LAG_LOG_DEVIATION, SEVERE_LAG_MEAN
from bnmonitor.measures import lag, may_lag, settled, variances
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule, onset, rate_note
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class StaleStatistics(Rule):
    """The running statistics lag behind the batches, in the same direction, step after step.

    ## What it does
    Averages, per channel and with its sign, the distance of the batch mean from the running mean, in standard
    deviations. Also compares the average batch variance of the window with the average running variance. The noise of
    single batches cancels in such averages, a lag does not. The median over the steps must agree, so that a single
    jump, which the running statistics catch up with, does not count as a lag. The rule judges the median channel of a
    layer over two consecutive windows.

    ``bnmonitor audit`` compares stored statistics with those of ``--images``, and with a ``--reference`` names a layer
    that has moved far more than all others.

    ## Why is this bad?
    Evaluation normalizes with the statistics of a network that no longer exists. Validation loss jumps or oscillates
    while training is smooth, and recovers when the learning rate decays.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> [finding] = StaleStatistics().check(make_window(batch_mean=[0.3, -0.4, 0.35], momentum=0.01))
    >>> str(finding.severity), round(finding.value, 2)
    ('error', 0.35)

    Noise around the running mean stays quiet:

    >>> import torch
    >>> noise = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)) * 0.3
    >>> StaleStatistics().check(make_window(batch_mean=noise))
    []

    ## Code
    Wrong::

        nn.BatchNorm2d(64, momentum=0.001)  # a thousand steps behind the weights

    Right::

        nn.BatchNorm2d(64, momentum=0.1)
        # or, before each validation:
        bnmonitor.remedies.recalibrate(model, train_loader)

    ## What to do
    Estimate the running statistics again before each evaluation: ``bnmonitor.remedies.recalibrate(model, loader)``, or
    the callback ``bnmonitor.remedies.Recalibrate()``. A larger momentum (.1 instead of .01), a lower learning rate or a
    longer decay removes the cause.

    ## Thresholds
    ``warn_mean = .1`` standard deviations and ``warn_log_deviation = .2``; ``error_mean = .25`` and
    ``error_log_deviation = .7``. Where only the mean lags, and by less than ``error_mean``, it must do so for
    ``slight_steps = 256``, and half as long where it lags by less than twice that: while features settle, in
    contrastive trainings or under a momentum of .01, they lag by .11 to .29 for a hundred steps or two. In eight such
    trainings the network classified as well with statistics that were estimated anew, within five points either way.
    Where the deviation lags by more than ``slight_log_deviation = .12`` and less than ``warn_log_deviation``, it must
    do so for half of ``slight_steps``: in 299 sound trainings it did for 20 steps at most, and a lag of .2 that stayed
    cost a small network of 1-d convolutions 4 points of accuracy.

    Settled healthy runs measured .03 and .02, and up to .36 and .6 for a few dozen steps early in training, which the
    second window excludes. Momentum .01 over 220 steps measured .24 and .43 and lost 7 points of accuracy; momentum
    .001 measured .68 and 1.04 and lost 73. Both windows lie after warm-up. The variance is compared by its average, not
    by the average of its log: the log of a small batch's variance is biased (by -.29 at three values), which would look
    like a lag.

    A cumulative average (momentum None) always lags: if the network moves as the log of time, the average is one
    standard deviation of the last e-fold of training behind, and BN302 reports that. This rule judges it only from the
    error levels on: on digits, lags up to .23 cost at most 3 points of accuracy, and lags from .27 on cost 3 to 56.

    ## Look-alikes
    The jump after a restart of the learning rate is over within a window. The first steps are not judged.

    ## References
    Wu and Johnson, Rethinking "Batch" in BatchNorm, 2021; keras-team/keras#10666; facebookresearch/SlowFast#44.
    """

    code: ClassVar[str] = "BN304"
    name: ClassVar[str] = "stale-statistics"
    severity: ClassVar[Severity] = Severity.WARNING
    confirm: ClassVar[int] = 64
    yields_to: ClassVar[frozenset[str]] = frozenset({"BN105", "BN106", "BN107"})
    follows: ClassVar[frozenset[str]] = frozenset({"BN106", "BN704"})

    warn_mean: float = LAG_MEAN
    warn_log_deviation: float = LAG_LOG_DEVIATION
    error_mean: float = SEVERE_LAG_MEAN
    error_log_deviation: float = SEVERE_LAG_LOG_DEVIATION
    least_steps: int = 32
    slight_log_deviation: float = 0.12
    slight_steps: int = 256

    def check(self, window: Window) -> list[Finding]:
        """Find the layers with running statistics that lag."""
        seen = window.updates.clamp(min=0).sum(0)
        judged = settled(window) & (seen >= min(self.least_steps, len(window))) & window.training[-1] & ~window.copied
        if len(window) < 8 or not judged.any():
            return []
        slight = min(self.slight_log_deviation, self.warn_log_deviation)
        least = min(self.warn_mean, self.error_mean), min(slight, self.error_log_deviation)
        if not may_lag(window, *least):
            return []
        mean_lag, log_lag = lag(window)
        cumulative = window.momentum[-1].isnan()
        least_mean = torch.where(cumulative, self.error_mean, self.warn_mean)
        least_log = torch.where(cumulative, self.error_log_deviation, slight)
        over = judged & ((mean_lag > least_mean) | (log_lag > least_log))
        findings = (self._finding(window, layer, slight) for layer in over.nonzero().flatten().tolist())
        return [finding for finding in findings if finding is not None]

    def _finding(self, window: Window, layer: int, slight: float) -> Finding | None:
        """Judge a layer by the smaller of average and median over the steps: one jump moves only the average."""
        span, eps = window.layers.span(layer), window.layers.eps[layer]
        shift, batch = window.shift[1:, span], variances(window, slice(1, None), span)
        log_ratio = 0.5 * ((batch + eps) / (window.running_var[:-1, span] + eps)).log()
        mean_lag, log_lag = (float(values[layer]) for values in lag(window))
        mean = min(mean_lag, float(_steady(shift)))
        log = min(log_lag, float(_steady(log_ratio.where(batch > FLAT * eps, torch.nan))))
        mean, log = (0.0 if math.isnan(value) else value for value in (mean, log))
        error = mean > self.error_mean or log > self.error_log_deviation
        warned = not math.isnan(float(window.momentum[-1, layer]))
        if not error and not (warned and (mean > self.warn_mean or log > slight)):
            return None
        warn_log = self.warn_log_deviation if log > self.warn_log_deviation else slight
        limits = (self.error_mean, self.error_log_deviation) if error else (self.warn_mean, warn_log)
        by_mean = mean / limits[0] >= log / limits[1]
        momentum = float(window.momentum[-1, layer])
        if by_mean:
            what = f"the batch means are {number(mean)} standard deviations off the running mean, always on one side"
        else:
            factor = number(math.exp(min(log, 80.0)))
            what = f"the batch standard deviations differ by a factor {factor} from the running ones"
        return Finding(
            severity=Severity.ERROR if error else Severity.WARNING,
            layer=layer,
            first_step=_since(shift if by_mean else log_ratio, limits[0 if by_mean else 1], window),
            value=mean if by_mean else log,
            threshold=limits[0] if by_mean else limits[1],
            message=f"{what}; momentum {weight(momentum) if momentum == momentum else None}"
            f"{rate_note(window, window.steps[-1])}",
            lasting=self._lasting(mean, log > slight) if log <= self.warn_log_deviation else 0,
            advice="call bnmonitor.remedies.recalibrate(model, loader) before each evaluation; "
            "a larger momentum or a lower learning rate removes the cause",
        )

    def _lasting(self, mean: float, slight: bool) -> int:
        """Steps for which a lag must hold of the mean, or of the deviation where that lags slightly."""
        if mean > 2 * self.error_mean:
            return 0
        return self.slight_steps // 2 if slight or mean > self.error_mean else self.slight_steps


def _steady(values: torch.Tensor) -> torch.Tensor:
    """Distance of the median channel from zero, by the median over the steps: ``[T, c]`` to a number."""
    return values.nanmedian(0).values.abs().nanmedian()


def _since(values: torch.Tensor, limit: float, window: Window) -> int:
    """The step since which the channels have been off to the side of their median."""
    toward = (values * values.nanmedian(0).values.sign()).nanmedian(1).values
    return onset(toward > limit / 2, window)
