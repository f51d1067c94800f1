"""From two readings of the buffers to the batch between them, and the reason where that is not possible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bnmonitor.layers import LayerTable
from bnmonitor.statistics import Recovery, recover, update_weight

TOLERANCE = 0.05
"""Rounding beyond this part of a deviation, or of the variance, makes a recovered value useless."""


@dataclass(frozen=True)
class Seen:
    """What the forward of a layer without running statistics showed in a step: ``[channels]`` each, on its device."""

    calls: int
    values: int
    mean: Tensor
    var: Tensor

    def averaged(self, other: Seen) -> Seen:
        """Return the average of both, each weighted by its number of values."""
        values = self.values + other.values
        share = other.values / values
        mean, var = (a + share * (b - a) for a, b in ((self.mean, other.mean), (self.var, other.var)))
        return Seen(self.calls + other.calls, values, mean, var)


def recover_rows(
    layers: LayerTable,
    *,
    before: tuple[Tensor, Tensor],
    after: tuple[Tensor, Tensor],
    counts: tuple[Tensor, Tensor],
    counted: Tensor,
    foreign: Tensor,
    momentum: Tensor,
    half_ulp: Tensor,
) -> dict[str, Tensor]:
    """Recover the batch statistics of several steps.

    The checks for what is rare (a write by another hand, lost precision, values that are not finite) begin with one
    that rules it out for all channels at once.

    Args:
        layers: The table of the layers.
        before: Running mean and variance before each step, ``[T, C]`` each.
        after: The same after it.
        counts: ``[T, L]`` int64 each, number of updates before and after.
        counted: ``[T, L]`` bool, whether the layer counts its updates; else a change counts as one.
        foreign: ``[T, L]`` bool, where something else is known to have written to the running statistics.
        momentum: ``[T, L]`` float64, NaN for a cumulative average.
        half_ulp: ``[L]`` float64, relative rounding of the layer's buffers.

    Returns:
        ``batch_mean``, ``batch_var``, ``shift`` and ``ratio`` (``[T, C]``), ``updates``, ``recovery``, ``momentum`` and
        ``variance`` (``[T, L]``), as described at :class:`bnmonitor.frame.Frame`.
    """
    (old_mean, old_var), (new_mean, new_var) = before, after
    segments, owner = layers.segments, layers.owner
    eps = layers.eps_by_channel.to(old_mean.dtype)
    updates = counts[1] - counts[0]
    changed = torch.zeros_like(updates, dtype=torch.bool)
    if (updates == 0).any() or not counted.all():
        changed = segments.any(_differ(old_mean, new_mean) | _differ(old_var, new_var))
        updates = torch.where(counted, updates, changed.long())
    weight = update_weight(momentum, torch.where(counted, counts[0], 0), torch.where(counted, counts[1], updates))
    alike = bool((weight == weight[0, 0]).all())
    share = (weight[:1, :1] if alike else weight[:, owner]).to(old_mean.dtype)
    mean, var = recover(old_mean, new_mean, share), recover(old_var, new_var, share)

    slip = half_ulp / weight
    state = torch.full_like(updates, Recovery.EXACT)
    state[updates > 1] = Recovery.AVERAGED
    impossible = torch.zeros_like(changed)
    if (var < 0).any():
        rounded = (16 * slip[:, owner] * torch.maximum(old_var, new_var)).to(var.dtype) + 1e-3 * eps
        impossible = segments.any(var < -rounded)
        var = var.clamp(min=0)
    coarse = _coarse(slip, new_mean, torch.maximum(old_var, new_var), eps, owner)
    if coarse is not None:
        state[~segments.any(~coarse) & (updates > 0)] = Recovery.PRECISION
    if not (mean.sum() + var.sum()).isfinite():
        state[~segments.any(mean.isfinite() & var.isfinite())] = Recovery.NON_FINITE
    state[(momentum == 0) & (updates > 0)] = Recovery.NO_MOMENTUM
    state[updates == 0] = Recovery.NO_UPDATE
    state[foreign | (updates < 0) | impossible | ((updates == 0) & changed)] = Recovery.FOREIGN
    state[:, ~torch.tensor(layers.tracking, dtype=torch.bool, device="cpu")] = Recovery.NO_BUFFERS

    lost = state > Recovery.OBSERVED
    known = torch.tensor(layers.channels, device="cpu").expand_as(updates)
    if coarse is not None or lost.any():
        hidden = lost[:, owner] if coarse is None else lost[:, owner] | coarse
        mean, var = mean.where(~hidden, torch.nan), var.where(~hidden, torch.nan)
        known = segments.count(~var.isnan())
    scale = (old_var + eps).rsqrt()
    return {
        "batch_mean": mean,
        "batch_var": var,
        "shift": (mean - old_mean) * scale,
        "ratio": (var + eps).sqrt() * scale,
        "updates": updates,
        "recovery": state,
        "momentum": momentum,
        "variance": (segments.sum(var) / known.clamp(min=1)).where(known > 0, torch.nan),
    }


def fill_seen(
    layers: LayerTable,
    rows: Mapping[str, Tensor],
    keys: Sequence[int],
    steps: Sequence[Mapping[int, Seen] | None],
) -> None:
    """Fill into the rows of :func:`recover_rows` what was seen of layers without running statistics.

    Args:
        layers: The table of the layers.
        rows: The rows, which are changed.
        keys: Of each layer, its key in ``steps``.
        steps: What each step showed; None where nothing could be seen.
    """
    for layer in (i for i, tracking in enumerate(layers.tracking) if not tracking):
        shown = [(t, step[keys[layer]]) for t, step in enumerate(steps) if step is not None and keys[layer] in step]
        # Without buffers and parameters PyTorch lets any number of channels through, whatever num_features says.
        shown = [(t, seen) for t, seen in shown if len(seen.mean) == layers.channels[layer]]
        if not shown:
            continue
        at, span = torch.tensor([t for t, _ in shown], device="cpu"), layers.span(layer)
        mean, var = torch.stack([torch.stack([getattr(s, n) for _, s in shown]) for n in ("mean", "var")]).cpu()
        dtype = rows["batch_mean"].dtype
        rows["batch_mean"][at, span], rows["batch_var"][at, span] = mean.to(dtype), var.to(dtype)
        rows["variance"][at, layer] = var.mean(1).to(rows["variance"].dtype)
        states = [Recovery.OBSERVED if seen.calls == 1 else Recovery.AVERAGED for _, seen in shown]
        finite = (mean.isfinite() & var.isfinite()).any(1)
        rows["recovery"][at, layer] = torch.tensor(states, device="cpu").where(finite, Recovery.NON_FINITE)


def _differ(a: Tensor, b: Tensor) -> Tensor:
    return (a != b) & ~(a.isnan() & b.isnan())


def _coarse(slip: Tensor, mean: Tensor, var: Tensor, eps: Tensor, owner: Tensor) -> Tensor | None:
    """Channels whose recovered statistics are mostly rounding: ``[T, C]``; None if there are none."""
    worst = float(slip[slip.isfinite()].max()) if slip.isfinite().any() else 0.0
    within = mean.square() <= (TOLERANCE / worst) ** 2 * (var + eps) if worst else mean == mean
    if worst <= TOLERANCE and bool(within.all()):
        return None
    by_channel = slip[:, owner]
    coarse = (by_channel * mean.abs() > TOLERANCE * (var + eps).sqrt()) | (by_channel > TOLERANCE)
    return coarse & by_channel.isfinite()
