"""Flight records made up for tests: what a training has, the writer of it, and blocks against the rows they are of."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from bnmonitor.history.flight.layout import COURSE, STATISTICS, columns
from bnmonitor.history.flight.series import Series
from bnmonitor.history.flight.writer import FlightWriter

Array = np.ndarray[Any, Any]

SMALL = {"net.bn1": 5, "net.bn2": 3}
WIDE = {"net.bn1": 300, "net.bn2": 200}


def a_course(steps: range, groups: int = 1) -> Array:
    course = np.full((len(steps), len(columns(groups))), np.nan)
    course[:, 0] = [1e9 + step for step in steps]
    course[:, COURSE.index("loss")] = [1 / (1 + step) for step in steps]
    course[:, -groups:] = 0.1
    return course


def truth(layers: dict[str, int], steps: range, seed: int = 0) -> dict[str, Array]:
    """``[T, C]`` of each statistic, as a training has them."""
    random, total = np.random.default_rng(seed), sum(layers.values())
    scale = np.exp(random.normal(size=total))
    mean = random.normal(size=total) * scale
    noise = random.normal(size=(len(steps), total))
    drift = np.array(steps)[:, None] / 1000
    plain = {
        "batch_mean": mean + noise * scale * 0.1 + drift,
        "batch_var": scale**2 * np.exp(noise * 0.2),
        "running_mean": mean + drift,
        "running_var": scale**2 * (1 + drift),
        "gamma": 1 + 0.1 * random.normal(size=total) + drift / 10,
        "beta": 0.1 * random.normal(size=total) - drift / 10,
    }
    return {name: np.broadcast_to(value, noise.shape).astype(np.float32) for name, value in plain.items()}


def begin(folder: Path, layers: dict[str, int], budget: int = 2**26, error: float = 0.05) -> FlightWriter:
    writer = FlightWriter(folder, budget)
    errors = [error] * len(layers)
    writer.begin(list(layers), list(layers.values()), groups=1, mean_error=errors, variance_error=errors)
    return writer


def add(writer: FlightWriter, rows: dict[str, Array], steps: range, at: int = 0, every: int = 10) -> None:
    for start in range(0, len(steps), every):
        some = slice(at + start, at + start + every)
        now = steps[start : start + every]
        writer.add(list(now), {name: rows[name][some] for name in STATISTICS}, a_course(now))


def settled(writer: FlightWriter) -> None:
    """Wait until all that was added is on the disk."""
    while writer.waiting and not writer._failed:
        time.sleep(0.01)


def check(found: Series, rows: Array, steps: range, statistic: str, error: float, scale: Array) -> None:
    """Compare blocks with the rows that they are of."""
    index = {step: place for place, step in enumerate(steps)}
    for first, last, low, mean, high in zip(
        found.first, found.last, found.minimum, found.mean, found.maximum, strict=True
    ):
        some = rows[index[first] : index[last] + 1].astype(np.float64)
        slow = some[::-1][::10][::-1] if statistic not in ("batch_mean", "batch_var") and first < last else some
        for got, want in ((low, slow.min(0)), (mean, slow.mean(0)), (high, slow.max(0))):
            # The slow statistics are read on some of the steps, between which they hardly move.
            between = np.abs(some[-1] - some[0]) if slow is not some else 0.0
            allowed = error * (np.abs(want) if statistic.endswith("var") else scale) * 1.001 + between
            assert (np.abs(got - want) <= allowed + 1e-6).all(), (statistic, first, last)
