"""Reads from a data loader how it makes its batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from bnmonitor.window import Loader


def describe(loader: Any, argument: str = "train_loader", batches: float | None = None) -> Loader | None:
    """Return how a loader makes its batches; None if it is not a ``DataLoader``, or is several.

    Args:
        loader: A loader, or a nest of mappings and sequences that contains one.
        argument: Name of the argument that the loader was passed as.
        batches: Number of batches in an epoch; None: all.

    Raises:
        TypeError: The loader cannot be iterated over.
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
    # Nothing is known of the batches that a batch sampler of another class draws, whatever its attributes say.
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
