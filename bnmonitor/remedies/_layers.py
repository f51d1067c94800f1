"""The choice of the layers that a remedy treats."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from bnmonitor.layers import Fact, discover


def bare(model: nn.Module) -> nn.Module:
    """Return the user's model without the wrappers of distribution and compilation.

    Raises:
        TypeError: It is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    while True:
        inner = model.module if isinstance(model, (DistributedDataParallel, DataParallel)) else None
        inner = inner or model._modules.get("_orig_mod")
        if inner is None:
            return model
        model = inner


def chosen(
    model: nn.Module, include: Sequence[str], exclude: Sequence[str], fact: Fact | None = "normalizes_batch"
) -> dict[str, nn.Module]:
    """Return the layers to treat by name, in order of definition.

    Args:
        model: The model.
        include: Glob patterns over layer names.
        exclude: Glob patterns over layer names.
        fact: Treat only layers of a kind with this fact; None: all.

    Raises:
        TypeError: The model is not a module, or the patterns are not a sequence of strings.
        ValueError: There is no such layer.
    """
    for name, patterns in (("include", include), ("exclude", exclude)):
        if isinstance(patterns, str):
            raise TypeError(f"{name}={patterns!r} must be a sequence of strings: pass ({patterns!r},)")
    found = discover({"": bare(model)}, include=include, exclude=exclude)
    table = found.table
    treated = [True] * len(table) if fact is None else table.which(fact).tolist()
    layers = {name: m for name, m, its in zip(table.names, found.modules, treated, strict=True) if its}
    if not layers:
        kind = "BatchNorm" if fact == "normalizes_batch" else "normalization"
        raise ValueError(f"the model has no {kind} layer to treat: include={tuple(include)}, exclude={tuple(exclude)}")
    return layers
