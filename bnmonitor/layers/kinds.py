"""The kinds of normalization layers: the only file that knows their classes, and how the kinds differ.

To add a kind, add it to :data:`KINDS`, with the facts that the other rooms ask for, and its name to :data:`Family`. Its
behavior is then tested by a subclass of ``KindContract`` in ``tests/layers/test_kinds.py`` and by an entry in
``tests/end_to_end/kinds.py``, which the documentation lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from bnmonitor.layers.sharding import is_split

Family = Literal["batch", "instance", "frozen"]
"""What a layer normalizes with: statistics of the batch, of each sample alone, or fixed ones."""

Fact = Literal["normalizes_batch", "has_modes", "counts_updates", "averages_cumulatively", "affine_in_buffers"]
"""A fact of a :class:`Kind`, as :meth:`bnmonitor.layers.LayerTable.which` takes it."""

BATCH_NORM = _BatchNorm
"""The base class of PyTorch's BatchNorm layers."""

ANY_NORM = (_NormBase, nn.GroupNorm, nn.LayerNorm, *([nn.RMSNorm] if hasattr(nn, "RMSNorm") else []))
"""PyTorch's classes of normalization layers, those included that bnmonitor does not record."""

_FROZEN_BUFFERS = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How the layers of one kind behave.

    Attributes:
        name: The family that a layer table lists the kind under.
        recognizes: Whether a module is a layer of this kind that can be recorded.
        normalizes_batch: A training forward normalizes each sample with statistics of the whole batch.
        has_modes: ``train()`` and ``eval()`` decide which statistics the layer normalizes with.
        counts_updates: ``num_batches_tracked``, where the layer has it, grows by one with each update. Otherwise each
            update is one write to each of the running statistics.
        averages_cumulatively: ``momentum=None`` makes the running statistics the average of all batches. Otherwise it
            keeps them as they are.
        affine_in_buffers: Gamma and beta are buffers, not parameters.
    """

    name: Family
    recognizes: Callable[[nn.Module], bool]
    normalizes_batch: bool
    has_modes: bool
    counts_updates: bool
    averages_cumulatively: bool
    affine_in_buffers: bool


def _keeps_fixed_statistics(module: nn.Module) -> bool:
    """Whether a module has the four buffers of a frozen BatchNorm: every library has its own class of these."""
    kept = [module._buffers.get(name) for name in _FROZEN_BUFFERS]
    sizes = {tuple(t.shape) for t in kept if t is not None}
    return not module._parameters and all(t is not None for t in kept) and len(sizes) == 1 and len(sizes.pop()) == 1


KINDS = (
    Kind(
        name="batch",
        recognizes=lambda module: isinstance(module, _BatchNorm),
        normalizes_batch=True,
        has_modes=True,
        counts_updates=True,
        averages_cumulatively=True,
        affine_in_buffers=False,
    ),
    Kind(
        name="instance",
        # Without running statistics it keeps nothing to record.
        recognizes=lambda module: isinstance(module, _InstanceNorm) and module.running_mean is not None,
        normalizes_batch=False,
        has_modes=True,
        counts_updates=False,
        averages_cumulatively=False,
        affine_in_buffers=False,
    ),
    Kind(
        name="frozen",
        recognizes=_keeps_fixed_statistics,
        normalizes_batch=False,
        has_modes=False,
        counts_updates=True,
        averages_cumulatively=True,
        affine_in_buffers=True,
    ),
)
"""Every kind of layer that bnmonitor records; the first that recognizes a module counts."""

_BY_NAME = {kind.name: kind for kind in KINDS}


def kind_of(module: nn.Module) -> Kind | None:
    """Return the kind of a layer that can be recorded, or None for any other module."""
    try:
        for kind in KINDS:  # a generator would cost as much again, and every check asks this of all modules
            if kind.recognizes(module):
                return kind
    except Exception:  # a module may answer anything when it is asked for its buffers, as a ScriptModule does
        return None
    return None


def kind_named(family: Family) -> Kind:
    """Return the kind that a layer table lists under a family."""
    return _BY_NAME[family]


def is_synced(module: nn.Module) -> bool:
    """Whether a layer normalizes over the batches of all processes: a SyncBatchNorm or a subclass."""
    return isinstance(module, nn.SyncBatchNorm)


def runs_torch_forward(module: nn.Module) -> bool:
    """Whether a BatchNorm runs PyTorch's own forward on one process, so that its class adds nothing to it."""
    return "forward" not in vars(module) and type(module).forward is _BatchNorm.forward


def writes_pairwise(module: nn.Module) -> bool:
    """Whether a forward of the layer writes to both running statistics equally often, as PyTorch's own does."""
    return runs_torch_forward(module) or (
        "forward" not in vars(module) and type(module).forward is nn.SyncBatchNorm.forward
    )


def own_forwards(named: Iterable[tuple[str, nn.Module]]) -> dict[str, str]:
    """Return the class of every BatchNorm, by name, that has a forward of its own."""
    return {name: type(m).__name__ for name, m in named if isinstance(m, _BatchNorm) and not writes_pairwise(m)}


_MOST_AXES = ((nn.BatchNorm1d, 3), (nn.BatchNorm2d, 4), (nn.BatchNorm3d, 5))


def as_normalized(module: nn.Module, x: Tensor) -> Tensor:
    """Return a layer's input or output as PyTorch normalizes it, ``[N, C, ...]``.

    A class with a forward of its own may take another layout: that of spiking networks, ``[T, N, C, ...]``, becomes
    ``[T * N, C, ...]``, and channels that come last come second: ``[N, L, C]`` may be either, and becomes
    ``[N * L, C]``. Any other layout is returned as it is.

    Where sizes are alike by chance, the layout that PyTorch's own class takes is meant.

    Args:
        module: The layer.
        x: What it was given, or what it returned.
    """
    if not isinstance(module, _BatchNorm) or x.dim() < 3 or writes_pairwise(module):
        return x
    channels = channels_of(module)
    most = next((axes for kind, axes in _MOST_AXES if isinstance(module, kind)), x.dim())
    if x.dim() > most and x.shape[2] == channels:
        return x.flatten(0, 1)
    if x.shape[1] == channels:
        return x
    if x.dim() > 3 and x.shape[-1] == channels:
        return x.movedim(-1, 1)
    return x.flatten(0, 1) if x.shape[2] == channels else x


def channels_of(module: nn.Module) -> int:
    """Return a layer's channels by its tensors: pruning replaces these, and leaves ``num_features`` as it was."""
    mean = module._buffers.get("running_mean")
    if mean is not None:
        return mean.numel()
    weight = module._parameters.get("weight")
    return int(module.num_features) if weight is None or is_split(weight) else weight.numel()  # type: ignore[arg-type]


def same_layer(old: nn.Module | None, new: nn.Module) -> bool:
    """Whether a module is the one before, or took over its running statistics as SyncBatchNorm does."""
    if old is None or old is new:
        return old is new
    kept = new._buffers.get("running_mean")
    return kept is not None and old._buffers.get("running_mean") is kept
