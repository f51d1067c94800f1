"""Find the normalization layers of a model: modules in, a table of plain facts out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from bnmonitor._text import nearest
from bnmonitor.layers.kinds import channels_of, family_of
from bnmonitor.layers.sharding import flat_parameters, shards_of, together, unwrapped
from bnmonitor.layers.table import LayerTable

_USUAL_EPS = 1e-5

ROOT = "(root)"
"""The name of a layer that is itself the whole model, whose dotted path is empty."""


@dataclass(frozen=True)
class Discovery:
    """What a search of the model found.

    Attributes:
        table: The table.
        modules: The modules behind it.
        lazy: How many more there are that are lazy yet.
        shards: What :func:`~bnmonitor.layers.sharding.shards_of` says of each layer of ``table.split``, by
            ``id(module)``.
        together: Why a forward of the models takes all processes, as :func:`bnmonitor.layers.sharding.together` says.
    """

    table: LayerTable
    modules: tuple[nn.Module, ...]
    lazy: int
    shards: Mapping[int, tuple[Tensor, ...]]
    together: str


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
