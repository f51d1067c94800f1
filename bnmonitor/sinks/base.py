"""What a sink is, and what it is told of the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bnmonitor.layers import LayerTable
from bnmonitor.results import Alert
from bnmonitor.summary import Summary

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a sink may need to know when it opens.

    Attributes:
        layers: The layers under watch.
        log_dir: Where files of the run belong; None: nowhere.
        loggers: The loggers of a Lightning Trainer.
        emit: Prints a rich renderable without tearing the progress bar; None: print to rich's own console.
        status: Shows a word on the state inside the progress bar; None: there is no bar.
        sinks: All sinks of the run, but for those that failed.
    """

    layers: LayerTable
    log_dir: Path | None = None
    loggers: Sequence[Any] = ()
    emit: Callable[[RenderableType], None] | None = None
    status: Callable[[str], None] | None = None
    sinks: Sequence[Sink] = ()

    @property
    def history(self) -> tuple[str, ...]:
        """Directories that the history goes to, once all sinks are open."""
        return tuple(dict.fromkeys(place for sink in self.sinks for place in sink.history))


class Sink:
    """Takes what the monitor has to say. Override what you need; the rest does nothing.

    A sink that raises is reported once (BN002) and not called again.

    Attributes:
        shows_alerts: Whether a person sees the alerts here; then ``on_alert="warn"`` needs no Python warning.
        history: Directories it writes a history to that ``bnmonitor report`` can read; known once it is open.
    """

    shows_alerts: bool = False
    history: Sequence[str] = ()

    def open(self, run: Run) -> None:
        """Begin; called at each ``start()``."""

    def frame(self, summary: Summary) -> None:
        """Take the state of all layers; called every ``log_every_n_steps``."""

    def alert(self, alert: Alert) -> None:
        """Take an alert that opened, got worse or was cleared (see ``alert.state``)."""

    def epoch(self, summary: Summary) -> None:
        """Take the state at the end of an epoch."""

    def close(self, summary: Summary) -> None:
        """Take the state at the end, and flush."""


def checked(sinks: object) -> Sequence[Sink]:
    """Return the sinks a user gave.

    Raises:
        TypeError: They are no sequence of sinks.
    """
    if not isinstance(sinks, Sequence) or isinstance(sinks, str):
        raise TypeError(f"sinks must be a sequence of sinks, got {type(sinks).__name__}: pass [sink]")
    for sink in sinks:
        if not isinstance(sink, Sink):
            hint = "pass an instance" if isinstance(sink, type) else "derive it from bnmonitor.sinks.Sink"
            raise TypeError(f"sinks holds {sink!r}, which is no sink: {hint}")
    return sinks


class FanOut:
    """Several sinks as one; a sink that raises is left out from then on.

    Args:
        sinks: The sinks.
        failed: Told of each sink that raised, after it was left out.
    """

    def __init__(self, sinks: Sequence[Sink], failed: Callable[[Sink, Exception], None]) -> None:
        self.sinks = list(sinks)
        self._failed = failed

    @property
    def shows_alerts(self) -> bool:
        """Whether a person sees the alerts in one of them."""
        return any(sink.shows_alerts for sink in self.sinks)

    def tell(self, what: Literal["open", "frame", "alert", "epoch", "close"], argument: Any) -> None:
        """Call one method of every sink."""
        for sink in list(self.sinks):
            if sink not in self.sinks:
                continue  # left out meanwhile, while another one's failure was told
            try:
                getattr(sink, what)(argument)
            except Exception as error:
                self.sinks.remove(sink)
                self._failed(sink, error)
