"""Normalizations of a model that are not watched: modules that keep running statistics and are of no known kind."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from bnmonitor.layers.kinds import ANY_NORM, kind_of
from bnmonitor.layers.oddities import scripted
from bnmonitor.layers.sharding import full_name

_AVERAGES = ("running", "moving", "avg", "average", "averaged", "global", "ema")
"""Words for an average over batches, in names like ``moving_mean``."""

_SPREADS = ("var", "variance", "std")


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
            name = full_name(prefix, path)
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
    names = (*vars(module), *module._buffers, *module._parameters)
    if isinstance(module, ANY_NORM) or not any(name.endswith("_mean") for name in names):
        return False
    held = _untrained(module)
    mean = next((t for name, t in held.items() if _is_mean(name, held)), None)
    return mean is not None and kind_of(module) is None and not _normalizes_data(module, mean)


def _untrained(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module that no optimizer trains: buffers, frozen parameters, plain attributes."""
    frozen = {name: p for name, p in module._parameters.items() if p is not None and not p.requires_grad}
    held = {**vars(module), **module._buffers, **frozen}
    return {name: value for name, value in held.items() if isinstance(value, Tensor)}


def _is_mean(name: str, held: Mapping[str, Tensor]) -> bool:
    """Whether a tensor is the average of a mean, and another with its shape that of the variance."""
    average, _, what = name.lstrip("_").rpartition("_")
    if what != "mean" or average not in _AVERAGES:
        return False
    shape = held[name].shape
    vector = sum(size > 1 for size in shape) == (1 if held[name].numel() > 1 else 0) and len(shape) > 0
    others = (held.get(name.removesuffix("mean") + spread) for spread in _SPREADS)
    return vector and any(other is not None and other.shape == shape for other in others)


def _normalizes_data(module: nn.Module, mean: Tensor) -> bool:
    """Whether it standardizes its input by all that it has seen, as reinforcement learning does with observations.

    Such a module learns nothing, and counts samples or sums them in double precision.
    """
    if any(p is not None and p.requires_grad and p.numel() == mean.numel() for p in module._parameters.values()):
        return False
    return mean.dtype == torch.float64 or any("count" in name for name in (*vars(module), *module._buffers))
