"""The terminal: alerts as they open, a table where something is wrong, one line where nothing is."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bnmonitor.alerts import Alert
from bnmonitor.render import BARS, alert_block, health_table
from bnmonitor.rules import Severity
from bnmonitor.sinks.base import Run, Sink
from bnmonitor.summary import Summary

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.console import RenderableType

_PLAIN = str.maketrans("✓✗·–…─σγ²" + BARS, "+x|-~-sg2" + "._-=+*%#")


class Console(Sink):
    """Prints through rich, above whatever progress bar is there.

    Args:
        epochs: Print the state at the end of every epoch.
        rows: Layers that the table shows; the rest is counted.
    """

    shows_alerts = True

    def __init__(self, *, epochs: bool = True, rows: int = 8) -> None:
        self._epochs, self._rows = epochs, rows
        self._emit: Callable[[RenderableType], None] = _print
        self._told: set[tuple[str, str, int]] = set()
        self._shown: set[tuple[object, Severity]] = set()

    def open(self, run: Run) -> None:
        """Learn how to print beside the progress bar."""
        self._emit = run.emit or _print

    def alert(self, alert: Alert) -> None:
        """Print an alert that opened, got worse or was cleared."""
        self._emit(alert_block(alert, again=alert.key in self._told))
        self._told.add(alert.key)

    def epoch(self, summary: Summary) -> None:
        """Print the state: the table if an alert has come or gone since it was last shown, else one line."""
        if self._epochs:
            now: set[tuple[object, Severity]] = {
                (alert.key, alert.severity) for alert in summary.open(Severity.WARNING)
            }
            self._emit(health_table(summary, rows=self._rows if now != self._shown else 0))
            self._shown = now

    def close(self, summary: Summary) -> None:
        """Print the state with everything that is still open."""
        if summary.step >= 0:
            self._emit(health_table(summary, rows=self._rows, final=True))


def _print(renderable: RenderableType) -> None:
    import rich

    _show(rich.get_console(), renderable)


def _show(console: RichConsole, renderable: RenderableType) -> None:
    """Print; where the encoding lacks our signs, as that of a log file under Windows may, with plain ones."""
    try:
        "".join(map(chr, _PLAIN)).encode(console.encoding)
        console.print(renderable)
    except UnicodeEncodeError:
        with console.capture() as capture:
            console.print(renderable)
        plain = capture.get().translate(_PLAIN).encode(console.encoding, "replace")
        console.file.write(plain.decode(console.encoding))


def beside_bar(trainer: Any) -> Callable[[RenderableType], None]:
    """Return a print that leaves a Lightning progress bar whole.

    Rich's own bar sits on rich's global console, looked up at the time of printing since Lightning makes it anew. The
    tqdm bar needs ``tqdm.write``.
    """

    def emit(renderable: RenderableType) -> None:
        import rich
        from rich.console import Console as RichConsole

        console = rich.get_console()
        bar = getattr(trainer, "progress_bar_callback", None)
        if not any(c.__name__ == "TQDMProgressBar" for c in type(bar).__mro__):
            _show(console, renderable)
            return
        from tqdm import tqdm

        buffer = RichConsole(
            file=io.StringIO(), force_terminal=console.is_terminal, width=console.width, legacy_windows=False
        )
        buffer.print(renderable)
        assert isinstance(buffer.file, io.StringIO)
        tqdm.write(buffer.file.getvalue().rstrip("\n"))

    return emit
