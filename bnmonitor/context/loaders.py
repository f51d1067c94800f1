"""What a data loader says about its batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from bnmonitor.window import Loader

_KEPT = 4096
"""Readings of the scale that are kept; a window is much shorter."""


def describe(loader: Any, argument: str = "train_loader", batches: float | None = None) -> Loader | None:
    """Return what a loader tells of its batches; None if it is no ``DataLoader``, or several.

    Args:
        loader: A loader, or a nest of mappings and sequences with one in it.
        argument: What the loader is called where it was given.
        batches: Batches that an epoch takes; None: all.

    Raises:
        TypeError: It cannot be iterated over.
    """
    if type(loader).__name__ == "_FabricDataLoader":
        loader = loader._dataloader
    if not isinstance(loader, DataLoader):
        if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
            raise TypeError(f"{argument} must be a torch DataLoader or another iterable, got {type(loader).__name__}")
        inside = list(loader.values()) if isinstance(loader, Mapping) else loader
        one = isinstance(inside, list | tuple) and len(inside) == 1
        return describe(inside[0], argument, batches) if one and isinstance(inside[0], DataLoader) else None
    plan = loader.batch_sampler
    # A batch sampler of another class draws batches that nothing is known of, whatever its attributes say.
    known = plan is None or type(plan) is BatchSampler
    size, sampler = (loader.batch_size, loader.sampler) if known else (None, None)
    samples, whole = _length(sampler), _length(loader)
    return Loader(
        batch_size=size,
        samples=samples,
        drop_last=loader.drop_last if known else None,
        shuffled=_shuffled(sampler),
        complete=batches is None or (whole is not None and batches >= whole),
    )


def _length(sized: Any) -> int | None:
    try:
        return len(sized)
    except (TypeError, NotImplementedError):
        return None


def _shuffled(sampler: Any) -> bool | None:
    if isinstance(sampler, RandomSampler):
        return True
    if isinstance(sampler, SequentialSampler):
        return False
    return bool(sampler.shuffle) if isinstance(sampler, DistributedSampler) else None
