"""Print beside a Lightning progress bar, and put a word into it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from bnmonitor.display import drawn, plainly, show

if TYPE_CHECKING:
    from rich.console import RenderableType


def beside_bar(trainer: Any) -> Callable[[RenderableType], None]:
    """Return a print that leaves a Lightning progress bar whole.

    Rich's own bar sits on rich's global console, looked up at the time of printing since Lightning makes it anew. The
    tqdm bar needs ``tqdm.write``; in a notebook it is a widget, beside which everything is displayed.
    """

    def emit(renderable: RenderableType) -> None:
        import rich

        console = rich.get_console()
        bar = getattr(trainer, "progress_bar_callback", None)
        if console.is_jupyter or not any(c.__name__ == "TQDMProgressBar" for c in type(bar).__mro__):
            with _still(bar):
                show(renderable, console)
            return
        from tqdm import tqdm

        tqdm.write(drawn(renderable, console).rstrip("\n"))

    return emit


def _still(bar: Any) -> AbstractContextManager[Any]:
    """Keep the thread that draws a bar of rich's from drawing amid a print: a bar of several lines would be torn."""
    live = getattr(getattr(bar, "progress", None), "live", None)
    lock: Any = getattr(live, "_lock", nullcontext())
    held: AbstractContextManager[Any] = lock
    return held


def inside_bar(trainer: Any) -> Callable[[str], None] | None:
    """Return what shows a word among a Lightning progress bar's metrics, which stays whole; None without a bar."""
    bar = getattr(trainer, "progress_bar_callback", None)
    if bar is None or getattr(bar, "is_disabled", False):
        return None

    def status(word: str) -> None:
        import rich

        # A narrow terminal cuts the bar at its end, so the word goes first.
        metrics = trainer.progress_bar_metrics
        others = {name: value for name, value in metrics.items() if name != "bn"}
        metrics.clear()
        metrics["bn"] = plainly(word, rich.get_console().encoding)
        metrics.update(others)

    return status
