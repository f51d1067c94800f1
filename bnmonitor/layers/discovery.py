"""Finds the normalization layers of a model: modules in, a table of plain facts out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bnmonitor._text import encodable, nearest
from bnmonitor.layers.kinds import channels_of, is_synced, kind_of
from bnmonitor.layers.oddities import reason_against, scripted
from bnmonitor.layers.sharding import collective_reason, flat_parameters, shards_of, unwrapped
from bnmonitor.layers.table import LayerTable
from bnmonitor.layers.unwatched import unwatched

_USUAL_EPS = 1e-5

ROOT = "(root)"
"""The name of a layer that is the whole model: its dotted path is empty."""


@dataclass(frozen=True)
class Discovery:
    """What a search of the model found.

    Attributes:
        table: The table of the layers.
        modules: The modules of the layers, in the same order.
        lazy: How many further layers are lazy and have no channels yet.
        shards: What :func:`~bnmonitor.layers.sharding.shards_of` returns for each layer of ``table.split``, by
            ``id(module)``.
        collective_reason: Why a forward of the models needs all processes; empty if one process can run it alone.
        left_out: Why further layers are not recorded although the patterns choose them, by name.
        unwatched: What further modules that keep running statistics are, by name: no layers that can be recorded.
        odd: The modules of those layers that may be recorded once they are mended.
    """

    table: LayerTable
    modules: tuple[nn.Module, ...]
    lazy: int
    shards: Mapping[int, tuple[Tensor, ...]]
    collective_reason: str
    left_out: Mapping[str, str] = field(default_factory=dict)
    odd: tuple[nn.Module, ...] = ()
    unwatched: Mapping[str, str] = field(default_factory=dict)


def norms(models: Iterable[nn.Module]) -> list[nn.Module]:
    """Return every normalization layer of the models in some order, quickly, as every check needs them."""
    found: list[nn.Module] = []
    stack: list[nn.Module | None] = list(models)
    seen: set[int] = set()
    plain: set[type[nn.Module]] = set()
    while stack:
        module = stack.pop()
        if module is None or id(module) in seen:
            continue
        seen.add(id(module))
        if module.__class__ not in plain:  # asked once for a class
            if scripted(module):
                continue
            plain.add(module.__class__)
        if module._buffers and kind_of(module) is not None:
            found.append(module)
        stack.extend(module._modules.values())
    return found


def discover(
    models: Mapping[str, nn.Module],
    *,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    order: Mapping[int, int] | None = None,
    names: Sequence[str] = (),
) -> Discovery:
    """Find every layer of the models that keeps, or computes, statistics of its batch.

    These are BatchNorm1d/2d/3d, SyncBatchNorm and all their subclasses, InstanceNorm with running statistics, and
    modules with the four buffers of a frozen BatchNorm. A lazy layer is listed once its first forward has created its
    tensors. A module that has two names is listed once. A layer that cannot be recorded is left out with a reason.

    Args:
        models: The models by prefix; the prefix ``""`` adds nothing to the names.
        include: Glob patterns; a layer is recorded if one of them matches its name.
        exclude: Glob patterns; a layer is not recorded if one of them matches its name.
        order: Position in the forward by ``id(module)``, where it is known.
        names: Names of the layers found before. Their order is kept where that in the forward is not known, and a
            pattern may match none of the layers now.

    Raises:
        ValueError: A pattern matches no layer at all, although the model has some; or two layers get the same name.
    """
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()
    lazy: set[str] = set()
    left_out: dict[str, str] = {}
    for prefix, model in models.items():
        mine: set[str] = set()
        for path, module in model.named_modules():
            name = ".".join(part for part in (prefix, encodable(unwrapped(path))) if part) or ROOT
            if scripted(module):
                if "BatchNorm" in str(getattr(module, "original_name", "")):
                    left_out[name] = "TorchScript has compiled it"
                continue
            if id(module) in seen or kind_of(module) is None:
                continue
            seen.add(id(module))
            if name in found and name not in mine:
                raise ValueError(f"two BatchNorm layers would both be named {name!r}: give the models other names")
            while name in mine:  # a child that is named "a.b" beside the child "b" of "a"
                name += "'"
            mine.add(name)
            found[name] = module
            if any(map(is_lazy, (*module._parameters.values(), *module._buffers.values()))):
                lazy.add(name)
    for argument, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns:
            if found and not names and not any(fnmatchcase(name, pattern) for name in found):
                raise ValueError(
                    f"{argument}={pattern!r} matches no BatchNorm layer{nearest(pattern, found)}; "
                    f"the model has {len(found)}, the first is {next(iter(found))!r}"
                )

    def wanted(name: str) -> bool:
        return any(fnmatchcase(name, p) for p in include) and not any(fnmatchcase(name, p) for p in exclude)

    chosen = {name: module for name, module in found.items() if wanted(name)}
    flat = flat_parameters(models.values())
    parts = {id(module): shards_of(module, flat) for name, module in chosen.items() if name not in lazy}
    odd = {
        name: reason
        for name, module in chosen.items()
        if name not in lazy and (reason := reason_against(module, split=parts[id(module)] is not None))
    }
    left_out = {name: reason for name, reason in {**left_out, **odd}.items() if wanted(name)}
    real = [(name, module) for name, module in chosen.items() if name not in lazy and name not in odd]
    if order:
        real.sort(key=lambda item: order.get(id(item[1]), len(order)))
    elif names:
        place = {name: i for i, name in enumerate(names)}
        real.sort(key=lambda item: place.get(item[0], len(place)))
    modules = tuple(module for _, module in real)
    kinds = [kind for m in modules if (kind := kind_of(m)) is not None]
    shards = {id(m): held for m in modules if (held := parts[id(m)]) is not None}
    return Discovery(
        table=LayerTable(
            names=tuple(name for name, _ in real),
            channels=tuple(channels_of(m) for m in modules),
            kinds=tuple(type(m).__name__ for m in modules),
            eps=tuple(float(getattr(m, "eps", _USUAL_EPS)) for m in modules),
            momentum=tuple(_momentum(m, k.averages_cumulatively) for m, k in zip(modules, kinds, strict=True)),
            affine=tuple(map(_has_gamma, modules)),
            tracking=tuple(m.running_mean is not None for m in modules),
            family=tuple(kind.name for kind in kinds),
            synced=tuple(i for i, m in enumerate(modules) if is_synced(m)),
            split=tuple(i for i, m in enumerate(modules) if id(m) in shards),
        ),
        modules=modules,
        lazy=len(lazy & chosen.keys()),
        shards=shards,
        collective_reason=collective_reason(models.values()),
        left_out=left_out,
        odd=tuple(chosen[name] for name in odd),
        unwatched={name: why for name, why in unwatched(models, found).items() if wanted(name)},
    )


def _has_gamma(module: nn.Module) -> bool:
    """Whether a layer has a gamma: a parameter, a buffer, what pruning left, or what a parametrization computes.

    The last is not computed: this might change the training.
    """
    kept = (registry.get("weight") for registry in (module._parameters, module._buffers, vars(module)))
    computed = module._modules.get("parametrizations")
    return any(t is not None for t in kept) or (computed is not None and "weight" in computed._modules)


def _momentum(module: nn.Module, cumulative: bool) -> float | None:
    momentum = getattr(module, "momentum", None)
    if momentum is None:
        return None if cumulative else 0.0
    return float(momentum)
