"""Finds the layers of auxiliary networks, such as a teacher, that no optimizer trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from bnmonitor.layers import unwrapped


def auxiliary(models: Mapping[str, nn.Module], modules: Sequence[nn.Module], trained: set[int]) -> tuple[str, ...]:
    """Return for each layer the name of the largest part around it in which no parameter is trained; empty for none.

    Such a part has parameters that are not those of normalization layers, and it is not the whole.

    Args:
        models: The models by prefix.
        modules: The layers.
        trained: ``id`` of every parameter in an optimizer.
    """
    layers = {id(m) for m in modules}
    found: dict[int, str] = {}
    alone = len(models) == 1

    def walk(module: nn.Module, path: str, root: bool) -> None:
        inside = {id(m): m for m in module.modules()}
        if not root and not any(id(p) in trained for p in module.parameters()):
            if any(m._parameters and i not in layers for i, m in inside.items()):
                found.update(dict.fromkeys(inside, path))
            return
        for name, child in module.named_children():
            walk(child, f"{path}.{name}" if path else name, False)

    for prefix, model in models.items():
        walk(model, prefix, alone)
    return tuple(unwrapped(found.get(id(m), "")) for m in modules)
