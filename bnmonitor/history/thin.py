"""Thin a history for a screen so that a spike of one step stays visible."""

from __future__ import annotations

import numpy as np

from bnmonitor.history.source import Array

_REFERENCE = 512


def pool(values: Array, bins: int, *, logarithmic: bool = False, lowest: bool = False) -> tuple[Array, Array]:
    """Keep the value of each bin that is furthest from its row's usual value.

    The usual value is the row's median. Every value kept is one that was recorded; NaN is kept only where a bin holds
    nothing else, and an infinite value before any other.

    Args:
        values: ``[L, S]``.
        bins: Columns wanted; at most this many are returned, bins of equally many steps.
        logarithmic: Measure distances between logarithms.
        lowest: Keep the lowest value of each bin instead, for a statistic of which less is worse.

    Returns:
        ``[L, B]`` values, and ``[B + 1]`` int64: bin ``b`` holds the columns ``edges[b]:edges[b + 1]``.
    """
    length = values.shape[1]
    if length <= bins:
        return values, np.arange(length + 1)
    edges = (np.arange(bins + 1) * length) // bins
    with np.errstate(all="ignore"):
        scaled = np.log(np.abs(values)) if logarithmic else values
    thin = scaled[:, :: max(1, length // _REFERENCE)]
    highest = np.fmax.reduce(scaled, axis=None, initial=0.0)
    away = highest - scaled if lowest else np.abs(scaled - _middle(thin)[:, None])
    away = np.where(np.isnan(values), np.float32(-1), np.nan_to_num(away, nan=np.inf, posinf=np.inf))
    widest = int(np.diff(edges).max())
    inside = np.minimum(edges[:-1, None] + np.arange(widest), edges[1:, None] - 1)
    chosen = inside[np.arange(bins), away[:, inside].argmax(2)]
    return np.take_along_axis(values, chosen, 1), edges


def _middle(rows: Array) -> Array:
    """Return the median of the finite values of each row; 0 if a row has none."""
    ordered = np.sort(np.where(np.isfinite(rows), rows, np.inf), 1)
    known = np.isfinite(ordered).sum(1)
    middle = ordered[np.arange(len(rows)), np.maximum(known - 1, 0) // 2]
    return np.where(known > 0, middle, 0).astype(rows.dtype)


def extent(values: Array, *, logarithmic: bool = False) -> tuple[float, float] | None:
    """Return the range of the finite values for a color scale, without 1 % on either side.

    Returns:
        The two ends, or None if there is no value to show.
    """
    known = values[np.isfinite(values)]
    if logarithmic:
        known = known[known > 0]
    if not known.size:
        return None
    low, high = np.percentile(known[:: max(1, known.size // 100_000)], [1, 99])
    return float(low), float(high)


def before(steps: Array) -> int:
    """Return the step before the first column, which is as wide as the median one, or -1 if that would be negative."""
    if not len(steps):
        return -1
    width = int(np.median(np.diff(steps))) if len(steps) > 1 else 1
    return max(-1, int(steps[0]) - width)
