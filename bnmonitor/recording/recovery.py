"""From two readings of the buffers to the batch between them, and the reason where that is not possible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bnmonitor.layers import LayerTable
from bnmonitor.measures import recover, update_weight
from bnmonitor.recording.momentum import in_force
from bnmonitor.window import Recovery

TOLERANCE = 0.05
"""Rounding beyond this part of a deviation, or of the variance, makes a recovered value useless."""

MATERIAL = 1e-3
"""Rounding below this part of the running variance says at least that a batch variance is small."""


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
    out: Mapping[str, Tensor],
    momentum_before: Tensor | None = None,
) -> None:
    """Recover the batch statistics of several steps.

    All steps of all channels are looked at, but for what is rare (a write by another hand, lost precision, values that
    are not finite) by their extremes first, which rule it out for nearly every block of steps.

    Args:
        layers: The table of the layers.
        before: Running mean and variance before each step, ``[T, C]`` each.
        after: The same after it.
        counts: ``[T, L]`` int64 each, number of updates before and after.
        counted: ``[T, L]`` bool, whether the layer counts its updates; else a change counts as one.
        foreign: ``[T, L]`` bool, where something else is known to have written to the running statistics.
        momentum: ``[T, L]`` float64, NaN for a cumulative average.
        half_ulp: ``[L]`` float64, relative rounding of the layer's buffers.
        out: Where the result is written: ``batch_mean``, ``batch_var``, ``shift`` and ``ratio`` (``[T, C]``),
            ``updates``, ``recovery``, ``momentum`` and ``variance`` (``[T, L]``), as described at
            :class:`bnmonitor.window.Window`.
        momentum_before: ``momentum`` as it was before each step; None: the same.
    """
    updates = counts[1] - counts[0]
    unsure = torch.zeros_like(foreign)
    if momentum_before is not None and not torch.equal(momentum_before, momentum):
        momenta = (momentum_before, momentum)
        momentum, unsure = in_force(
            layers, before=before, after=after, counts=counts, momenta=momenta, half_ulp=half_ulp
        )
    usual = (updates == 1) & counted & ~foreign & ~unsure & (momentum > 0)
    if bool(usual.all()) and bool(layers.tracked.all()):
        channels = _Channels(layers, before, after, momentum, out)
        if channels.finite and not channels.negative and channels.coarse(half_ulp / momentum) is None:
            out["updates"].copy_(updates)
            out["recovery"].fill_(Recovery.EXACT)
            out["momentum"].copy_(momentum)
            out["variance"].copy_(layers.segments.mean(out["batch_var"]))
            return
    _recover_unusual(layers, before, after, counts, counted, foreign, unsure, momentum, half_ulp, out)


def _recover_unusual(
    layers: LayerTable,
    before: tuple[Tensor, Tensor],
    after: tuple[Tensor, Tensor],
    counts: tuple[Tensor, Tensor],
    counted: Tensor,
    foreign: Tensor,
    unsure: Tensor,
    momentum: Tensor,
    half_ulp: Tensor,
    out: Mapping[str, Tensor],
) -> None:
    """The same where a layer was not updated exactly once in each step, or something is wrong with a value."""
    (old_mean, old_var), (new_mean, new_var) = before, after
    segments, owner = layers.segments, layers.owner
    updates = counts[1] - counts[0]
    changed = torch.zeros_like(updates, dtype=torch.bool)
    if (updates == 0).any() or (momentum == 0).any() or not counted.all():
        changed = segments.any(_differ(old_mean, new_mean) | _differ(old_var, new_var))
        updates = torch.where(counted, updates, changed.long())
    weight = update_weight(momentum, torch.where(counted, counts[0], 0), torch.where(counted, counts[1], updates))
    slip = half_ulp / weight
    by_channel = _Channels(layers, before, after, weight, out)
    mean, var = out["batch_mean"], out["batch_var"]

    state = torch.full_like(updates, Recovery.EXACT)
    state[updates > 1] = Recovery.AVERAGED
    impossible = torch.zeros_like(changed)
    if by_channel.negative:
        rounded = (16 * slip[:, owner] * torch.maximum(old_var, new_var)).to(var.dtype) + 1e-3 * by_channel.eps
        impossible = segments.any(var < -rounded)
        var.clamp_(min=0)
        torch.mul((var + by_channel.eps).sqrt_(), (old_var + by_channel.eps).rsqrt_(), out=out["ratio"])
    coarse = by_channel.coarse(slip)
    if coarse is not None:
        state[~segments.any(~(coarse[0] & coarse[1])) & (updates > 0)] = Recovery.PRECISION
    if not by_channel.finite:
        state[~segments.any(mean.isfinite() & var.isfinite())] = Recovery.NON_FINITE
    state[(momentum == 0) & (updates > 0)] = Recovery.NO_MOMENTUM
    state[unsure | ((momentum == 0) & (updates > 0) & changed)] = Recovery.MOMENTUM_CHANGED
    state[updates == 0] = Recovery.NO_UPDATE
    state[foreign | (updates < 0) | impossible | ((updates == 0) & changed)] = Recovery.FOREIGN
    state[:, ~layers.tracked] = Recovery.NO_BUFFERS

    lost = state > Recovery.OBSERVED
    if coarse is not None or lost.any():
        gone = lost[:, owner]
        hidden = (gone, gone) if coarse is None else (gone | coarse[0], gone | coarse[1])
        for names, holes in zip((("batch_mean", "shift"), ("batch_var", "ratio")), hidden, strict=True):
            for name in names:
                out[name].masked_fill_(holes, torch.nan)
    out["updates"].copy_(updates)
    out["recovery"].copy_(state)
    out["momentum"].copy_(momentum)
    out["variance"].copy_(segments.mean(var))


class _Channels:
    """The arithmetic per channel, in place, and what the extremes of the results say of all of them.

    Args:
        layers: The table of the layers.
        before: Running mean and variance before each step.
        after: The same after it.
        weight: ``[T, L]``, see :func:`~bnmonitor.measures.update_weight`.
        out: Where ``batch_mean``, ``batch_var``, ``shift`` and ``ratio`` are written.
    """

    def __init__(
        self,
        layers: LayerTable,
        before: tuple[Tensor, Tensor],
        after: tuple[Tensor, Tensor],
        weight: Tensor,
        out: Mapping[str, Tensor],
    ) -> None:
        self._owner, self._before, self._after, self._var = layers.owner, before, after, out["batch_var"]
        (old_mean, old_var), (new_mean, new_var) = before, after
        mean, var, shift, ratio = (out[name] for name in ("batch_mean", "batch_var", "shift", "ratio"))
        self.eps = layers.eps_by_channel.to(mean.dtype)
        alike = bool((weight == weight[0, 0]).all())
        share = (weight[:1, :1] if alike else weight[:, layers.owner]).to(mean.dtype)
        recover(old_mean, new_mean, share, moved=shift, out=mean)
        recover(old_var, new_var, share, moved=ratio, out=var)
        scale = torch.add(old_var, self.eps).rsqrt_()
        shift.mul_(scale)
        torch.add(var, self.eps, out=ratio).sqrt_().mul_(scale)
        # NaN and infinity pass through the extremes, which cost a fraction of a comparison.
        extremes = torch.stack([mean.amin(0), mean.amax(0), var.amin(0), var.amax(0)])
        self.finite = bool(extremes.sum().isfinite())
        self.negative = bool((extremes[2] < 0).any()) if self.finite else bool((var < 0).any())

    def coarse(self, slip: Tensor) -> tuple[Tensor, Tensor] | None:
        """Channels whose recovered mean, and whose variance, are mostly rounding: ``[T, C]`` each; None if none is.

        A rounding is a part of the running statistic. It must be small beside the running deviation and variance, and
        beside those of the batch itself, which may be far below: a batch variance of 0.1 recovered from a running
        variance of 1 in bfloat16 is wrong by up to 0.04 at momentum 0.1. Where it is less than :data:`MATERIAL` of
        the running variance, as always in float32, the batch's own does not matter: that it is next to nothing is
        known well enough then. What passes is wrong by less than ``TOLERANCE / (1 - TOLERANCE)``, 5.3 %, of itself; in
        bfloat16, where PyTorch rounds twice, by less than 11 %.

        Args:
            slip: ``[T, L]``, relative rounding of the running statistics, as the division by the weight enlarges it.
        """
        worst = float(slip[slip.isfinite()].max()) if slip.isfinite().any() else 0.0
        (_, old_var), (mean, var) = self._before, self._after
        if worst <= MATERIAL:
            far = torch.maximum(mean.amax(0), -mean.amin(0))
            if bool((far * worst <= TOLERANCE * (var.amin(0) + self.eps).sqrt()).all()):
                return None
        part = slip[:, self._owner]
        usual = torch.maximum(old_var, var)
        rounding, own = part * usual, self._var
        useless, material = part > TOLERANCE, part > MATERIAL
        least = torch.where(material, torch.minimum(usual, (own - rounding).clamp(min=0)), usual)
        mean_lost = useless | (part * mean.abs() > TOLERANCE * (least + self.eps).sqrt())
        var_lost = useless | (material & (rounding > TOLERANCE * (own + self.eps)))
        known = part.isfinite()
        return (mean_lost & known, var_lost & known) if (mean_lost | var_lost).any() else None


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
