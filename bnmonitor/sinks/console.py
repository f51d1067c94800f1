"""The terminal: an incident when it opens, a line at the end of each epoch, and the answer at the end of the run."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from bnmonitor._text import count, nearest, thousands
from bnmonitor.display import (
    aside,
    done,
    final_summary,
    headline,
    health_table,
    incident_block,
    incident_change,
    incident_line,
    incident_rest,
    prepare,
    show,
)
from bnmonitor.results import ROLLED_BACK, Alert, Incident, Severity
from bnmonitor.sinks.base import Run, Sink
from bnmonitor.summary import Summary

if TYPE_CHECKING:
    from rich.console import RenderableType

Verbosity = Literal["quiet", "normal", "full"]

_VERBOSITIES: tuple[str, ...] = get_args(Verbosity)

_NO_HISTORY = "no history was written: a TensorBoardLogger, or Monitor(log_dir=...), keeps one for bnmonitor report"


class Console(Sink):
    """Prints through rich, above the progress bar if there is one, and shows the state inside that bar.

    Args:
        verbosity: ``"quiet"``: incidents, three lines when one opens and one line when it changes; at the end a line if
            one is still open. ``"normal"``: also the number of open incidents in the progress bar, a line after each
            epoch, and at the end a line, or a line for each incident and how to read the rest. ``"full"``: also the
            table of layers after each epoch, all of them at the end; and a line at every frame if there is no progress
            bar.
        rows: How many layers a table shows, and how many incidents the end; the others are counted.

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
        self._shown: dict[int, Incident] = {}
        self._open: dict[int, Severity] = {}
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
        self._open = {incident.index: incident.severity for incident in summary.open_incidents()}
        if not self._show_in_bar() and self._full:
            self._emit(headline(summary))

    def incident(self, incident: Incident) -> None:
        """Print an incident that opened in three lines, and a change in one."""
        self._open.pop(incident.index, None)
        if incident.state == "open":
            self._open[incident.index] = incident.severity
        self._show_in_bar()
        before = self._shown.get(incident.index)
        self._shown[incident.index] = incident
        if before is not None:
            self._emit(incident_change(incident, before))
        elif incident.state == "open":
            self._emit(incident_block(incident))
        else:
            self._emit(incident_line(incident))

    def alert(self, alert: Alert) -> None:
        """Print a line about what bnmonitor has done to the training; any other note is left to the report."""
        if alert.code == ROLLED_BACK:
            self._emit(done(alert))

    def epoch(self, summary: Summary) -> None:
        """Print a line that names the worst incident, or says what is healthy."""
        if self._full:
            self._emit(health_table(summary, rows=self._rows, well=True))
        elif not self._quiet:
            self._emit(headline(summary))

    def close(self, summary: Summary) -> None:
        """Print the answer: a line if all is well, otherwise a line for each incident and how to read the rest."""
        state = summary.step, [(incident.index, incident.severity, incident.state) for incident in summary.explained]
        before, self._closed = self._closed, state
        if summary.step < 0 or state == before:  # for example a test after the fit that found nothing new
            return
        if self._quiet:
            if summary.open_incidents():
                self._emit(headline(summary))
        elif self._full:
            self._emit(final_summary(summary, rows=len(summary.rows), well=True))
            self._emit(aside(self._command() or _NO_HISTORY))
        elif summary.open_incidents():
            self._list(summary)
            self._emit(aside(self._command() or _NO_HISTORY))
        else:
            self._emit(headline(summary, _ends(summary, self._command())))

    def _list(self, summary: Summary) -> None:
        """Print a line for each incident, the open ones first."""
        gone = [incident for incident in summary.explained if incident.state != "open"]
        every = [*summary.open_incidents(), *gone]
        most = max(1, self._rows)
        for incident in every[:most]:
            self._emit(incident_line(incident))
        rest = incident_rest(every, most)
        if rest is not None:
            self._emit(rest)

    def _command(self) -> str:
        """The command that shows everything else; empty if there is no history."""
        places = _shell(self._run.history) if self._run else []
        return f"bnmonitor report {places[0]}" if places else ""

    def _show_in_bar(self) -> bool:
        """Show the number of open errors and warnings in the progress bar; return False if there is no bar."""
        if self._quiet or self._run is None or self._run.status is None:
            return False
        errors = sum(severity >= Severity.ERROR for severity in self._open.values())
        found = [(Severity.ERROR, errors), (Severity.WARNING, len(self._open) - errors)]
        self._run.status(" ".join(f"{severity.mark}{n}" for severity, n in found if n) or "✓")
        return True


def _ends(summary: Summary, command: str) -> list[str]:
    """What the last line of a healthy run says behind its verdict, in full and shorter."""
    gone = len(summary.explained)
    found = f"{count(gone, 'incident')}{', resolved' if gone else ''} · step {thousands(summary.step)}"
    return [*([f" · {found} · {command}"] if command else []), f" · {found}", summary.place]


def _shell(directories: Sequence[str]) -> list[str]:
    """Directories as a user types them in a shell, relative to the working directory where possible."""
    here = Path.cwd()
    paths = [Path(each) for each in directories]
    return [shlex.quote(str(p.relative_to(here) if p.is_relative_to(here) else p)) for p in paths]
