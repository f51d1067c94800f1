"""The numbers of one recorded run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np

from bnmonitor._text import listing, nearest
from bnmonitor.history.entry import verdict
from bnmonitor.history.flight.layout import FOLDER, STATISTICS
from bnmonitor.history.flight.reader import Flight
from bnmonitor.history.flight.series import Series
from bnmonitor.history.source import Array
from bnmonitor.results import Alert, Incident, RateSuggestion, suggest_rate
from bnmonitor.runs.flight_only import Recorded


class RunData:
    """One recorded run. Each part is read when it is first asked for.

    Args:
        recorded: Its history.
        directory: Its directory.
        fetch: Called with a directory before it is read, where only event files are there yet.
    """

    def __init__(self, recorded: Recorded, directory: Path, fetch: Callable[[Path], object] | None = None) -> None:
        self._recorded, self.directory, self._fetch = recorded, directory, fetch
        self.name: str = recorded.name
        """Its name: the path of its directory below the one that was opened."""

    @cached_property
    def _flight(self) -> Flight | None:
        if self._fetch is not None:
            self._fetch(self.directory / FOLDER)
        return Flight.of(self.directory)

    @property
    def has_channels(self) -> bool:
        """Whether there is a flight record, from which :meth:`history` reads."""
        return self._flight is not None

    @property
    def incidents(self) -> tuple[Incident, ...]:
        """Its incidents in their last state, in the order in which they opened."""
        return self._recorded.incidents

    @property
    def alerts(self) -> tuple[Alert, ...]:
        """Its alerts in their last state, in the order in which they began."""
        return tuple(Alert.from_dict(alert) for alert in self._recorded.alerts)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of its layers, in the order in which they ran."""
        return self._recorded.frames.layers

    @property
    def steps(self) -> Array:
        """``[S]`` int64: the logged steps, of which there is a row for each layer."""
        return self._recorded.frames.steps

    @property
    def wall_time(self) -> Array:
        """``[S]`` float64: when each logged step was written, in seconds since 1970."""
        return self._recorded.frames.wall_times

    @property
    def loss(self) -> Array:
        """``[S]`` float64: the loss at each logged step; NaN where it is not known."""
        return self._recorded.course.loss

    @property
    def learning_rate(self) -> Array:
        """``[S, G]`` float64: the learning rate of each parameter group at each logged step."""
        found: Array = self._recorded.course.learning_rates.T
        return found

    def suggest_lr(self) -> RateSuggestion | None:
        """Return a learning rate for the next training, from what this one has shown.

        It knows what the newest incident about the rate has derived, and the largest rate at which no incident was open
        or began soon after; of larger rates than it has seen a run knows nothing.

        Returns:
            Both rates and the smaller one as ``rate``; printed, it is a sentence. None where neither is known.
        """
        rates = self.learning_rate
        known = rates if rates.shape[1] else np.full((len(rates), 1), np.nan)
        largest = np.where(np.isnan(known).all(1), np.nan, np.nan_to_num(known, nan=-np.inf).max(1))
        return suggest_rate(self.steps.tolist(), largest.tolist(), self.incidents)

    @property
    def epoch(self) -> Array:
        """``[S]`` float64: the epoch of each logged step."""
        return self._recorded.course.epochs

    @property
    def channels(self) -> Mapping[str, int]:
        """Number of channels of each layer, by its name."""
        return dict(zip(self.layers, self._recorded.frames.channels, strict=True))

    def history(self, layer: str, statistic: str) -> tuple[Array, Array]:
        """Return a statistic of every channel of a layer over the whole run.

        A step whose neighbors were joined with it into a block stands for them: the value is their mean.

        Args:
            layer: Name of the layer.
            statistic: One of ``batch_mean``, ``batch_var``, ``running_mean``, ``running_var``, ``gamma`` and ``beta``.

        Returns:
            ``[N]`` int64, the last step of each block, and ``[N, C]`` float32, the values; NaN where nothing is known.

        Raises:
            KeyError: There is no such layer or statistic; the message names the nearest one.
            LookupError: The run has no flight record.
        """
        return self._of(statistic).history(layer, statistic)

    def series(self, layer: str, statistic: str, first: int | None = None, last: int | None = None) -> Series:
        """Return a statistic of every channel of a layer, with the extremes within each block of steps.

        Args:
            layer: Name of the layer.
            statistic: As for :meth:`history`.
            first: The first step to read; None: the beginning.
            last: The last step to read; None: the end.

        Raises:
            KeyError: There is no such layer or statistic; the message names the nearest one.
            LookupError: The run has no flight record.
        """
        return self._of(statistic).series(layer, statistic, first, last)

    def _of(self, statistic: str) -> Flight:
        """The flight record, which a statistic is asked of."""
        if self._flight is not None:
            if statistic not in STATISTICS and statistic in self.metrics:
                raise KeyError(f"{statistic!r} is a statistic of whole layers: read it with table({statistic!r})")
            return self._flight
        known = (*STATISTICS, *self._recorded.frames.metrics)
        if statistic not in known:
            raise KeyError(f"there is no statistic {statistic!r}{nearest(statistic, known)}")
        raise LookupError(
            f"the run {self.name!r} has no flight record, so its channels are unknown: it was recorded with "
            "flight_bytes=0, or by an older bnmonitor"
        )

    @property
    def metrics(self) -> tuple[str, ...]:
        """What :meth:`table` knows of whole layers."""
        return self._recorded.frames.metrics

    def table(self, statistic: str) -> Array:
        """Return a statistic of whole layers at the logged steps: ``[S, L]`` float32.

        Args:
            statistic: A column of the frames, such as ``health`` or ``mean_lag``.

        Raises:
            KeyError: The run does not have it; the message names the nearest one.
        """
        metrics = self._recorded.frames.metrics
        if statistic not in metrics:
            if statistic in STATISTICS:
                raise KeyError(f"{statistic!r} is a statistic of channels: read it with history(layer, {statistic!r})")
            raise KeyError(
                f"the run has no statistic {statistic!r} of layers, only {listing(metrics, len(metrics))}"
                f"{nearest(statistic, metrics)}"
            )
        found: Array = self._recorded.frames.of(statistic).T
        return found

    @property
    def verdict(self) -> str:
        """One sentence: the incident that is open and worst, how many there are, or that there is none."""
        return verdict(self.incidents, recorded=len(self.steps) > 0)
