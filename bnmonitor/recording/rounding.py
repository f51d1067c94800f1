"""How coarse the running statistics are that a layer writes, and how coarse they may be."""

from __future__ import annotations

import torch
from torch import Tensor

from bnmonitor.layers import LayerTable

TOLERANCE = 0.05
"""Rounding beyond this part of a deviation, or of the variance, makes a recovered value useless."""

MATERIAL = 1e-3
"""Rounding below this part of the running variance says at least that a batch variance is small."""

EXACT = 0.01
"""Largest part of a batch variance, and of the deviation that a layer divides by, that rounding may change.

Where the running statistics are in half precision this is :data:`TOLERANCE`.
"""

NOTHING = 1e-5
"""A variance off by less than this part of eps is known, whatever it is: the layer adds eps to it."""

HALF = 1e-4
"""Relative rounding above which running statistics are in half precision."""

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
