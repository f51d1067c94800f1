"""The cause ``handwritten-statistics``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor.diagnosis.base import Case, Cause


@dataclass(frozen=True, kw_only=True)
class HandwrittenStatistics(Cause):
    """Code other than PyTorch's forward averages the batches, and keeps hardly more than the last one.

    ## What it is
    A BatchNorm of one's own (synchronized, fused, folded for quantization) writes the running statistics itself, with
    the two weights of the average the other way round.

    ## What follows
    The running statistics are those of one batch, whatever ``momentum`` says: evaluation differs from training (BN305),
    and validation data seem to differ (BN603).

    ## What to do
    Keep ``1 - momentum`` of the old value and ``momentum`` of the new one, and count the update.

    ## Example
    Wrong::

        self.running_mean.mul_(self.momentum).add_((1 - self.momentum) * mean)  # keeps a tenth of the past

    Right::

        self.running_mean.mul_(1 - self.momentum).add_(self.momentum * mean)
        self.num_batches_tracked.add_(1)

    A window of such a training:

    >>> import torch
    >>> from dataclasses import replace
    >>> from bnmonitor.testing import diagnose, make_sample, make_window
    >>> from bnmonitor.window import Recovery
    >>> window = make_window(running_mean=torch.randn(64, 8, generator=torch.Generator().manual_seed(0)))
    >>> window.recovery[:] = Recovery.FOREIGN
    >>> batch = make_sample(window.layers, step=window.steps[1], input={"mean": window.running_mean[1]})
    >>> [incident] = diagnose(replace(window, sample=batch))
    >>> incident.cause, str(incident.severity)
    ('handwritten-statistics', 'warning')
    """

    name: ClassVar[str] = "handwritten-statistics"
    leads: ClassVar[tuple[str, ...]] = ("BN306",)
    explains: ClassVar[frozenset[str]] = frozenset({"BN303", "BN304", "BN305", "BN603", "BN707"})
    belated: ClassVar[bool] = True

    def title(self, case: Case) -> str:
        """Say what is wrong with them; a rule's title says that they are written, which need not be wrong."""
        return "running statistics written by other code keep hardly more than the last batch"
