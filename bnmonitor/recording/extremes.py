"""The lowest and highest batch statistics of some steps, which show that every value of them is exact."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from bnmonitor.layers import LayerTable
from bnmonitor.measures import Array
from bnmonitor.recording.rounding import EXACT, HALF, MATERIAL, NOTHING, TOLERANCE

_ROUNDINGS = 3
"""Roundings of half a unit in the last place in one update: the old share, the new one or its weight, and the sum."""

_SURELY = 1 - 1e-5
"""Part of a limit within which the rounding of the comparison itself does not matter."""


class Extremes:
    """The extremes over some steps, each of which begins with what the one before it has left.

    All of it is in NumPy, which begins a small operation in a fraction of the time of PyTorch.

    Args:
        layers: The table of the layers.
        values: ``[4, C]``, lowest and highest batch mean, lowest and highest batch variance.
        start: Running mean and variance before the first step, ``[C]`` each.
    """

    @np.errstate(all="ignore")
    def __init__(self, layers: LayerTable, values: Tensor, start: tuple[Tensor, Tensor]) -> None:
        self.values: Array = values.numpy()
        self._layers, self._start = layers, (start[0].numpy(), start[1].numpy())
        self.finite = math.isfinite(self.values.sum())
        """Whether every value of every step is; NaN and infinity pass through the extremes."""

    @property
    def negative(self) -> bool:
        """Whether a variance is negative; NaN is not."""
        return bool((self.values[2] < 0).any())

    @np.errstate(all="ignore")
    def show_exact(self, half_ulp: Tensor, weight: Tensor) -> bool:
        """Whether the extremes show that nothing is hidden by rounding, as nearly always.

        Running statistics are averages: they lie between what they were at first and the extremes of the batches.

        Args:
            half_ulp: ``[T, L]``, relative rounding of the running statistics.
            weight: ``[T, L]``, see :func:`~bnmonitor.measures.update_weight`.
        """
        part, single, _ = roundings(half_ulp, weight)
        if part.max() > MATERIAL:
            return False
        if self._surely_exact(float(part.max()), float(single.max())):
            return True
        (old_mean, old_var), (low, high, least, most) = self._start, self.values
        eps, owner = self._layers.eps_by_channel.numpy().astype(least.dtype), self._layers.owner.numpy()
        far = np.maximum(np.maximum(high, -low), np.abs(old_mean))
        peak, floor = np.maximum(most, old_var), np.minimum(least, old_var).clip(min=0)
        deviation = np.sqrt(floor + eps)
        for rough in (True, False):
            some, one = (each.max() if rough else each.max(0)[owner] for each in (part, single))
            error = one * peak
            exact = (error <= EXACT * least) | (error <= NOTHING * eps)
            exact &= (some * far <= TOLERANCE * deviation) & (one * far <= EXACT * deviation)
            if exact.all():
                return True
        return False

    def _surely_exact(self, part: float, single: float) -> bool:
        """The same for all channels at once, as if one channel had the worst of each value."""
        least_eps = min(self._layers.eps, default=0.0)
        if not least_eps > 0:
            return False
        (low, _, least, _), (_, high, _, most) = self.values.min(1).tolist(), self.values.max(1).tolist()
        (first, last), (narrow, wide) = ((float(each.min()), float(each.max())) for each in self._start)
        far, floor, peak = max(high, -low, last, -first), min(least, narrow), max(most, wide)
        deviation = math.sqrt(max(floor, 0.0) + least_eps)
        known: bool = single * peak <= max(EXACT * least, NOTHING * least_eps) * _SURELY
        return known and part * far <= TOLERANCE * deviation * _SURELY and single * far <= EXACT * deviation * _SURELY


def roundings(half_ulp: Tensor, weight: Tensor) -> tuple[Array, Array, Array]:
    """Return the relative error of a batch statistic by one rounding, by those of one update, and where it is known.

    In half precision the second is 0: there one rounding counts.

    Args:
        half_ulp: ``[T, L]``, relative rounding of the running statistics.
        weight: ``[T, L]``, see :func:`~bnmonitor.measures.update_weight`.

    Returns:
        ``[T, L]`` each; the last bool, and both errors 0 where it is not set.
    """
    rounding = half_ulp.numpy()
    with np.errstate(all="ignore"):
        slip = rounding / weight.numpy()
    known = np.isfinite(slip)
    part = np.where(known, slip, 0.0)
    return part, _ROUNDINGS * np.where(rounding < HALF, part, 0.0), known
