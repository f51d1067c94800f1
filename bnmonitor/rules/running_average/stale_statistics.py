"""BN304: running statistics that describe an older network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from bnmonitor._text import number
from bnmonitor.frame import Window
from bnmonitor.measures import lag, settled
from bnmonitor.rules.base import Finding, Rule, Severity, rate_note


@dataclass(frozen=True, kw_only=True)
class StaleStatistics(Rule):
    """The running statistics lag behind the batches, in the same direction, step after step.

    ## What it does
    Averages, per channel and with its sign, how far the batch mean is from the running mean, in deviations; and
    compares the average batch variance of the window with the average running variance. The noise of single batches
    cancels in such averages, a lag does not. The middle channel of a layer is judged, over two windows in a row.

    ## Why is this bad?
    Evaluation normalizes with statistics of a network that no longer exists. Validation loss jumps or
    oscillates while training is smooth, and recovers when the learning rate decays.

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

    ## What to do
    Estimate the statistics anew before each evaluation: ``torch.optim.swa_utils.update_bn(loader, model)``.
    A larger momentum (.1 instead of .01), a lower learning rate or a longer decay remove the cause.

    ## Thresholds
    ``warn_mean = .1`` deviations and ``warn_log_deviation = .2``; ``error_mean = .25`` and ``error_log_deviation =
    .7``. Healthy runs measured at most .03 and .02; momentum .01 over 220 steps measured .24 and .43 and lost 7 points
    of accuracy, momentum .001 .68 and 1.04 and lost 73. Both windows lie after warm-up. The variance is compared by
    its average, not by the average of its log: the log of a small batch's variance is biased (by -.29 at three
    values), which would look like a lag.

    ## Look-alikes
    The jump after a restart of the learning rate, which is over within a window; the first steps, which are not judged.

    ## References
    Wu and Johnson, Rethinking "Batch" in BatchNorm, 2021; keras-team/keras#10666; facebookresearch/SlowFast#44.
    """

    code: ClassVar[str] = "BN304"
    name: ClassVar[str] = "stale-statistics"
    severity: ClassVar[Severity] = Severity.WARNING
    confirm: ClassVar[int] = 64

    warn_mean: float = 0.1
    warn_log_deviation: float = 0.2
    error_mean: float = 0.25
    error_log_deviation: float = 0.7
    least_steps: int = 32

    def check(self, window: Window) -> list[Finding]:
        """Find the layers whose running statistics lag."""
        seen = window.updates.clamp(min=0).sum(0)
        judged = settled(window) & (seen >= min(self.least_steps, len(window)))
        if len(window) < 8 or not judged.any():
            return []
        mean_lag, log_lag = lag(window)
        judged &= window.training[-1]
        over = judged & ((mean_lag > self.warn_mean) | (log_lag > self.warn_log_deviation))
        return [self._finding(window, layer, mean_lag, log_lag) for layer in over.nonzero().flatten().tolist()]

    def _finding(self, window: Window, layer: int, mean_lag: torch.Tensor, log_lag: torch.Tensor) -> Finding:
        mean, log = float(mean_lag[layer].nan_to_num(0.0)), float(log_lag[layer].nan_to_num(0.0))
        error = mean > self.error_mean or log > self.error_log_deviation
        limits = (self.error_mean, self.error_log_deviation) if error else (self.warn_mean, self.warn_log_deviation)
        by_mean = mean / limits[0] >= log / limits[1]
        momentum = window.layers.momentum[layer]
        if by_mean:
            what = f"batch means are {number(mean)} deviations away from the running mean, always to the same side"
        else:
            what = f"batch deviations differ by a factor {number(math.exp(min(log, 80.0)))} from the running ones"
        return Finding(
            severity=Severity.ERROR if error else Severity.WARNING,
            layer=layer,
            first_step=window.steps[0],
            value=mean if by_mean else log,
            threshold=limits[0] if by_mean else limits[1],
            message=f"{what}; momentum {'None' if momentum is None else number(momentum)}"
            f"{rate_note(window, window.steps[-1])}",
            advice="torch.optim.swa_utils.update_bn(loader, model) before each evaluation; "
            "a larger momentum or a lower learning rate removes the cause",
        )
