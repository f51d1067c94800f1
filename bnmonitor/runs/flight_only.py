"""A run of which there is a flight record, and no event file: its sinks did not write one."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Protocol

import numpy as np

from bnmonitor.history.course import Course
from bnmonitor.history.flight.reader import Flight
from bnmonitor.history.run import Frames
from bnmonitor.results import Incident


class Recorded(Protocol):
    """What a run's numbers are read from."""

    @property
    def name(self) -> str:
        """The run's name."""

    @property
    def frames(self) -> Frames:
        """The logged steps."""

    @property
    def course(self) -> Course:
        """Loss, learning rates and epoch at each of them."""

    @property
    def incidents(self) -> tuple[Incident, ...]:
        """The incidents in their last state."""

    @property
    def alerts(self) -> tuple[dict[str, Any], ...]:
        """The alerts in their last state."""


class FlightOnly:
    """A flight record read as a run: its blocks are the logged steps, and of whole layers there is no statistic.

    Args:
        name: The run's name.
        flight: Its flight record.
    """

    def __init__(self, name: str, flight: Flight) -> None:
        self.name, self._flight = name, flight

    @cached_property
    def frames(self) -> Frames:
        """The last step of each block."""
        layers = self._flight.layers
        steps = self._course["last"]
        return Frames(
            layers=tuple(layers),
            channels=tuple(layers.values()),
            metrics=(),
            steps=steps,
            wall_times=self._course.get("wall_time", np.zeros(0)),
            values=np.zeros((0, len(layers), len(steps)), np.float32),
        )

    @cached_property
    def course(self) -> Course:
        """Loss, learning rates and epoch of each block."""
        found, steps = self._course, self._course["last"]
        rates = [row for name, row in found.items() if name.startswith("lr ")]
        nothing = np.full(len(steps), np.nan)
        return Course(
            steps=steps,
            wall_times=found.get("wall_time", nothing),
            loss=found.get("loss", nothing),
            learning_rates=np.array(rates).reshape(len(rates), len(steps)),
            epochs=found.get("epoch", nothing),
        )

    @cached_property
    def incidents(self) -> tuple[Incident, ...]:
        """The incidents in their last state."""
        return self._flight.incidents()

    @cached_property
    def alerts(self) -> tuple[dict[str, Any], ...]:
        """The alerts in their last state."""
        return self._flight.alerts()

    @cached_property
    def _course(self) -> dict[str, Any]:
        return self._flight.course()
