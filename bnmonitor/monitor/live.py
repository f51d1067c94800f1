"""The window of a monitor in the shape of a recorded run, so that both are tabulated and drawn alike."""

# ruff: noqa: D102 -- RunData documents them

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from bnmonitor import runs
from bnmonitor._text import listing, nearest
from bnmonitor.history.flight.layout import STATISTICS, Array
from bnmonitor.layers import LayerTable
from bnmonitor.results import Alert, Incident
from bnmonitor.runs import RunData, Series


class Live(RunData):
    """The last steps of a run that is recorded now; that of a layer is the mean of its channels, as in the history.

    Args:
        layers: The layers.
        steps: Numbers of the steps in the window.
        losses: The loss of each; None where it is not known.
        rates: The learning rate at each, the largest of all parameter groups; empty where none is known.
        incidents: Every incident so far.
        alerts: Every alert so far.
        rows: Returns a statistic of a layer over the window, ``[steps, channels]``, by the names of both.
    """

    def __init__(
        self,
        layers: LayerTable,
        steps: Sequence[int],
        losses: Sequence[float | None],
        rates: Sequence[float],
        incidents: tuple[Incident, ...],
        alerts: tuple[Alert, ...],
        rows: Callable[[str, str], Tensor],
    ) -> None:
        self.name, self.directory = "this run", Path()
        self._layers, self._incidents, self._alerts, self._rows = layers, incidents, alerts, rows
        self._steps = np.array(steps, np.int64)
        self._rates = np.array(rates, np.float64).reshape(len(steps), -1 if len(rates) else 0)
        self._losses = np.array([np.nan if loss is None else loss for loss in losses], np.float64)

    @property
    def incidents(self) -> tuple[Incident, ...]:
        return self._incidents

    @property
    def alerts(self) -> tuple[Alert, ...]:
        return self._alerts

    @property
    def layers(self) -> tuple[str, ...]:
        return self._layers.names

    @property
    def channels(self) -> Mapping[str, int]:
        return dict(zip(self._layers.names, self._layers.channels, strict=True))

    @property
    def steps(self) -> Array:
        return self._steps

    @property
    def wall_time(self) -> Array:
        return np.full(len(self._steps), np.nan)

    @property
    def loss(self) -> Array:
        return self._losses

    @property
    def learning_rate(self) -> Array:
        return self._rates

    @property
    def epoch(self) -> Array:
        return np.full(len(self._steps), np.nan)

    @property
    def metrics(self) -> tuple[str, ...]:
        return STATISTICS

    def table(self, statistic: str) -> Array:
        if statistic not in STATISTICS:
            raise KeyError(
                f"the window has no statistic {statistic!r}{nearest(statistic, STATISTICS)}; it has "
                f"{listing(STATISTICS)}; more of whole layers is in a run that was recorded with log_dir="
            )
        columns = [self._rows(layer, statistic).nanmean(1).numpy() for layer in self.layers]
        return np.stack(columns, 1) if columns else np.zeros((len(self._steps), 0), np.float32)

    def history(self, layer: str, statistic: str) -> tuple[Array, Array]:
        series = self.series(layer, statistic)
        return series.last, series.mean

    def series(self, layer: str, statistic: str, first: int | None = None, last: int | None = None) -> Series:
        if statistic not in STATISTICS:
            raise KeyError(f"there is no statistic {statistic!r} of channels{nearest(statistic, STATISTICS)}")
        rows = self._rows(layer, statistic).numpy()
        low, high = (-np.inf if first is None else first), (np.inf if last is None else last)
        inside = (self._steps >= low) & (self._steps <= high)
        steps, rows = self._steps[inside], rows[inside]
        return Series(steps, steps, rows, rows, rows)


def recorded(log_dir: Path | None) -> RunData | None:
    """Return the run in a directory as far as it was written; None if nothing is to be drawn of it yet."""
    if log_dir is None or not log_dir.is_dir():
        return None
    found = runs.open(log_dir)
    if "." not in found:
        return None
    run = found["."]
    return run if run.has_channels and len(run.steps) else None
