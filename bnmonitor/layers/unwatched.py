"""Normalizations of a model that are not watched: modules that keep running statistics and are of no known kind."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import nn

from bnmonitor.layers.kinds import ANY_NORM, kind_of
from bnmonitor.layers.oddities import scripted
from bnmonitor.layers.sharding import unwrapped

_STATISTICS = ("running_mean", "running_var")


def unwatched(models: Mapping[str, nn.Module], named: Collection[str]) -> dict[str, str]:
    """Return the modules that keep running statistics without being a layer that can be recorded, each with the reason.

    Args:
        models: The models by prefix of their layers' names.
        named: Names that are accounted for otherwise.
    """
    found: dict[str, str] = {}
    for prefix, model in models.items():
        exported = type(model).__name__.startswith("GraphModule") or hasattr(model, "graph_module")
        for path, module in model.named_modules():
            name = ".".join(part for part in (prefix, unwrapped(path)) if part)
            if name in named:
                continue
            if scripted(module):
                if "BatchNorm" in str(getattr(module, "original_name", "")):
                    found[name] = "compiled by TorchScript"
            elif _keeps_statistics(module):
                within = exported or type(module) is nn.Module
                found[name] = "part of an exported graph" if within else f"a class of its own, {type(module).__name__}"
    return found


def _keeps_statistics(module: nn.Module) -> bool:
    if isinstance(module, ANY_NORM):
        return False
    kept = [module._buffers.get(name) for name in _STATISTICS]
    shapes = {tuple(t.shape) for t in kept if t is not None}
    alike = all(t is not None for t in kept) and len(shapes) == 1 and len(next(iter(shapes))) == 1
    return alike and kind_of(module) is None
