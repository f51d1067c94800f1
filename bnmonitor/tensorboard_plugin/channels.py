"""Channels of a layer over the run: from its flight record, or else from the channel detail of the event files."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bnmonitor.history import statistics as catalogue
from bnmonitor.history.flight.layout import STATISTICS
from bnmonitor.history.flight.reader import Flight
from bnmonitor.history.percentiles import percentiles
from bnmonitor.history.run import Channels
from bnmonitor.history.source import Array

PERCENTILES = (5, 25, 50, 75, 95)

Keep = Callable[[Hashable, Hashable, Callable[[], Any]], Any]
"""Returns a value by its key, made again if its state is another one."""


@dataclass(frozen=True)
class Detail:
    """A statistic of every channel of a layer.

    Attributes:
        first: ``[B]`` int64, the first step of each block of steps.
        steps: ``[B]`` int64, the last one; rising.
        mean: ``[C, B]`` float32, the mean of each channel within the block.
        extreme: ``[C, B]`` float32, the value within the block that is furthest from the channel's usual one.
    """

    first: Array
    steps: Array
    mean: Array
    extreme: Array


class ChannelReader:
    """Reads the channels of one run.

    Args:
        flight: The directory of its flight record; None: it has none, or none that can be read from here.
        events: Reads the channel detail of a layer from the event files.
        keep: Where to keep what was read.
    """

    def __init__(self, flight: Path | None, events: Callable[[str], Channels | None], keep: Keep) -> None:
        self._events, self._keep, self._folder = events, keep, flight
        self._state = _state(flight) if flight is not None else ()

    @property
    def layers(self) -> frozenset[str]:
        """The layers of the flight record."""
        flight = self._flight
        return frozenset(flight.layers) if flight is not None else frozenset()

    def statistic(self, layer: str, statistic: str) -> Detail | None:
        """Return a statistic of a layer's channels; None if none was recorded."""
        flight = self._flight
        if flight is not None and statistic in STATISTICS and layer in flight.layers:
            found: Detail = self._keep(("flight", layer, statistic), self._state, lambda: _of(flight, layer, statistic))
            if len(found.steps):
                return found
        detail = self._events(layer)
        if detail is None:
            return None
        values = detail.of(statistic)
        return Detail(detail.steps, detail.steps, values, values)

    def bands(self, layer: str, statistic: str) -> tuple[Detail, Array] | None:
        """Return a statistic, and ``[5, B]`` its :data:`PERCENTILES` over the channels; None if none was recorded."""
        found = self.statistic(layer, statistic)
        if found is None:
            return None
        state = (len(found.steps), int(found.steps[-1]) if len(found.steps) else -1)
        bands: Array = self._keep(
            ("bands", layer, statistic), (self._state, state), lambda: percentiles(found.mean, PERCENTILES)
        )
        return found, bands

    def at(self, layer: str, step: int) -> tuple[tuple[str, ...], Array, int, int] | None:
        """Return every statistic of every channel at a step; None if none was recorded.

        Returns:
            Names of the statistics, ``[K, C]`` values, and the first and the last step that they stand for.
        """
        detail, rows = self._events(layer), dict[str, Array]()
        span = None
        if detail is not None and len(detail.steps):
            place = max(0, int(np.searchsorted(detail.steps, step, "right")) - 1)
            rows = {name: detail.of(name)[:, place] for name in detail.statistics}
            span = (int(detail.steps[place]),) * 2
        flight = self._flight
        if flight is not None and layer in flight.layers:
            course = self._keep("blocks", self._state, flight.course)
            if len(course["last"]):
                place = min(int(np.searchsorted(course["last"], step, "left")), len(course["last"]) - 1)
                span = int(course["first"][place]), int(course["last"][place])
                read = {name: flight.history(layer, name, *span)[1] for name in STATISTICS}
                rows |= {name: mean[-1] for name, mean in read.items() if len(mean)}
        if span is None or not rows:
            return None
        names = tuple(s.name for s in catalogue.CHANNEL if s.name in rows)
        most = max(len(rows[name]) for name in names)
        table = np.full((len(names), most), np.nan, np.float32)
        for i, name in enumerate(names):
            table[i, : len(rows[name])] = rows[name]
        return names, table, *span

    @property
    def _flight(self) -> Flight | None:
        folder = self._folder
        return None if folder is None else self._keep("flight", self._state, lambda: Flight(folder))


def _state(folder: Path) -> tuple[Any, ...]:
    """Return a value that changes when the record grows."""
    try:
        files = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
    except OSError:
        return ()
    return tuple((name, about.st_size, about.st_mtime_ns) for name, about in files)


def _of(flight: Flight, layer: str, statistic: str) -> Detail:
    series = flight.series(layer, statistic)
    mean, low, high = series.mean.T, series.minimum.T, series.maximum.T
    with np.errstate(all="ignore"):
        log = catalogue.logarithmic(statistic, catalogue.CHANNEL)
        usual = np.nanmedian(mean, axis=1, keepdims=True) if mean.size else mean[:, :1]
        above = np.abs(np.log(high / usual) if log else high - usual)
        below = np.abs(np.log(low / usual) if log else low - usual)
        extreme = np.where(above >= below, high, low)
    extreme = np.where(np.isnan(extreme), mean, extreme)
    return Detail(series.first, series.last, np.ascontiguousarray(mean), np.ascontiguousarray(extreme))


def pooled(bands: Array, edges: Sequence[int] | Array) -> Array:
    """Return bands for bins of blocks: the mean of the inner ones, and of the outer ones the outermost.

    So the bands stay in order, and what a single block does stays visible.
    """
    starts = np.asarray(edges[:-1])
    if bands.shape[1] == len(starts):
        return bands
    known = np.add.reduceat(np.isfinite(bands).astype(np.float32), starts, axis=1)
    total = np.add.reduceat(np.where(np.isfinite(bands), bands, 0), starts, axis=1)
    with np.errstate(invalid="ignore"):
        found: Array = total / known
    found[0] = np.fmin.reduceat(bands[0], starts)
    found[-1] = np.fmax.reduceat(bands[-1], starts)
    return found
