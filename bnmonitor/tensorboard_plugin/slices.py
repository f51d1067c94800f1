"""Slices of a run: a range of its steps, thinned to the columns that a screen has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bnmonitor.history import thin
from bnmonitor.history.source import Array
from bnmonitor.tensorboard_plugin.channels import pooled
from bnmonitor.tensorboard_plugin.wire import MOST_COLUMNS, Query, as_binary

COLUMNS = 1500
"""Columns of a slice unless the request asks for another number."""

LATEST = 2**53
"""The latest step that JavaScript can count to."""

WHOLE = (-LATEST, LATEST)
"""The span of every run."""


def percentile_bins(bands: Array, bins: int, **_: Any) -> tuple[Array, Array]:
    """Thin bands of percentiles, as :func:`thin.pool` thins other rows."""
    edges = (np.arange(bins + 1) * bands.shape[1]) // bins if bands.shape[1] > bins else np.arange(bands.shape[1] + 1)
    return pooled(bands, edges), edges


def span(query: Query) -> tuple[int, int]:
    """Return the first and the last step that a request asks for; :data:`WHOLE` if it asks for all."""
    return query.number("from", -LATEST, LATEST, -LATEST), query.number("to", -LATEST, LATEST, LATEST)


def columns(
    steps: Array,
    values: Array,
    query: Query,
    logarithmic: bool,
    header: dict[str, Any],
    *,
    worst: bool = False,
    pool: Callable[..., tuple[Array, Array]] = thin.pool,
) -> tuple[bytes, str]:
    """Answer a range of steps, thinned: column ``i`` stands for the steps after ``ends[i - 1]`` up to ``ends[i]``."""
    first, last = span(query)
    lo, hi = int(np.searchsorted(steps, first, "left")), int(np.searchsorted(steps, last, "right"))
    lo, hi = max(0, lo - 1), min(len(steps), hi + 1)  # a column more on either side, to draw up to the edge
    thinned, edges = pool(
        values[:, lo:hi], query.number("bins", 1, MOST_COLUMNS, COLUMNS), logarithmic=logarithmic, lowest=worst
    )
    inside = steps[lo:hi]
    ends = inside[edges[1:] - 1] if len(inside) else inside
    before = int(steps[lo - 1]) if lo else thin.before(steps)
    return as_binary({**header, "ends": ends.tolist(), "before": before, "frames": hi - lo}, thinned)
