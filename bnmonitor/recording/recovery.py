"""From two readings of the buffers to the batch between them, and the reason where that is not possible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bnmonitor.layers import LayerTable
from bnmonitor.measures import Array, recover, update_weight
from bnmonitor.recording.extremes import Extremes, roundings
from bnmonitor.recording.momentum import in_force
from bnmonitor.recording.rounding import EXACT, MATERIAL, NOTHING, TOLERANCE
from bnmonitor.window import Recovery


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


class Recovered(NamedTuple):
    """What the recovery of some steps says besides the statistics.

    Attributes:
        impossible: ``[T, L]`` bool, where no batch can have made the running statistics, although nobody is known to
            have written to them; None if that is nowhere.
        extremes: ``[4, C]``, lowest and highest batch mean, lowest and highest batch variance; None where some of them
            are not known.
    """

    impossible: Tensor | None
    extremes: Array | None


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
    chained: bool = False,
) -> Recovered:
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
        half_ulp: ``[T, L]`` float64, relative rounding of the layer's buffers.
        out: Where the result is written: ``batch_mean``, ``batch_var``, ``shift`` and ``ratio`` (``[T, C]``),
            ``updates``, ``recovery``, ``momentum`` and ``variance`` (``[T, L]``), as described at
            :class:`bnmonitor.window.Window`.
        momentum_before: ``momentum`` as it was before each step; None: the same.
        chained: Whether each step begins with what the one before it has left.
    """
    updates = counts[1] - counts[0]
    unsure = torch.zeros_like(foreign)
    if momentum_before is not None and not torch.equal(momentum_before, momentum):
        momenta = (momentum_before, momentum)
        momentum, unsure = in_force(
            layers, before=before, after=after, counts=counts, momenta=momenta, half_ulp=half_ulp
        )
    odd = foreign.numpy() | unsure.numpy()
    usual = (updates.numpy() == 1) & counted.numpy() & ~odd & (momentum.numpy() > 0)
    if usual.all() and bool(layers.tracked.all()):
        channels = _Channels(layers, before, after, momentum, out, chained=chained)
        if channels.finite and not channels.negative and channels.coarse(half_ulp, momentum) is None:
            out["updates"].copy_(updates)
            out["recovery"].fill_(Recovery.EXACT)
            out["momentum"].copy_(momentum)
            out["variance"].copy_(layers.segments.mean(out["batch_var"]))
            return Recovered(None, channels.extremes.values)
    impossible = _recover_unusual(layers, before, after, counts, counted, foreign, unsure, momentum, half_ulp, out)
    return Recovered(impossible, None)


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
) -> Tensor | None:
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
    coarse = by_channel.coarse(half_ulp, weight)
    hidden = coarse.hidden if coarse is not None else {}
    partly = torch.zeros_like(changed)
    if coarse is not None:
        useless, unknown = (~segments.any(~mask) & (updates > 0) for mask in (coarse.useless, coarse.unknown))
        partly = unknown & ~useless
        state[unknown] = Recovery.PRECISION
    if not by_channel.finite:
        state[~segments.any(mean.isfinite() & var.isfinite())] = Recovery.NON_FINITE
    state[(momentum == 0) & (updates > 0)] = Recovery.NO_MOMENTUM
    state[unsure | ((momentum == 0) & (updates > 0) & changed)] = Recovery.MOMENTUM_CHANGED
    state[updates == 0] = Recovery.NO_UPDATE
    state[foreign | (updates < 0) | impossible | ((updates == 0) & changed)] = Recovery.FOREIGN
    state[:, ~layers.tracked] = Recovery.NO_BUFFERS

    lost = (state > Recovery.OBSERVED) & ~(partly & (state == Recovery.PRECISION))
    out["variance"].copy_(segments.mean(var.masked_fill(hidden["ratio"], torch.nan) if hidden else var))
    if coarse is not None:
        out["variance"].masked_fill_(segments.sum(coarse.error) > EXACT * segments.sum(var), torch.nan)
    out["variance"].masked_fill_(lost, torch.nan)
    if hidden or lost.any():
        gone = lost[:, owner]
        for name in ("batch_mean", "shift", "batch_var", "ratio"):
            out[name].masked_fill_(gone | hidden[name] if hidden else gone, torch.nan)
    out["updates"].copy_(updates)
    out["recovery"].copy_(state)
    out["momentum"].copy_(momentum)
    impossible &= ~foreign & (updates > 0)
    return impossible if impossible.any() else None


@dataclass(frozen=True)
class _Coarse:
    """What rounding hides, ``[T, C]`` bool but for the error.

    Attributes:
        mean: Batch means that are not known.
        var: Batch variances that are not known.
        shift: Distances of the batch mean that are mostly rounding.
        ratio: Ratios of the deviations that are mostly rounding.
        error: Largest error of each batch variance.
    """

    mean: Tensor
    var: Tensor
    shift: Tensor
    ratio: Tensor
    error: Tensor

    @property
    def hidden(self) -> dict[str, Tensor]:
        """What is withheld, by the name of the statistic."""
        return {"batch_mean": self.mean, "shift": self.shift, "batch_var": self.var, "ratio": self.ratio}

    @property
    def useless(self) -> Tensor:
        """Channels of which rounding leaves nothing."""
        return self.shift & self.ratio

    @property
    def unknown(self) -> Tensor:
        """Channels without an exact variance."""
        return self.var


class _Channels:
    """The arithmetic per channel, in place, and what the extremes of the results say of all of them.

    Args:
        layers: The table of the layers.
        before: Running mean and variance before each step.
        after: The same after it.
        weight: ``[T, L]``, see :func:`~bnmonitor.measures.update_weight`.
        out: Where ``batch_mean``, ``batch_var``, ``shift`` and ``ratio`` are written.
        chained: Whether each step begins with what the one before it has left.
    """

    def __init__(
        self,
        layers: LayerTable,
        before: tuple[Tensor, Tensor],
        after: tuple[Tensor, Tensor],
        weight: Tensor,
        out: Mapping[str, Tensor],
        *,
        chained: bool = False,
    ) -> None:
        self._chained = chained
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
        # The extremes cost a fraction of a comparison.
        found = torch.stack([mean.amin(0), mean.amax(0), var.amin(0), var.amax(0)])
        self.extremes = Extremes(layers, found, (old_mean[0], old_var[0]))
        self.finite = self.extremes.finite
        self.negative = self.extremes.negative if self.finite else bool((var < 0).any())

    def coarse(self, half_ulp: Tensor, weight: Tensor) -> _Coarse | None:
        """Channels whose recovered mean or variance is not exact because of rounding; None if all are.

        A rounding is a part of the running statistic, and the division by the weight enlarges it. What is exact is
        wrong by less than :data:`EXACT`: the variance of itself, the mean of the deviation that the layer divides by.

        Where the running statistics are in half precision, a rounding must be small beside the running deviation and
        variance, and beside those of the batch itself, which may be far below: a batch variance of 0.1 recovered from
        a running variance of 1 in bfloat16 is wrong by up to 0.04 at momentum 0.1. What passes is wrong by less than
        ``TOLERANCE / (1 - TOLERANCE)``, 5.3 %, of itself; in bfloat16, where PyTorch rounds twice, by less than 11 %.

        Where a rounding is less than :data:`MATERIAL` of the running variance, as always in float32, the distance and
        the ratio are known even if the batch variance is not: that it is next to nothing is known well enough.

        Args:
            half_ulp: ``[T, L]``, relative rounding of the running statistics.
            weight: ``[T, L]``, see :func:`~bnmonitor.measures.update_weight`.
        """
        if self._chained and self.extremes.show_exact(half_ulp, weight):
            return None
        part, single, known = map(torch.from_numpy, roundings(half_ulp, weight))
        (old_mean, old_var), (mean, var) = self._before, self._after
        part, single, known = part[:, self._owner], single[:, self._owner], known[:, self._owner]
        own, usual = self._var, torch.maximum(old_var, var)
        rounding = part * usual
        useless, material = part > TOLERANCE, part > MATERIAL
        least = torch.where(material, torch.minimum(usual, (own - rounding).clamp(min=0)), usual)
        shift_lost = useless | (part * mean.abs() > TOLERANCE * (least + self.eps).sqrt())
        ratio_lost = useless | (material & (rounding > TOLERANCE * (own + self.eps)))
        error = single * usual
        mean_lost = single * torch.maximum(old_mean.abs(), mean.abs()) > EXACT * (own.clamp(min=0) + self.eps).sqrt()
        var_lost = (error > EXACT * own) & (error > NOTHING * self.eps)
        mean_lost, var_lost = shift_lost | mean_lost, ratio_lost | var_lost
        if not (mean_lost | var_lost).any():
            return None
        return _Coarse(mean_lost & known, var_lost & known, shift_lost & known, ratio_lost & known, error)


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
        steps: What each step showed, on the CPU; None where nothing could be seen.
    """
    for layer in (i for i, tracking in enumerate(layers.tracking) if not tracking):
        shown = [(t, step[keys[layer]]) for t, step in enumerate(steps) if step is not None and keys[layer] in step]
        # Without buffers and parameters PyTorch lets any number of channels through, whatever num_features says.
        shown = [(t, seen) for t, seen in shown if len(seen.mean) == layers.channels[layer]]
        if not shown:
            continue
        at, span = torch.tensor([t for t, _ in shown], device="cpu"), layers.span(layer)
        mean, var = torch.stack([torch.stack([getattr(s, n) for _, s in shown]) for n in ("mean", "var")])
        dtype = rows["batch_mean"].dtype
        rows["batch_mean"][at, span], rows["batch_var"][at, span] = mean.to(dtype), var.to(dtype)
        rows["variance"][at, layer] = var.mean(1).to(rows["variance"].dtype)
        states = [Recovery.OBSERVED if seen.calls == 1 else Recovery.AVERAGED for _, seen in shown]
        finite = (mean.isfinite() & var.isfinite()).any(1)
        rows["recovery"][at, layer] = torch.tensor(states, device="cpu").where(finite, Recovery.NON_FINITE)


def _differ(a: Tensor, b: Tensor) -> Tensor:
    return (a != b) & ~(a.isnan() & b.isnan())
