"""Which momentum was in force in a step at whose end it was another one than at the end of the step before."""

from __future__ import annotations

import torch
from torch import Tensor

from bnmonitor.layers import LayerTable
from bnmonitor.measures import recover, update_weight

_ALIKE = 0.01
"""Two batches that differ by less than this part of a deviation, or of the variance, count as one."""

_ROUNDINGS = 16
"""Roundings of half a unit in the last place, at most, in an average over the samples of a batch."""


def in_force(
    layers: LayerTable,
    *,
    before: tuple[Tensor, Tensor],
    after: tuple[Tensor, Tensor],
    counts: tuple[Tensor, Tensor],
    momenta: tuple[Tensor, Tensor],
    half_ulp: Tensor,
) -> tuple[Tensor, Tensor]:
    """Find out whether a momentum was changed before the forward of a step or after it.

    A batch has no negative variance, and a momentum of 0 changes nothing: where only one of the two momenta can have
    made the running statistics, it was in force. Where both can have and the batches differ, nobody can say.

    Args:
        layers: The table of the layers.
        before: Running mean and variance before each step, ``[T, C]`` each.
        after: The same after it.
        counts: ``[T, L]`` int64 each, number of updates before and after.
        momenta: ``[T, L]`` float64 each, momentum at the end of the step before and of this one; NaN for None.
        half_ulp: ``[T, L]`` float64, relative rounding of the layer's buffers.

    Returns:
        The momentum in force, ``[T, L]``, and where it is not known, ``[T, L]`` bool.
    """
    first, last = momenta
    disputed = (first != last) & ~(first.isnan() & last.isnan()) & (counts[1] != counts[0]) & layers.tracked
    chosen, unsure = last.clone(), torch.zeros_like(disputed)
    at = disputed.any(1).nonzero().flatten()
    if not len(at):
        return chosen, unsure
    old, new = [t[at] for t in before], [t[at] for t in after]
    segments, owner, eps = layers.segments, layers.owner, layers.eps_by_channel
    changed = segments.any((old[0] != new[0]) | (old[1] != new[1]))
    moved = changed & (layers.which("counts_updates") | _beyond_rounding(layers, old, new, half_ulp[at]))
    guesses, possible = [], []
    for momentum in (first[at], last[at]):
        weight = update_weight(momentum, counts[0][at], counts[1][at])
        mean, var = (recover(a, b, weight[:, owner]) for a, b in zip(old, new, strict=True))
        slip = (half_ulp[at] / weight)[:, owner]
        below = var < -(16 * slip * torch.maximum(old[1], new[1]) + 1e-3 * eps)
        possible.append(~segments.any(below) & ~((momentum == 0) & moved))
        guesses.append((mean, var))
    (mean, var), (other_mean, other_var) = guesses
    scale = torch.maximum(var, other_var).clamp(min=0) + eps
    alike = ((mean - other_mean).abs() <= _ALIKE * scale.sqrt()) & ((var - other_var).abs() <= _ALIKE * scale)
    here, once = disputed[at], (counts[1] - counts[0])[at] == 1
    earlier = here & once & possible[0] & ~possible[1]
    later = here & once & possible[1] & ~possible[0]
    chosen[at] = torch.where(earlier, first[at], last[at])
    unsure[at] = here & ~earlier & ~later & segments.any(~alike) & changed
    return chosen, unsure


def _beyond_rounding(layers: LayerTable, old: list[Tensor], new: list[Tensor], half_ulp: Tensor) -> Tensor:
    """Where a layer's statistics moved by more than their rounding, ``[T, L]`` bool.

    PyTorch's InstanceNorm writes the average over the samples of a batch, rounded, even with a momentum of 0.
    """
    slip = _ROUNDINGS * half_ulp[:, layers.owner]
    return layers.segments.any(
        torch.stack([(b - a).abs() > slip * a.abs() for a, b in zip(old, new, strict=True)]).any(0)
    )
