"""BN503: processes with different running statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bnmonitor._text import listing, number
from bnmonitor.limits import LAG_LOG_DEVIATION, LAG_MEAN
from bnmonitor.measures import median
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import RankStatistics, Window

FURTHEST = 0.6
"""Processes at so large a part of the largest distance from the mean of all are named."""


@dataclass(frozen=True, kw_only=True)
class RankDivergence(Rule):
    """The processes of a distributed training have different running statistics.

    ## What it does
    Compares the running statistics of all processes at every logged step, before the next forward broadcasts those of
    rank 0 and hides the difference. It judges the median channel of a layer by two root mean square differences between
    two processes: that of the running means, in standard deviations, and that of the logs of the running variances. The
    difference that processes on the same data have by chance is subtracted first. The message names the ranks that are
    furthest from the rest; of more than two processes that is known from the second logged step on, and judged then.

    ## Why is this bad?
    Only the running statistics of one process reach the checkpoint and the evaluation. If the processes see different
    data (a sharded sampler over sorted files, one domain per process), these statistics describe only a part of it.

    ## Example
    >>> import torch
    >>> from dataclasses import replace
    >>> from bnmonitor.window import RankStatistics
    >>> from bnmonitor.testing import make_window
    >>> def differing(spread):
    ...     some = torch.full((3,), spread)
    ...     ranks = RankStatistics(step=63, world_size=2, size=torch.tensor([64.0]), batch_mean=some, batch_var=some,
    ...                            batch_spread=some, mean_spread=some, var_spread=some)
    ...     window = make_window()
    ...     return replace(window, facts=replace(window.facts, ranks=ranks))
    >>> [finding] = RankDivergence().check(differing(0.4))
    >>> str(finding.severity), round(finding.value, 2)
    ('warning', 0.4)

    Small differences by chance stay quiet:

    >>> RankDivergence().check(differing(0.05))
    []

    ## What to do
    Let every process draw from all data (``DistributedSampler(shuffle=True)``), or normalize over all processes:
    ``Trainer(sync_batchnorm=True)``. If the data is meant to differ, average the running statistics of all processes
    before evaluating, as timm's ``distribute_bn`` does.

    ## Thresholds
    ``warn_mean = .1`` standard deviations and ``warn_log_variance = .2``: the same scale as a lag of the running
    statistics (BN304). Two processes that average over ``(2 - m) / m`` batches of ``N`` samples differ by
    ``sqrt(2 m / ((2 - m) N))`` by chance alone, .08 at N = 16 and momentum .1; the rule subtracts that variance. Two
    processes on the same data measured .02 and .05, on data that differs by three standard deviations 1.3.

    ## Look-alikes
    Processes that train different things on purpose. With SyncBatchNorm all processes have the same statistics.

    ## References
    pytorch/pytorch#110363, pytorch/pytorch#22095; facebookresearch/maskrcnn-benchmark#692.
    """

    code: ClassVar[str] = "BN503"
    name: ClassVar[str] = "rank-divergence"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"buffers", "ranks", "exchange"})

    warn_mean: float = LAG_MEAN
    warn_log_variance: float = LAG_LOG_DEVIATION

    def check(self, window: Window) -> list[Finding]:
        """Find the layers with running statistics that differ between processes."""
        ranks = window.facts.ranks
        if ranks is None or ranks.step not in window.steps:
            return []
        if ranks.world_size > 2 and ranks.distance is not None and bool(ranks.distance.isnan().all()):
            return []  # the next exchange tells which of them differ
        chance = _chance(window)
        mean = _beyond(median(ranks.mean_spread, window), chance)
        log = _beyond(median(ranks.var_spread, window), 2 * chance)
        over = (mean > self.warn_mean) | (log > self.warn_log_variance)
        return [
            self._finding(layer, float(mean[layer]), float(log[layer]), ranks)
            for layer in over.nonzero().flatten().tolist()
        ]

    def _finding(self, layer: int, mean: float, log: float, ranks: RankStatistics) -> Finding:
        by_mean = mean / self.warn_mean >= log / self.warn_log_variance
        means = f"running means differ by {number(mean)} standard deviations"
        what = means if by_mean else f"logs of the running variances differ by {number(log)}"
        return Finding(
            severity=Severity.WARNING,
            layer=layer,
            first_step=ranks.step,
            value=mean if by_mean else log,
            threshold=self.warn_mean if by_mean else self.warn_log_variance,
            message=f"the {what} between {ranks.world_size} processes{_furthest(ranks)}: the processes see different "
            "data, and only the statistics of one are saved",
            advice="let every process draw from all data (DistributedSampler(shuffle=True)), or normalize over all of "
            "them: Trainer(sync_batchnorm=True)",
        )


def _furthest(ranks: RankStatistics) -> str:
    """The processes that are furthest from the rest, in words; empty where they are no fewer than the rest."""
    if ranks.world_size == 2:
        return " (rank 0 and rank 1)"
    if ranks.distance is None or not bool((ranks.distance > 0).any()):
        return ""
    far = ranks.distance.nan_to_num(0.0)
    named = (far > FURTHEST * far.max()).nonzero().flatten().tolist()
    if 2 * len(named) > ranks.world_size:
        return ""
    return f" (furthest from the rest: rank{'s' * (len(named) > 1)} {listing(named)})"


def _chance(window: Window) -> Tensor:
    """Squared difference, in standard deviations, that two processes on the same data have by chance: ``[L]``."""
    momentum = window.momentum[-1].double().nan_to_num(0.0)
    sizes = window.baseline.sizes.double().nan_to_num(torch.inf)
    return 2 * momentum / ((2 - momentum) * sizes.clamp(min=1))


def _beyond(spread: Tensor, chance: Tensor) -> Tensor:
    return (spread.square() - chance).clamp(min=0).sqrt()
