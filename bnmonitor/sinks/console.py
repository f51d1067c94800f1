"""The terminal: alerts as they open, a table of layers if something is wrong, otherwise one line."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from bnmonitor._text import nearest
from bnmonitor.display import alert_block, alert_change, final_summary, health_table, prepare, show
from bnmonitor.results import Alert, Severity
from bnmonitor.sinks.base import Run, Sink
from bnmonitor.summary import Summary

if TYPE_CHECKING:
    from rich.console import RenderableType

Verbosity = Literal["quiet", "normal", "full"]

_VERBOSITIES: tuple[str, ...] = get_args(Verbosity)


class Console(Sink):
    """Prints through rich, above the progress bar if there is one, and shows the state inside that bar.

    Args:
        verbosity: ``"quiet"``: warnings and errors when they open and clear; at the end a line if one is still open.
            ``"normal"``: every alert, the number of open alerts in the progress bar, the state after each epoch (the
            worst layers if an alert opened or cleared, otherwise one line), and a full summary at the end. ``"full"``:
            healthy layers as well, all of them at the end; and a line at every frame if there is no progress bar.
        rows: How many layers a table shows, and how many cleared alerts the summary; the others are counted.

    Raises:
        ValueError: ``verbosity`` or ``rows`` has a value that is not accepted.
    """

    shows_alerts = True

    def __init__(self, *, verbosity: Verbosity = "normal", rows: int = 8) -> None:
        if verbosity not in _VERBOSITIES:
            known = ", ".join(map(repr, _VERBOSITIES))
            raise ValueError(f"verbosity must be {known}, got {verbosity!r}{nearest(str(verbosity), _VERBOSITIES)}")
        if isinstance(rows, bool) or not isinstance(rows, int) or rows < 0:
            raise ValueError(f"rows must be an int of at least 0, the layers that a table shows, got {rows!r}")
        self._rows = rows
        self._quiet, self._full = verbosity == "quiet", verbosity == "full"
        self._run: Run | None = None
        self._emit: Callable[[RenderableType], None] = show
        self._printed: set[tuple[str, str, int]] = set()
        self._shown: set[tuple[object, Severity]] = set()
        self._open: dict[tuple[str, str, int], Severity] = {}
        self._closed: tuple[int, list[Any]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the run, which holds the Trainer."""
        return {**vars(self), "_run": None, "_emit": show}

    def open(self, run: Run) -> None:
        """Use the print function of the run, which does not break the progress bar."""
        prepare()
        self._run, self._emit = run, run.emit or show

    def frame(self, summary: Summary) -> None:
        """Update the progress bar; without one, print a line if the verbosity is full."""
        self._open = {alert.key: alert.severity for alert in summary.open(Severity.WARNING)}
        if not self._show_in_bar() and self._full:
            self._emit(health_table(summary, rows=0))

    def alert(self, alert: Alert) -> None:
        """Print an alert that opened, got worse or was cleared."""
        gone = alert.state == "cleared"
        self._open.pop(alert.key, None)
        if not gone and alert.severity >= Severity.WARNING:
            self._open[alert.key] = alert.severity
        self._show_in_bar()
        if not self._quiet or alert.severity >= Severity.WARNING:
            seen = gone or alert.key in self._printed
            self._emit(alert_change(alert) if seen else alert_block(alert))
            self._printed.add(alert.key)

    def epoch(self, summary: Summary) -> None:
        """Print the state: the table if an alert opened or cleared since the last one, otherwise one line."""
        if not self._quiet:
            now: set[tuple[object, Severity]] = {
                (alert.key, alert.severity) for alert in summary.open(Severity.WARNING)
            }
            news = self._full or now != self._shown
            self._emit(health_table(summary, rows=self._rows if news else 0, well=self._full))
            self._shown = now

    def close(self, summary: Summary) -> None:
        """Print the summary of the run."""
        state = summary.step, [(alert.key, alert.severity, alert.state) for alert in summary.alerts]
        before, self._closed = self._closed, state
        if summary.step < 0 or state == before:  # for example a test after the fit that found nothing new
            return
        if not self._quiet:
            every = len(summary.rows) if self._full else self._rows
            history = _shell(self._run.history) if self._run else []
            self._emit(final_summary(summary, rows=every, well=self._full, history=history))
        elif summary.open(Severity.WARNING):
            self._emit(health_table(summary, rows=0))

    def _show_in_bar(self) -> bool:
        """Show the number of open errors and warnings in the progress bar; return False if there is no bar."""
        if self._quiet or self._run is None or self._run.status is None:
            return False
        errors = sum(severity >= Severity.ERROR for severity in self._open.values())
        found = [("✗", errors), ("!", len(self._open) - errors)]
        self._run.status(" ".join(f"{mark}{n}" for mark, n in found if n) or "✓")
        return True


def _shell(directories: Sequence[str]) -> list[str]:
    """Directories as a user types them in a shell, relative to the working directory where possible."""
    here = Path.cwd()
    paths = [Path(each) for each in directories]
    return [shlex.quote(str(p.relative_to(here) if p.is_relative_to(here) else p)) for p in paths]
