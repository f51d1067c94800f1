"""Finds out whether a model is prepared for quantization."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

_LIBRARIES = ("torch.ao.", "torch.quantization", "torchao.", "pytorch_quantization.", "modelopt.", "brevitas.")


def quantizes(models: Iterable[nn.Module]) -> bool:
    """Return whether a module of some models has a ``qconfig``, or belongs to a library that quantizes."""
    return any(
        vars(module).get("qconfig") is not None or type(module).__module__.startswith(_LIBRARIES)
        for model in models
        for module in model.modules()
    )
