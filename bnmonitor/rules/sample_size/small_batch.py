"""BN201: too few samples per batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from bnmonitor._text import number
from bnmonitor.limits import SMALL_BATCH, TINY_BATCH
from bnmonitor.measures import median, normalizing, processes, samples_by_noise, samples_normalized, trunk, warm
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class SmallBatch(Rule):
    """Too few samples are normalized together for their statistics to be reliable.

    ## What it does
    Takes the number of samples N in one call of the layers, as seen on the sampled steps; SyncBatchNorm counts the
    samples of all processes. One alert for the whole model. If a layer sees many values per sample, as a convolution on
    large images does, the batch-to-batch spread of the standard deviation must confirm the finding; otherwise the alert
    is one degree milder. Without samples, the batch size of the training loader counts; if that is unknown as well,
    the number of independent values whose means would be as noisy as those of the batches.

    ## Why is this bad?
    The mean of N samples is off by ``sigma / sqrt(N)``: 18 % at 32, 35 % at 8, 71 % at 2. Training sees that noise;
    evaluation, with its running averages, does not, so the two disagree.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> [finding] = SmallBatch().check(make_window(sizes=4, values=4))
    >>> str(finding.severity), finding.value
    ('error', 4.0)

    A batch of 32 stays quiet:

    >>> SmallBatch().check(make_window(sizes=32, values=32))
    []

    ## Code
    Wrong::

        loader = DataLoader(data, batch_size=2)

    Right::

        loader = DataLoader(data, batch_size=32)
        # or, where memory is short: Trainer(devices=8, sync_batchnorm=True), or nn.GroupNorm(8, 64)

    ## What to do
    Use a larger batch, ``Trainer(sync_batchnorm=True)`` on several devices, or GroupNorm or LayerNorm if the batch must
    be small; or freeze the statistics of a pretrained network. Accumulating gradients does not help: each micro-batch
    is normalized separately.

    ## Thresholds
    ``warn_below = 16`` and ``error_below = 5``: ResNet-50 loses .4, 1.1, 3.6 and 11 points at 16, 8, 4 and 2 images (Wu
    and He 2018). Above ``many_values = 10 000`` values per channel, ``spread = .25`` must confirm it: the standard
    deviation, over ``least_steps = 16`` steps after warm-up, of the log of the ratio of batch to running standard
    deviation.

    ## Look-alikes
    Small batches can be right for SGD itself (Masters and Luschi 2018): this rule judges only the statistics. Ghost
    batches are small on purpose: set the thresholds to zero with
    ``rules={"small-batch": {"warn_below": 0, "error_below": 0}}``.

    ## References
    Wu and He, Group Normalization, 2018; Wu and Johnson, Rethinking "Batch" in BatchNorm, 2021; pytorch/vision#6543.
    """

    code: ClassVar[str] = "BN201"
    name: ClassVar[str] = "small-batch"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"buffers"})

    warn_below: int = SMALL_BATCH
    error_below: int = TINY_BATCH
    many_values: int = 10_000
    spread: float = 0.25
    least_steps: int = 16

    def check(self, window: Window) -> list[Finding]:
        """Judge the batch of the whole model once."""
        layers, base = window.layers, window.baseline
        size = samples_normalized(window)
        judged = size.isfinite() & window.training[-1] & layers.which("normalizes_batch")
        if not judged.any():
            return self._by_noise(window)
        typical = float(size[judged].median())
        severity = (
            Severity.ERROR if typical < self.error_below else Severity.WARNING if typical < self.warn_below else None
        )
        if severity is None:
            return []
        at = (judged & (size < max(self.warn_below, self.error_below))).nonzero().flatten().tolist()
        wide = trunk(window, judged)
        many = bool((base.values[wide].nanmedian() >= self.many_values).item())
        past = self._after_warm_up(window, wide)
        if many and past < self.least_steps:
            return []
        if many and not self._spread(window.last(past), wide) > self.spread:
            severity = Severity.WARNING if severity is Severity.ERROR else Severity.INFO
        noise = 100 / typical**0.5
        limit = self.error_below if typical < self.error_below else self.warn_below
        return [
            Finding(
                severity=severity,
                layer=at[0],
                layers=tuple(at),
                first_step=self._began(window, at, limit),
                value=typical,
                threshold=float(limit),
                message=f"{number(typical)} samples are normalized together (fewer than {limit}): the mean of a batch "
                f"is off by {number(noise)} % of a standard deviation if the values within a sample are alike",
                advice="use a larger batch, Trainer(sync_batchnorm=True) on several devices (with subclasses, "
                "bnmonitor.remedies.convert_sync), or GroupNorm; accumulating gradients does not help",
            )
        ]

    def _began(self, window: Window, layers: list[int], limit: int) -> int:
        """The first sampled step after the last one with more samples; the window's first if there was none."""
        since, count = window.steps[0], processes(window)
        for sample in [*window.earlier, *([] if window.sample is None else [window.sample])][::-1]:
            if float((sample.size * count)[layers].float().median()) >= limit:
                return max(since, window.steps[0])
            since = sample.step
        return window.steps[0]

    def _by_noise(self, window: Window) -> list[Finding]:
        """Judge how much the means of the batches differ, where nothing tells their size."""
        judged = normalizing(window) & window.layers.tracked
        past = self._after_warm_up(window, judged) if judged.any() else 0
        if past < self.least_steps:
            return []
        values = samples_by_noise(window.last(past), judged, enough=max(self.warn_below, self.error_below))
        limit = self.error_below if values < self.error_below else self.warn_below
        if not values < limit:
            return []
        at = judged.nonzero().flatten().tolist()
        return [
            Finding(
                severity=Severity.ERROR if limit == self.error_below else Severity.WARNING,
                layer=at[0],
                layers=tuple(at),
                first_step=window.steps[0],
                value=values,
                threshold=float(limit),
                message=f"the means of the batches are as noisy as those of {number(values)} independent values (fewer "
                f"than {limit}): too little is normalized together",
                advice="use a larger batch, Trainer(sync_batchnorm=True) on several devices (with subclasses, "
                "bnmonitor.remedies.convert_sync), or GroupNorm; accumulating gradients does not help",
            )
        ]

    def _after_warm_up(self, window: Window, judged: torch.Tensor) -> int:
        """Steps at the end of the window in which no initial running variance is left."""
        return int(warm(window)[:-1, judged].all(1).sum())

    def _spread(self, window: Window, judged: torch.Tensor) -> float:
        deviation = window.ratio.log().std(0)
        by_layer = median(deviation, window)
        return float(by_layer[judged].nanmedian())
