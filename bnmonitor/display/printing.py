"""Printing with bnmonitor's signs where the encoding has them, and with ASCII signs where it does not."""

from __future__ import annotations

import io
import sys
from contextlib import nullcontext
from importlib import import_module
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from bnmonitor._undisturbed import undisturbed
from bnmonitor.display.layers import BARS
from bnmonitor.display.lines import unfolded

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_PLAIN = str.maketrans("✓✗·–…─→σγβ²×" + BARS, "+x|-~->sgb2x" + "._-=+*%#")

_NOTEBOOK = 100
"""Widest line in a notebook. Rich assumes a wider cell, in which the reader would have to scroll."""


def prepare() -> None:
    """Import what printing needs, so that no line is the first to do so in the middle of a training."""
    for name in ("box", "console", "table", "text"):
        import_module(f"rich.{name}")


@undisturbed()
def show(renderable: RenderableType, console: Console | None = None) -> None:
    """Print a renderable, above a progress bar of rich or tqdm if one is being drawn.

    Args:
        renderable: What rich can print.
        console: The console to print to; None: that of a progress bar of rich, or else rich's own.
    """
    import rich

    if console is None:
        console = _drawing() or rich.get_console()
    bars = [] if console.is_jupyter else _live_bars()
    if console.is_jupyter:
        console.print(renderable, width=min(console.width, _NOTEBOOK))
        return
    if any(bar.fp.isatty() for bar in bars):
        type(bars[0]).write(drawn(renderable, console).rstrip("\n"), file=console.file)
        return
    for bar in bars:
        _end_line(bar)
    if console.is_terminal and writable(console):
        if "fastprogress" in sys.modules:  # its bar is a line without an end, which only the next update would replace
            console.file.write("\r\x1b[K")
        console.print(renderable)
    else:
        with console.capture() as capture, unfolded():
            console.print(renderable, crop=False)
        console.file.write(plainly(_trimmed(capture.get()), console.encoding))
        console.file.flush()


def _live_bars() -> list[Any]:
    """Return the bars that tqdm draws now. It never imports tqdm."""
    bars = getattr(sys.modules.get("tqdm.std"), "tqdm", None)
    return [bar for bar in list(getattr(bars, "_instances", ())) if not getattr(bar, "disable", True)]


_ended: WeakKeyDictionary[Any, float] = WeakKeyDictionary()
"""When each bar whose line was ended had been drawn last."""


def _end_line(bar: Any) -> None:
    """End the line of a bar in a file, where it cannot be cleared, unless nothing was drawn since."""
    if bar.last_print_t != _ended.get(bar):
        bar.fp.write("\n")
        bar.fp.flush()
        _ended[bar] = bar.last_print_t


def _drawing() -> Console | None:
    """Return the console of a progress bar of rich that has taken standard output over; None if there is none."""
    console = getattr(sys.stdout, "_FileProxy__console", None)
    known = sys.modules.get("rich.console")
    return console if known is not None and isinstance(console, known.Console) else None


@undisturbed()
def drawn(renderable: RenderableType, console: Console) -> str:
    """Return the text that a console would print, for a caller that writes it itself."""
    from rich.console import Console as RichConsole

    buffer = RichConsole(
        file=io.StringIO(), force_terminal=console.is_terminal, width=console.width, legacy_windows=False
    )
    with nullcontext() if console.is_terminal else unfolded():
        buffer.print(renderable, crop=False)
    assert isinstance(buffer.file, io.StringIO)
    return plainly(_trimmed(buffer.file.getvalue()), console.encoding)


def say(text: str) -> None:
    """Print a text and a line break."""
    sys.stdout.write(plainly(text + "\n", sys.stdout.encoding or "utf-8"))


def plainly(text: str, encoding: str) -> str:
    """Return a text that can be written in an encoding.

    >>> plainly("✗ 0.1σ, слой", "ascii")
    'x 0.1s, ????'
    """
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_PLAIN).encode(encoding, "replace").decode(encoding)
    return text


def writable(console: Console) -> bool:
    """Return whether the console's encoding has all of bnmonitor's signs."""
    signs = "".join(map(chr, _PLAIN))
    return plainly(signs, console.encoding) == signs


def _trimmed(text: str) -> str:
    """Remove the blanks that rich fills lines with: they are noise in a file, and in copied text."""
    return "".join(f"{line.rstrip(' ')}\n" for line in text.splitlines())
