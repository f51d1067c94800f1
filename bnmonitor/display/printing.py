"""Printing with bnmonitor's signs where the encoding has them, and with ASCII signs where it does not."""

from __future__ import annotations

import io
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from bnmonitor._undisturbed import undisturbed
from bnmonitor.display.tables import BARS

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_PLAIN = str.maketrans("✓✗·–…─σγβ²×" + BARS, "+x|-~-sgb2x" + "._-=+*%#")

_NOTEBOOK = 100
"""Widest line in a notebook. Rich assumes a wider cell, in which the reader would have to scroll."""


def prepare() -> None:
    """Import what printing needs, so that no line is the first to do so in the middle of a training."""
    for name in ("box", "console", "table", "text"):
        import_module(f"rich.{name}")


@undisturbed()
def show(renderable: RenderableType, console: Console | None = None) -> None:
    """Print a renderable.

    Args:
        renderable: What rich can print.
        console: The console to print to; None: rich's own.
    """
    import rich

    console = rich.get_console() if console is None else console
    if console.is_jupyter:
        console.print(renderable, width=min(console.width, _NOTEBOOK))
    elif console.is_terminal and writable(console):
        console.print(renderable)
    else:
        with console.capture() as capture:
            console.print(renderable)
        console.file.write(plainly(_trimmed(capture.get()), console.encoding))
        console.file.flush()


@undisturbed()
def drawn(renderable: RenderableType, console: Console) -> str:
    """Return the text that a console would print, for a caller that writes it itself."""
    from rich.console import Console as RichConsole

    buffer = RichConsole(
        file=io.StringIO(), force_terminal=console.is_terminal, width=console.width, legacy_windows=False
    )
    buffer.print(renderable)
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
