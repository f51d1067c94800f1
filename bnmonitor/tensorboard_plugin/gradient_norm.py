"""The gradient norm that the user's own code logged as a scalar of TensorBoard, such as Lightning's ``grad_norm``."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from bnmonitor.history.source import Array

logger = logging.getLogger(__name__)

_TAG = re.compile(r"(^|/)(total_)?(grad|gradient)s?(_[\d.]+)?_?norm(_total)?$", re.IGNORECASE)
"""``train/grad_norm``, ``grad_2.0_norm_total``, ``gradient_norm``; not the norm of a single parameter."""

_MOST = 5000
NAME = "gradient norm"


def gradient_norm(
    provider: Any,
    context: Any,
    experiment: str,
    run: str,
    steps: Array,
    keep: Callable[[Hashable, Callable[[], Any]], Any],
) -> Array | None:
    """Return the norm at each of the steps: the last one logged up to there, NaN before the first.

    Args:
        provider: TensorBoard's data provider.
        context: The context of the request.
        experiment: The experiment of the request.
        run: Name of the run.
        steps: ``[S]`` int64, rising.
        keep: Returns what was made for a state, and makes it again for another one.

    Returns:
        ``[S]`` float64, or None if the run has no such scalar.
    """
    from tensorboard.data.provider import RunTagFilter

    ask = {"experiment_id": experiment, "plugin_name": "scalars"}
    try:
        listed = provider.list_scalars(context, **ask, run_tag_filter=RunTagFilter(runs=[run])).get(run, {})
        found = sorted((tag for tag in listed if _TAG.search(tag)), key=lambda tag: (len(tag), tag))
        if not found:
            return None
        wanted = RunTagFilter(runs=[run], tags=found[:1])

        def read() -> Array:
            data = provider.read_scalars(context, **ask, downsample=_MOST, run_tag_filter=wanted)[run][found[0]]
            return np.array([(one.step, one.value) for one in data], np.float64).reshape(-1, 2)

        state = (found[0], listed[found[0]].max_step, listed[found[0]].max_wall_time)
        points = keep(state, read)
    except Exception as error:  # what others wrote must not cost the tab its own numbers
        logger.warning("the gradient norm of the run %r is left out: %s", run, error)
        return None
    points = points[np.argsort(points[:, 0], kind="stable")]
    place = np.searchsorted(points[:, 0], steps, "right") - 1
    return np.where(place >= 0, points[np.maximum(place, 0), 1], np.nan) if len(points) else None
