"""BN205: several processes that each normalize only their own few samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor._text import number
from bnmonitor.limits import SMALL_BATCH, TINY_BATCH
from bnmonitor.measures import normalizing, samples_normalized
from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class UnsynchronizedRanks(Rule):
    """The batch is spread over several devices, and each device normalizes only its own small part.

    ## What it does
    In a training on several processes, takes the number of samples that a plain BatchNorm sees on one of them. One
    alert for the whole model.

    ## Why is this bad?
    The batch size of the run looks healthy, but the layers never see it. A batch of 64 on 8 devices is 8 samples for
    each normalization, and its mean is off by 35 % of a standard deviation. A checkpoint keeps the running statistics
    of one process only.

    ## Example
    >>> from bnmonitor.testing import make_window
    >>> [finding] = UnsynchronizedRanks().check(make_window(sizes=8, facts={"world_size": 8}))
    >>> str(finding.severity), finding.value
    ('warning', 8.0)

    Enough samples on each device stay quiet:

    >>> UnsynchronizedRanks().check(make_window(sizes=32, facts={"world_size": 8}))
    []

    ## What to do
    Use ``Trainer(sync_batchnorm=True)``, or ``nn.SyncBatchNorm.convert_sync_batchnorm(model)`` before the model is
    wrapped; a larger batch per device; or ``GroupNorm``.

    ## Thresholds
    ``warn_below = 16`` and ``error_below = 5`` samples per process, as for BN201. Synchronizing was found to matter at
    8 and fewer per device.

    ## Look-alikes
    Contrastive learning that shuffles samples between devices needs the statistics of each device: ignore the rule
    there.

    ## References
    Lightning-AI/pytorch-lightning#6789, #4597, #2509; ultralytics/yolov5#401; pytorch/pytorch#2584.
    """

    code: ClassVar[str] = "BN205"
    name: ClassVar[str] = "unsynchronized-ranks"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"ranks", "batch_size"})
    exact: ClassVar[bool] = True

    warn_below: int = SMALL_BATCH
    error_below: int = TINY_BATCH

    def check(self, window: Window) -> list[Finding]:
        """Judge the part of the batch that one process normalizes."""
        ranks, size = window.facts.world_size, samples_normalized(window)
        judged = normalizing(window) & ~window.layers.synced_layers & size.isfinite()
        if ranks < 2 or not judged.any():
            return []
        samples = float(size[judged].median())
        limit = self.error_below if samples < self.error_below else self.warn_below
        if not samples < limit:
            return []
        layers = tuple((judged & (size < limit)).nonzero().flatten().tolist())
        return [
            Finding(
                severity=Severity.ERROR if samples < self.error_below else Severity.WARNING,
                layer=layers[0],
                layers=layers,
                first_step=window.steps[0],
                value=samples,
                threshold=float(limit),
                message=f"each of {ranks} processes normalizes its own {number(samples)} samples (fewer than {limit}): "
                f"the mean of a batch is off by {number(100 / samples**0.5)} % of a standard deviation, or by "
                f"{number(100 / (ranks * samples) ** 0.5)} % over all of them",
                advice="use Trainer(sync_batchnorm=True), or call nn.SyncBatchNorm.convert_sync_batchnorm(model) "
                "before the model is wrapped",
            )
        ]
