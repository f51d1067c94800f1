"""BN503: processes whose running statistics differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bnmonitor._text import number
from bnmonitor.limits import LAG_LOG_DEVIATION, LAG_MEAN
from bnmonitor.measures import median
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import RankStatistics, Window


@dataclass(frozen=True, kw_only=True)
class RankDivergence(Rule):
    """The processes of a distributed training have different running statistics.

    ## What it does
    Compares the running statistics of all processes at every logged step, before the next forward hides the difference
    by broadcasting those of the first. The middle channel of a layer is judged: the root mean square difference of two
    processes' running means in deviations, and of the logs of their running variances. What chance alone makes of
    processes that draw from the same data is taken off first.

    ## Why is this bad?
    Only one process's statistics reach the checkpoint, and evaluation. If the processes see different data
    (a sharded sampler over sorted files, one domain per process) these describe a part of it.

    ## Example
    >>> import torch
    >>> from dataclasses import replace
    >>> from bnmonitor.window import RankStatistics
    >>> from bnmonitor.testing import make_window
    >>> def told(spread):
    ...     some = torch.full((3,), spread)
    ...     ranks = RankStatistics(step=63, world_size=2, size=torch.tensor([64.0]), batch_mean=some, batch_var=some,
    ...                            batch_spread=some, mean_spread=some, var_spread=some)
    ...     window = make_window()
    ...     return replace(window, facts=replace(window.facts, ranks=ranks))
    >>> [finding] = RankDivergence().check(told(0.4))
    >>> str(finding.severity), round(finding.value, 2)
    ('warning', 0.4)

    The small differences that chance makes stay quiet:

    >>> RankDivergence().check(told(0.05))
    []

    ## What to do
    Let every process draw from all data (``DistributedSampler(shuffle=True)``), or normalize over all of them:
    ``Trainer(sync_batchnorm=True)``. Where they are meant to differ, average the running statistics of all
    processes before evaluating, as timm's ``distribute_bn`` does.

    ## Thresholds
    ``warn_mean = .1`` deviations and ``warn_log_variance = .2``: the same scale as a lag of the running statistics
    (BN304). Two processes that average over ``(2 - m) / m`` batches of ``N`` samples differ by
    ``sqrt(2 m / ((2 - m) N))`` by chance alone, .08 at N 16 and momentum .1; that variance is subtracted. Two processes
    on the same data measured .02 and .05, on data three deviations apart 1.3.

    ## Look-alikes
    Processes that train different things on purpose. With SyncBatchNorm all are the same.

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
        """Find the layers whose running statistics differ between processes."""
        ranks = window.facts.ranks
        if ranks is None or ranks.step not in window.steps:
            return []
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
        what = f"running means {number(mean)} deviations" if by_mean else f"logs of the running variances {number(log)}"
        return Finding(
            severity=Severity.WARNING,
            layer=layer,
            first_step=ranks.step,
            value=mean if by_mean else log,
            threshold=self.warn_mean if by_mean else self.warn_log_variance,
            message=f"the {what} apart between {ranks.world_size} processes: they see different data, and only one's "
            "statistics are saved",
            advice="let every process draw from all data (DistributedSampler(shuffle=True)), or normalize over all of "
            "them: Trainer(sync_batchnorm=True)",
        )


def _chance(window: Window) -> Tensor:
    """Squared difference, in deviations, that two processes on the same data have by chance: ``[L]``."""
    momentum = window.momentum[-1].double().nan_to_num(0.0)
    sizes = window.baseline.sizes.double().nan_to_num(torch.inf)
    return 2 * momentum / ((2 - momentum) * sizes.clamp(min=1))


def _beyond(spread: Tensor, chance: Tensor) -> Tensor:
    return (spread.square() - chance).clamp(min=0).sqrt()
