"""A sink that keeps what it gets."""

from __future__ import annotations

from typing import Any

from bnmonitor.sinks import Sink


class RecordingSink(Sink):
    """Keeps everything that it gets, for a test to look at.

    Attributes:
        events: ``(what, argument)`` in the order they came.
    """

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    def open(self, run: Any) -> None:
        self.events.append(("open", run))

    def frame(self, summary: Any) -> None:
        self.events.append(("frame", summary))

    def alert(self, alert: Any) -> None:
        self.events.append(("alert", alert))

    def epoch(self, summary: Any) -> None:
        self.events.append(("epoch", summary))

    def close(self, summary: Any) -> None:
        self.events.append(("close", summary))
