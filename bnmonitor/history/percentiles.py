"""Percentiles over the channels of a layer, at each block."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bnmonitor.history.source import Array


def percentiles(values: Array, percents: Sequence[float]) -> Array:
    """Return ``[P, B]`` percentiles of ``[C, B]`` over the channels that are known; NaN where none is."""
    rows = values.T
    ordered = np.sort(np.where(np.isfinite(rows), rows, np.float32(np.nan)), axis=1)  # NaN last
    known = (~np.isnan(ordered)).sum(1)
    found = []
    for percent in percents:
        place = np.maximum(known - 1, 0) * (percent / 100)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, np.maximum(known - 1, 0))
        a, b = (np.take_along_axis(ordered, each[:, None], 1)[:, 0] for each in (low, high))
        found.append(a + (b - a) * (place - low))
    return np.array(found, np.float32)
