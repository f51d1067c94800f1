"""A run as a row in a table of runs: its verdict, where it began to go wrong, its health, its loss, its settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from bnmonitor.history.entry import verdict
from bnmonitor.history.run import Run
from bnmonitor.history.source import Array
from bnmonitor.history.thin import pool
from bnmonitor.results import still_open

HEALTHS = 48
"""Most parts that the course of a run's health is given in."""


def listed(run: Run, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a run in plain types that JSON can hold; what is not known is None.

    Args:
        run: The run.
        settings: Its hyperparameters, as far as they are known; the highest learning rate is added to them.

    Returns:
        ``name``, ``verdict`` (one sentence) and ``severity`` of the worst open incident (empty without one), ``open``
        (how many there are), ``first`` (``title``, ``severity``, ``step`` and ``layer`` of the incident that began
        first), ``health`` (at most 48 parts of the run, the lowest of all layers in each), ``lowest`` of all, ``loss``
        at the last step at which it is known, ``layers``, ``steps`` (the first and the last), ``wall`` (time of the
        last one, in seconds since 1970), ``settings``.
    """
    frames, course, found = run.frames, run.course, still_open(run.incidents)
    first = min(run.incidents, key=lambda each: (each.first_step, -each.severity), default=None)
    health = _course(frames.of("health")) if "health" in frames.metrics and len(frames) else []
    known = [value for value in health if value is not None]
    losses = course.loss[~np.isnan(course.loss)] if len(course.loss) else course.loss
    rates = course.learning_rates[np.isfinite(course.learning_rates)]
    peak = {"highest learning rate": _plain(float(rates.max()))} if rates.size else {}
    return {
        "name": run.name,
        "verdict": verdict(run.incidents, recorded=len(frames) > 0),
        "severity": str(found[0].severity) if found else "",
        "open": len(found),
        "first": first
        and {"title": first.title, "severity": str(first.severity), "step": first.first_step, "layer": first.layer},
        "health": health,
        "lowest": min(known, default=None),
        "loss": _plain(float(losses[-1])) if len(losses) else None,
        "layers": len(frames.layers),
        "steps": [int(frames.steps[0]), int(frames.steps[-1])] if len(frames) else None,
        "wall": _plain(float(frames.wall_times[-1])) if len(frames) else None,
        "settings": {**{str(name): _plain(value) for name, value in (settings or {}).items()}, **peak},
    }


def _course(health: Array) -> list[float | None]:
    """Return the health of the worst layer over the run, in whole numbers."""
    worst = np.fmin.reduce(health, axis=0)[None]
    thin, _ = pool(worst, HEALTHS, lowest=True)
    return [float(round(value)) if math.isfinite(value) else None for value in thin[0].tolist()]


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold: numbers that are not finite as JavaScript writes them."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)
