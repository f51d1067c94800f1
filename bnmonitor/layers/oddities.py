"""Why a layer cannot be recorded: a module may hold anything, and the other layers are recorded all the same."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bnmonitor.layers.kinds import channels_of

_STATISTICS = ("running_mean", "running_var")


def scripted(module: nn.Module) -> bool:
    """Whether TorchScript has compiled a module: neither it nor its parts take hooks or give their buffers away."""
    return isinstance(module, torch.jit.ScriptModule)


def reason_against(module: nn.Module, *, split: bool) -> str:
    """Return why a layer cannot be recorded; empty if it can.

    Args:
        module: The layer.
        split: Whether its gamma and beta are split over the processes, so that they may have any shape.
    """
    try:
        return _reason(module, split)
    except Exception as error:
        return f"it cannot be read: {type(error).__name__}: {error}"


def _reason(module: nn.Module, split: bool) -> str:
    channels = channels_of(module)
    kept = [module._buffers.get(name) for name in _STATISTICS]
    if (kept[0] is None) != (kept[1] is None):
        return "it has one of running_mean and running_var only"
    named = dict(zip(_STATISTICS, kept, strict=True))
    if not split:
        own = (module._parameters, module._buffers)
        named |= {name: next((k[name] for k in own if k.get(name) is not None), None) for name in ("weight", "bias")}
    for name, tensor in named.items():
        odd = "" if tensor is None else _odd(tensor, channels)
        if odd:
            return f"its {name} {odd}"
    for name in ("eps", "momentum"):
        value = getattr(module, name, None)
        if value is not None and not math.isfinite(float(value)):
            return f"its {name} is {float(value)}"
    return ""


def _odd(tensor: Tensor, channels: int) -> str:
    if tensor.is_meta:
        return "is on the meta device, without values"
    if tensor.layout != torch.strided:
        return f"has the layout {str(tensor.layout).removeprefix('torch.')}"
    if not tensor.is_floating_point():
        return f"has the dtype {str(tensor.dtype).removeprefix('torch.')}"
    return "" if tuple(tensor.shape) == (channels,) else f"has the shape {list(tensor.shape)}"
