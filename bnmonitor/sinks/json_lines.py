"""Alerts as JSON, one event a line."""

from __future__ import annotations

import json
from pathlib import Path

from bnmonitor.results import Alert
from bnmonitor.sinks.base import Run, Sink


class JsonLines(Sink):
    """Appends every alert event (opened, got worse, cleared) to a file, as one JSON object a line.

    Args:
        path: The file; its directory is made if it is missing.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)

    def open(self, run: Run) -> None:
        """Make the file, so that a missing permission shows at once."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.touch()

    def alert(self, alert: Alert) -> None:
        """Append the alert; the line is on disk when this returns."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(alert.to_dict(), allow_nan=False) + "\n")
