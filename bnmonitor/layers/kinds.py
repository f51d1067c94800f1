"""The kinds of normalization layers: which classes count, and what sets them apart."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from bnmonitor.layers.sharding import is_split
from bnmonitor.layers.table import Family

_FROZEN_BUFFERS = ("weight", "bias", "running_mean", "running_var")


def family_of(module: nn.Module) -> Family | None:
    """Return the family of a normalization layer that can be watched, or None for any other module.

    An InstanceNorm without running statistics keeps nothing to watch. A layer with fixed statistics is known by its
    buffers, as every library has its own.
    """
    if isinstance(module, _BatchNorm):
        return "batch"
    if isinstance(module, _InstanceNorm):
        return "instance" if module.running_mean is not None else None
    kept = [module._buffers.get(name) for name in _FROZEN_BUFFERS]
    sizes = {tuple(t.shape) for t in kept if t is not None}
    if module._parameters or any(t is None for t in kept) or len(sizes) != 1 or len(sizes.pop()) != 1:
        return None
    return "frozen"


def writes_pairwise(module: nn.Module) -> bool:
    """Whether a forward of the layer writes to both running statistics equally often, as PyTorch's own does."""
    own = (_BatchNorm.forward, nn.SyncBatchNorm.forward)
    return "forward" not in vars(module) and type(module).forward in own


def own_forwards(named: Iterable[tuple[str, nn.Module]]) -> dict[str, str]:
    """Return the class of every BatchNorm, by name, that does something of its own in its forward."""
    return {name: type(m).__name__ for name, m in named if isinstance(m, _BatchNorm) and not writes_pairwise(m)}


def channels_of(module: nn.Module) -> int:
    """Return a layer's channels by its tensors: pruning replaces these, and leaves ``num_features`` as it was."""
    mean, weight = module._buffers.get("running_mean"), module._parameters.get("weight")
    if mean is not None:
        return mean.numel()
    return int(module.num_features) if weight is None or is_split(weight) else weight.numel()  # type: ignore[arg-type]


def same_layer(old: nn.Module | None, new: nn.Module) -> bool:
    """Whether a module is the one before, or took over its running statistics as SyncBatchNorm does."""
    if old is None or old is new:
        return old is new
    kept = new._buffers.get("running_mean")
    return kept is not None and old._buffers.get("running_mean") is kept
