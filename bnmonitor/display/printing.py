"""Printing for people: with our signs where the encoding has them, and with plain ones where it has not."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

from bnmonitor.display.tables import BARS

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_PLAIN = str.maketrans("✓✗·–…─σγβ²×" + BARS, "+x|-~-sgb2x" + "._-=+*%#")

_NOTEBOOK = 100
"""Widest line in a notebook, which shows about so many; rich takes it for wider, and a cell would be scrolled."""


def show(renderable: RenderableType, console: Console | None = None) -> None:
    """Print a renderable.

    Args:
        renderable: What rich can print.
        console: Where to; None: rich's own.
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


def drawn(renderable: RenderableType, console: Console) -> str:
    """Return what a console would print, for something else to write there."""
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
    """Whether the console's encoding has all our signs."""
    signs = "".join(map(chr, _PLAIN))
    return plainly(signs, console.encoding) == signs


def _trimmed(text: str) -> str:
    """Without the blanks that rich fills lines with: they are noise in a file, and in what is copied from one."""
    return "".join(f"{line.rstrip(' ')}\n" for line in text.splitlines())
