"""Running statistics that never saw data: the initial 0 and 1, or what a few probe forwards have left of them."""

from __future__ import annotations

import torch
from torch import Tensor

from bnmonitor.layers import LayerTable

MOSTLY = 0.3
"""Weight of the initial 0 and 1 from which running statistics count as initial: eleven forwards at momentum .1."""

_SPREAD = 4.0
"""Most variance of a probe's batch, in the median channel."""

_ROUNDING = 1e-3


def initial_statistics(layers: LayerTable, mean: Tensor, var: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
    """Find the layers whose running statistics are the initial 0 and 1, or mostly so.

    A counter of updates says how much of 0 and 1 is left, and the values have to agree: a batch variance is never
    negative, so that no running variance can lie below what is left of the initial 1. Statistics of data do, in some
    channel of nearly every layer, so that a counter that was not saved with them does not mislead. Probes of zeros show
    without a counter: all variances of the layer are the same power of ``1 - momentum``.

    Args:
        layers: The table of the layers.
        mean: Running means, ``[C]``.
        var: Running variances, ``[C]``.
        left: Weight of 0 and 1 by the counter of updates and the momentum, ``[L]``.

    Returns:
        ``[L]`` bool each: statistics of exactly 0 and 1, and statistics that forwards have mixed a little into these.
    """
    tracked, segments = layers.tracked, layers.segments
    exact = ~segments.any((mean != 0) | (var != 1)) & tracked
    counted = (left > MOSTLY) & (left < 1)
    by_channel = left[layers.owner].to(var.dtype)
    below = segments.any(~(var >= by_channel * (1 - _ROUNDING)))
    batch = (segments.median(var) - left) / (1 - left).clamp(min=1e-12)
    mixed = counted & ~below & (batch <= _SPREAD)
    # A counter is wrong of all layers or of none.
    mixed &= 2 * mixed.sum() >= counted.sum()
    return exact, (mixed | _zeros(layers, mean, var)) & ~exact & tracked


def _zeros(layers: LayerTable, mean: Tensor, var: Tensor) -> Tensor:
    """Layers that saw nothing but constants: ``[L]`` bool."""
    several = torch.tensor([c > 1 for c in layers.channels], dtype=torch.bool, device="cpu")
    first = var[torch.tensor(layers.offsets[:-1], dtype=torch.int64, device="cpu").clamp(max=max(len(var) - 1, 0))]
    alike = several & ~layers.segments.any((var != first[layers.owner]) | ~mean.isfinite())
    if not alike.any():
        return alike
    momentum = torch.tensor([0.0 if m is None else m for m in layers.momentum], dtype=torch.float64, device="cpu")
    forwards = first.double().log() / torch.log1p(-momentum.clamp(0, 1 - 1e-9))
    whole = (forwards - forwards.round()).abs() < _ROUNDING * forwards.clamp(min=1)
    return alike & whole & (forwards.round() >= 1) & (first > MOSTLY)
