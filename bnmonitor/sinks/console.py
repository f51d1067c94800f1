"""The terminal: alerts as they open, a table where something is wrong, one line where nothing is."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from bnmonitor._text import nearest
from bnmonitor.display import alert_block, alert_change, final_summary, health_table, show
from bnmonitor.results import Alert, Severity
from bnmonitor.sinks.base import Run, Sink
from bnmonitor.summary import Summary

if TYPE_CHECKING:
    from rich.console import RenderableType

Verbosity = Literal["quiet", "normal", "full"]

_VERBOSITIES: tuple[str, ...] = get_args(Verbosity)


class Console(Sink):
    """Prints through rich, above whatever progress bar is there, and keeps a word on the state in that bar.

    Args:
        verbosity: ``"quiet"``: warnings and errors as they come and go; at the end a line if one is still open.
            ``"normal"``: every alert, a word in the progress bar, the state after each epoch (the worst layers if an
            alert came or went, else a line), and at the end everything there is to say. ``"full"``: layers that are
            well, too, all of them at the end; and a line at every frame where there is no progress bar.
        rows: Layers that a table shows, and cleared alerts at the end; the rest is counted.

    Raises:
        ValueError: There is no such verbosity, or ``rows`` is negative.
    """

    shows_alerts = True

    def __init__(self, *, verbosity: Verbosity = "normal", rows: int = 8) -> None:
        if verbosity not in _VERBOSITIES:
            known = ", ".join(map(repr, _VERBOSITIES))
            raise ValueError(
                f"verbosity={verbosity!r} is not known{nearest(str(verbosity), _VERBOSITIES)}; it takes {known}"
            )
        if isinstance(rows, bool) or not isinstance(rows, int) or rows < 0:
            raise ValueError(f"rows={rows!r} must be an int of 0 or more: how many layers a table shows")
        self._rows = rows
        self._quiet, self._full = verbosity == "quiet", verbosity == "full"
        self._run: Run | None = None
        self._emit: Callable[[RenderableType], None] = show
        self._told: set[tuple[str, str, int]] = set()
        self._shown: set[tuple[object, Severity]] = set()
        self._open: dict[tuple[str, str, int], Severity] = {}
        self._said: tuple[int, list[Any]] | None = None

    def open(self, run: Run) -> None:
        """Learn how to print beside the progress bar."""
        self._run, self._emit = run, run.emit or show

    def frame(self, summary: Summary) -> None:
        """Bring the word in the progress bar up to date; in full, print a line where there is no such bar."""
        self._open = {alert.key: alert.severity for alert in summary.open(Severity.WARNING)}
        if not self._say() and self._full:
            self._emit(health_table(summary, rows=0))

    def alert(self, alert: Alert) -> None:
        """Print an alert that opened, got worse or was cleared."""
        gone = alert.state == "cleared"
        self._open.pop(alert.key, None)
        if not gone and alert.severity >= Severity.WARNING:
            self._open[alert.key] = alert.severity
        self._say()
        if not self._quiet or alert.severity >= Severity.WARNING:
            seen = gone or alert.key in self._told
            self._emit(alert_change(alert) if seen else alert_block(alert))
            self._told.add(alert.key)

    def epoch(self, summary: Summary) -> None:
        """Print the state: the table if an alert has come or gone since it was last shown, else one line."""
        if not self._quiet:
            now: set[tuple[object, Severity]] = {
                (alert.key, alert.severity) for alert in summary.open(Severity.WARNING)
            }
            news = self._full or now != self._shown
            self._emit(health_table(summary, rows=self._rows if news else 0, well=self._full))
            self._shown = now

    def close(self, summary: Summary) -> None:
        """Print all there is to say of the run."""
        state = summary.step, [(alert.key, alert.severity, alert.state) for alert in summary.alerts]
        said, self._said = self._said, state
        if summary.step < 0 or state == said:  # a test after the fit that told nothing new
            return
        if not self._quiet:
            every = len(summary.rows) if self._full else self._rows
            history = _shell(self._run.history) if self._run else []
            self._emit(final_summary(summary, rows=every, well=self._full, history=history))
        elif summary.open(Severity.WARNING):
            self._emit(health_table(summary, rows=0))

    def _say(self) -> bool:
        """Put the number of open errors and warnings into the progress bar; False if there is none."""
        if self._quiet or self._run is None or self._run.status is None:
            return False
        errors = sum(severity >= Severity.ERROR for severity in self._open.values())
        found = [("✗", errors), ("!", len(self._open) - errors)]
        self._run.status(" ".join(f"{mark}{n}" for mark, n in found if n) or "✓")
        return True


def _shell(directories: Sequence[str]) -> list[str]:
    """Directories as one types them, below the working directory without it."""
    here = Path.cwd()
    paths = [Path(each) for each in directories]
    return [shlex.quote(str(p.relative_to(here) if p.is_relative_to(here) else p)) for p in paths]
