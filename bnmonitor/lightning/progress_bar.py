"""Print above a Lightning progress bar, and show a short text inside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bnmonitor._undisturbed import undisturbed
from bnmonitor.display import drawn, plainly, show
from bnmonitor.lightning.private import paused

if TYPE_CHECKING:
    from rich.console import RenderableType


def beside_bar(trainer: Any) -> Callable[[RenderableType], None]:
    """Return a print function that does not break a Lightning progress bar.

    Rich's own bar uses rich's global console, which is looked up at each print because Lightning replaces it. The tqdm
    bar needs ``tqdm.write``; in a notebook it is a widget, and the output is displayed next to it.
    """

    @undisturbed()
    def emit(renderable: RenderableType) -> None:
        import rich

        console = rich.get_console()
        bar = getattr(trainer, "progress_bar_callback", None)
        if console.is_jupyter or not any(c.__name__ == "TQDMProgressBar" for c in type(bar).__mro__):
            with paused(bar):
                show(renderable, console)
            return
        from tqdm import tqdm

        tqdm.write(drawn(renderable, console).rstrip("\n"))

    return emit


def inside_bar(trainer: Any) -> Callable[[str], None] | None:
    """Return a function that shows a short text among a Lightning progress bar's metrics; None without a bar."""
    bar = getattr(trainer, "progress_bar_callback", None)
    if bar is None or getattr(bar, "is_disabled", False):
        return None

    @undisturbed()
    def status(text: str) -> None:
        import rich

        # A narrow terminal cuts the bar at its end, so the text goes first.
        metrics = trainer.progress_bar_metrics
        others = {name: value for name, value in metrics.items() if name != "bn"}
        metrics.clear()
        metrics["bn"] = plainly(text, rich.get_console().encoding)
        metrics.update(others)

    return status
