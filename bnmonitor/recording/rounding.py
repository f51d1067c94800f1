"""How coarse the running statistics are that a layer writes."""

from __future__ import annotations

import torch
from torch import Tensor

from bnmonitor.layers import LayerTable

_HALF = (torch.bfloat16, torch.float16)
"""The coarser one first: what is a bfloat16 is nearly always a float16, too."""


def as_written(half_ulp: Tensor, layers: LayerTable, statistics: tuple[Tensor, Tensor]) -> Tensor:
    """Return the relative rounding of each layer's running statistics, ``[T, L]``, by the values that were written.

    PyTorch's InstanceNorm updates float32 buffers in the precision of its input: under autocast every value that it
    writes is one of half precision.

    Args:
        half_ulp: The same by the dtype of the buffers.
        layers: The table of the layers.
        statistics: Running mean and variance after some steps, ``[T, C]`` each.
    """
    rounds = ~layers.which("counts_updates") & layers.tracked
    if not rounds.any():
        return half_ulp
    found = half_ulp.clone()
    for dtype in reversed(_HALF):
        exact = torch.stack([layers.segments.any(s != s.to(dtype).to(s.dtype)) for s in statistics])
        halves = rounds & ~exact.any(0).all(0)
        found = torch.where(halves, found.clamp(min=torch.finfo(dtype).eps / 2), found)
    return found
