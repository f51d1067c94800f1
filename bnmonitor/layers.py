"""Find the normalization layers of a model: modules in, a table of plain facts out.

The only file that knows the normalization classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from bnmonitor._text import nearest
from bnmonitor.segments import Segments
from bnmonitor.sharding import flat_parameters, is_split, shards_of, together, unwrapped

Family = Literal["batch", "instance", "frozen"]
"""Whose statistics a layer normalizes with: those of the batch, of each sample alone, or fixed ones."""

_FROZEN_BUFFERS = ("weight", "bias", "running_mean", "running_var")
_USUAL_EPS = 1e-5

FEW = 128
"""Channels of a layer that are looked at where only the middle one counts."""

ROOT = "(root)"
"""The name of a layer that is itself the whole model, whose dotted path is empty."""


@dataclass(frozen=True, kw_only=True)
class LayerTable:
    """Every normalization layer under watch, laid end to end on one flat channel axis.

    Layer ``i`` owns the channels ``offsets[i]:offsets[i + 1]`` of every ``[C]`` tensor.

    Attributes:
        names: Dotted path of each layer, in execution order once a forward has been seen,
            in order of definition before.
        channels: Number of channels of each layer.
        kinds: Class name of each layer.
        eps: The number added to the variance before the square root.
        momentum: Weight of the newest batch in the running average; None for a cumulative average.
        affine: Whether the layer has a gamma.
        tracking: Whether the layer has running statistics.
        family: Whether the layer normalizes over the batch, each sample alone, or with fixed statistics, as
            torchvision's ``FrozenBatchNorm2d`` does, whatever its mode.
        synced: Positions of the layers that normalize over all processes: SyncBatchNorm and its subclasses.
        split: Positions of the layers whose gamma and beta are split over the processes, and not known to this one.
    """

    names: tuple[str, ...]
    channels: tuple[int, ...]
    kinds: tuple[str, ...]
    eps: tuple[float, ...]
    momentum: tuple[float | None, ...]
    affine: tuple[bool, ...]
    tracking: tuple[bool, ...]
    family: tuple[Family, ...]
    synced: tuple[int, ...] = ()
    split: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Start of each layer on the channel axis, and the total at the end: ``L + 1`` numbers."""
        ends = [0]
        for count in self.channels:
            ends.append(ends[-1] + count)
        return tuple(ends)

    @property
    def total(self) -> int:
        """Number of channels of all layers together."""
        return self.offsets[-1]

    @cached_property
    def segments(self) -> Segments:
        """Reductions over the channels of each layer."""
        return Segments(self.channels)

    @cached_property
    def some(self) -> tuple[Tensor, Segments] | None:
        """Channels that stand for their layers where only the middle one counts, and the reductions over them.

        They are :data:`FEW` of each layer at most, evenly spread: ``[S]`` int64 on the CPU; None if no layer has more.
        The median of 128 lies, twice in three times, within 4.4 % of the ranks of the median of all.
        """
        if max(self.channels, default=0) <= FEW:
            return None
        spans = [
            range(start, start + c, -(-c // FEW) or 1) for start, c in zip(self.offsets, self.channels, strict=False)
        ]
        at = [torch.arange(s.start, s.stop, s.step, device="cpu") for s in spans]
        return torch.cat(at), Segments([len(each) for each in at])

    @cached_property
    def owner(self) -> Tensor:
        """Index of the layer that owns each channel: ``[C]`` int64 on the CPU."""
        counts = torch.tensor(self.channels, dtype=torch.int64, device="cpu")
        return torch.repeat_interleave(torch.arange(len(self), device="cpu"), counts)

    @cached_property
    def eps_by_channel(self) -> Tensor:
        """The eps of each channel's layer: ``[C]`` float32 on the CPU."""
        return torch.tensor(self.eps, dtype=torch.float32, device="cpu")[self.owner]

    @cached_property
    def tracked(self) -> Tensor:
        """Which layers have running statistics: ``[L]`` bool on the CPU."""
        return torch.tensor(self.tracking, dtype=torch.bool, device="cpu")

    @cached_property
    def _families(self) -> dict[Family, Tensor]:
        kinds: tuple[Family, ...] = ("batch", "instance", "frozen")
        return {k: torch.tensor([f == k for f in self.family], dtype=torch.bool, device="cpu") for k in kinds}

    def of_family(self, family: Family) -> Tensor:
        """Return which layers are of a family: ``[L]`` bool on the CPU."""
        return self._families[family]

    def index(self, name: str) -> int:
        """Return the position of a layer.

        Raises:
            KeyError: There is no layer of that name; the message names the nearest one.
        """
        try:
            return self.names.index(name)
        except ValueError:
            raise KeyError(f"no BatchNorm layer is named {name!r}{nearest(name, self.names)}") from None

    def span(self, layer: int) -> slice:
        """Return the channels of layer ``layer`` as a slice of the channel axis."""
        return slice(self.offsets[layer], self.offsets[layer + 1])

    def locate(self, mask: Tensor, layer: int) -> tuple[int, ...]:
        """Return which channels of ``layer``, counted within it, are set in a ``[C]`` mask."""
        return tuple(mask[self.span(layer)].nonzero().flatten().tolist())


@dataclass(frozen=True)
class Discovery:
    """What a search of the model found.

    Attributes:
        table: The table.
        modules: The modules behind it.
        lazy: How many more there are that are lazy yet.
        shards: What :func:`bnmonitor.sharding.shards_of` says of each layer of ``table.split``, by ``id(module)``.
        together: Why a forward of the models takes all processes, as :func:`bnmonitor.sharding.together` says.
    """

    table: LayerTable
    modules: tuple[nn.Module, ...]
    lazy: int
    shards: Mapping[int, tuple[Tensor, ...]]
    together: str


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


def norms(models: Iterable[nn.Module]) -> list[nn.Module]:
    """Return every normalization layer of the models in some order, quickly: every check asks."""
    found: list[nn.Module] = []
    stack: list[nn.Module | None] = list(models)
    seen: set[int] = set()
    while stack:
        module = stack.pop()
        if module is None or id(module) in seen:
            continue
        seen.add(id(module))
        if module._buffers and family_of(module) is not None:
            found.append(module)
        stack.extend(module._modules.values())
    return found


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


def discover(
    models: Mapping[str, nn.Module],
    *,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    order: Mapping[int, int] | None = None,
    names: Sequence[str] = (),
) -> Discovery:
    """Find every layer of the models that keeps, or computes, statistics of its batch.

    BatchNorm1d/2d/3d, SyncBatchNorm and all their subclasses count, InstanceNorm with running statistics, and modules
    with the four buffers of a frozen BatchNorm; a lazy layer counts once its first forward has made it real. A module
    that is reached under two names is listed once.

    Args:
        models: The models by prefix; the prefix ``""`` adds nothing to the names.
        include: Glob patterns; a layer is watched if one of them matches its name.
        exclude: Glob patterns; a layer that one of them matches is not watched.
        order: Position in the forward by ``id(module)``, where it is known.
        names: Names of the layers found before, whose order is kept where that in the forward is not known; should
            what a pattern matched then be gone, that is no mistake.

    Raises:
        ValueError: A pattern matches no layer at all, although the model has some; or two layers get the same name.
    """
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()
    lazy: set[str] = set()
    for prefix, model in models.items():
        for path, module in model.named_modules():
            if id(module) in seen or family_of(module) is None:
                continue
            seen.add(id(module))
            name = ".".join(part for part in (prefix, unwrapped(path)) if part) or ROOT
            if name in found:
                raise ValueError(f"two BatchNorm layers would both be named {name!r}: give the models other names")
            found[name] = module
            if any(is_lazy(t) for t in (*module.parameters(False), *module.buffers(False))):
                lazy.add(name)
    for argument, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns:
            if found and not names and not any(fnmatchcase(name, pattern) for name in found):
                raise ValueError(
                    f"{argument}={pattern!r} matches no BatchNorm layer{nearest(pattern, found)}; "
                    f"the model has {len(found)}, the first is {next(iter(found))!r}"
                )
    chosen = {
        name: module
        for name, module in found.items()
        if any(fnmatchcase(name, p) for p in include) and not any(fnmatchcase(name, p) for p in exclude)
    }
    real = [(name, module) for name, module in chosen.items() if name not in lazy]
    if order:
        real.sort(key=lambda item: order.get(id(item[1]), len(order)))
    elif names:
        place = {name: i for i, name in enumerate(names)}
        real.sort(key=lambda item: place.get(item[0], len(place)))
    modules = tuple(module for _, module in real)
    flat = flat_parameters(models.values())
    shards = {id(m): parts for m in modules if (parts := shards_of(m, flat)) is not None}
    return Discovery(
        table=LayerTable(
            names=tuple(name for name, _ in real),
            channels=tuple(channels_of(m) for m in modules),
            kinds=tuple(type(m).__name__ for m in modules),
            eps=tuple(float(getattr(m, "eps", _USUAL_EPS)) for m in modules),
            momentum=tuple(_momentum(m) for m in modules),
            affine=tuple(map(_has_gamma, modules)),
            tracking=tuple(m.running_mean is not None for m in modules),
            family=tuple(family_of(m) or "batch" for m in modules),
            synced=tuple(i for i, m in enumerate(modules) if isinstance(m, nn.SyncBatchNorm)),
            split=tuple(i for i, m in enumerate(modules) if id(m) in shards),
        ),
        modules=modules,
        lazy=len(lazy & chosen.keys()),
        shards=shards,
        together=together(models.values()),
    )


def _has_gamma(module: nn.Module) -> bool:
    """Whether a layer has a gamma: a parameter, a frozen one's buffer, what pruning left, or what is computed.

    The last is not asked for: to compute it may change the training.
    """
    kept = (registry.get("weight") for registry in (module._parameters, module._buffers, vars(module)))
    computed = module._modules.get("parametrizations")
    return any(t is not None for t in kept) or (computed is not None and "weight" in computed._modules)


def _momentum(module: nn.Module) -> float | None:
    momentum = getattr(module, "momentum", None)
    if momentum is None:
        # InstanceNorm has no cumulative average: it takes None as 0.
        return 0.0 if isinstance(module, _InstanceNorm) else None
    return float(momentum)
