"""What bnmonitor reads from Lightning that is not public: the one file to check when Lightning is upgraded.

Lightning may rename or remove each of these attributes, so every function has a default for that case.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any


def steps_taken(trainer: Any) -> int:
    """The step number that Lightning logs under; with several optimizers ``global_step`` is larger."""
    loop = getattr(trainer.fit_loop, "epoch_loop", None)
    return int(getattr(loop, "_batches_that_stepped", trainer.global_step))


def converts_to_sync_batchnorm(trainer: Any) -> bool:
    """Whether the user asked the Trainer for SyncBatchNorm.

    The strategy of a single device does not convert the model, but the next run may use more devices.
    """
    sync = getattr(getattr(trainer, "_accelerator_connector", None), "_layer_sync", None)
    return type(sync).__name__ == "TorchSyncBatchNorm"


def averages_without_buffers(trainer: Any) -> bool:
    """Whether a ``WeightAveraging`` callback leaves the buffers out of its average."""
    averages = [c for c in trainer.callbacks if any(k.__name__ == "WeightAveraging" for k in type(c).__mro__)]
    return any(not getattr(c, "_use_buffers", True) for c in averages)


def launches_processes(trainer: Any) -> bool:
    """Whether the Trainer runs in processes that it has spawned or forked, and that end with its fit."""
    launcher = getattr(getattr(trainer, "strategy", None), "launcher", None)
    return any(kind.__name__ == "_MultiProcessingLauncher" for kind in type(launcher).__mro__)


def paused(bar: Any) -> AbstractContextManager[Any]:
    """Hold the lock of the thread that draws rich's progress bar.

    Without it that thread can draw in the middle of a print, which breaks a bar of several lines.
    """
    live = getattr(getattr(bar, "progress", None), "live", None)
    lock: AbstractContextManager[Any] = getattr(live, "_lock", nullcontext())
    return lock
