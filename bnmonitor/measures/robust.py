"""Robust reductions: over steps, which leave NaN out, and the lower median of NumPy's arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]


def mean_over_steps(rows: Tensor) -> Tensor:
    """Mean of ``[T, C]`` over the steps, NaN left out; one pass where nothing is NaN."""
    mean = rows.mean(0)
    holes = mean.isnan()
    if holes.any():
        mean[holes] = rows[:, holes].nanmean(0)
    return mean


def middle_over_steps(rows: Tensor) -> Tensor:
    """Robust middle of ``[T, C]`` over the steps, NaN left out.

    Medians of three of medians of three (Tukey's ninther, The Ninther, 1978), down to one: every fourth of the rows may
    be wild, and it costs a few passes where a median would sort each column.
    """
    left: Array = rows.detach().numpy()
    # The functions that leave NaN out are several times slower.
    low, high = (np.fmin, np.fmax) if np.isnan(left.sum()) else (np.minimum, np.maximum)
    while len(left) > 2:
        third = len(left) // 3
        a, b, c = left[:third], left[third : 2 * third], left[2 * third : 3 * third]
        left, upper = low(a, b), high(a, b)
        high(left, low(upper, c, out=upper), out=left)
        if third == 1:
            return torch.from_numpy(left[0])
    return torch.from_numpy(low(left[0], left[-1]))


def lower_median(values: Array) -> Any:
    """Median along the last axis, the lower of two."""
    middle = (values.shape[-1] - 1) // 2
    return np.partition(values, middle, -1)[..., middle]
