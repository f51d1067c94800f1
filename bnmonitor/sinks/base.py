"""What a sink is, and what the monitor passes to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bnmonitor._undisturbed import undisturbed
from bnmonitor.layers import LayerTable
from bnmonitor.results import Alert, Incident
from bnmonitor.summary import Summary

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the monitor passes to a sink when it opens it.

    Attributes:
        layers: The layers under watch.
        log_dir: The directory for files of the run; None: write no files.
        loggers: The loggers of a Lightning Trainer.
        emit: Prints a rich renderable without breaking the progress bar; None: print to rich's own console.
        status: Shows a short text on the state inside the progress bar; None: there is no bar.
        sinks: All sinks of the run, except those that failed.
    """

    layers: LayerTable
    log_dir: Path | None = None
    loggers: Sequence[Any] = ()
    emit: Callable[[RenderableType], None] | None = None
    status: Callable[[str], None] | None = None
    sinks: Sequence[Sink] = ()

    @property
    def history(self) -> tuple[str, ...]:
        """Directories that the sinks write a history to, known once all are open."""
        return tuple(dict.fromkeys(place for sink in self.sinks for place in sink.history))


class Sink:
    """Receives alerts and summaries from the monitor. Override the methods you need; the others do nothing.

    If a sink raises, the monitor reports it once (BN002) and does not call it again.

    Attributes:
        shows_alerts: Whether a person sees the alerts here; then ``on_alert="warn"`` gives no Python warning.
        history: Directories with a history that ``bnmonitor report`` can read; known once the sink is open.
    """

    shows_alerts: bool = False
    history: Sequence[str] = ()

    def open(self, run: Run) -> None:
        """Prepare for a run; called at each ``start()``."""

    def frame(self, summary: Summary) -> None:
        """Receive the state of all layers; called every ``log_every_n_steps``."""

    def alert(self, alert: Alert) -> None:
        """Receive an alert that opened, got worse or was cleared (see ``alert.state``)."""

    def incident(self, incident: Incident) -> None:
        """Receive an incident that opened, got worse, was explained anew or was resolved (see ``incident.state``)."""

    def epoch(self, summary: Summary) -> None:
        """Receive the state at the end of an epoch."""

    def close(self, summary: Summary) -> None:
        """Receive the state at the end of the run, and flush."""


def checked(sinks: object) -> Sequence[Sink]:
    """Return the sinks that a user passed, after a check.

    Raises:
        TypeError: The argument is not a sequence of sinks.
    """
    if not isinstance(sinks, Sequence) or isinstance(sinks, str):
        raise TypeError(f"sinks must be a sequence of sinks, got {type(sinks).__name__}: pass [sink]")
    for sink in sinks:
        if not isinstance(sink, Sink):
            hint = "pass an instance" if isinstance(sink, type) else "derive it from bnmonitor.sinks.Sink"
            raise TypeError(f"sinks must hold sinks only, got {sink!r}: {hint}")
    return sinks


class FanOut:
    """Several sinks as one. A sink that raises is removed.

    Args:
        sinks: The sinks.
        failed: Called with each sink that raised, after it was removed.
    """

    def __init__(self, sinks: Sequence[Sink], failed: Callable[[Sink, Exception], None]) -> None:
        self.sinks = list(sinks)
        self._failed = failed

    @property
    def shows_alerts(self) -> bool:
        """Whether a person sees the alerts in one of the sinks."""
        return any(sink.shows_alerts for sink in self.sinks)

    def call(self, method: Literal["open", "frame", "alert", "incident", "epoch", "close"], argument: Any) -> None:
        """Call one method of every sink."""
        for sink in list(self.sinks):
            if sink not in self.sinks:
                continue  # it failed and was removed while the failure of another sink was announced
            try:
                with undisturbed():
                    getattr(sink, method)(argument)
            except Exception as error:
                self.sinks.remove(sink)
                self._failed(sink, error)
