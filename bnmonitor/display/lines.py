"""Lines that fit a terminal: the longest of several forms, the rest of it under a hanging indent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.text import Text


_unfolded: ContextVar[bool] = ContextVar("unfolded", default=False)


@dataclass(frozen=True)
class Line:
    """One line in several forms, the most complete first.

    Attributes:
        forms: The forms.
        mark: What stands before the line, such as the sign of a severity.
        indent: Columns for the mark; a line that is folded goes on behind them.
    """

    forms: Sequence[Text]
    mark: Text | None = None
    indent: int = 0


@contextmanager
def unfolded() -> Iterator[None]:
    """Draw each line in one piece, for a file, where a search then finds all of it."""
    before = _unfolded.set(True)
    try:
        yield
    finally:
        _unfolded.reset(before)


class Lines:
    """Lines under one another.

    Each takes the first form that fits, and is folded if none does. Within :func:`unfolded` it takes the first form in
    one piece.

    Args:
        lines: The lines.
    """

    def __init__(self, *lines: Line) -> None:
        self._lines = lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the lines."""
        for line in self._lines:
            if _unfolded.get():
                yield _whole(line)
            else:
                room = max(1, options.max_width - line.indent)
                fitting = (form for form in line.forms if form.cell_len <= room)
                yield _folded(line, next(fitting, line.forms[-1]))


def _whole(line: Line) -> Text:
    from rich.text import Text

    found = Text(no_wrap=True, overflow="ignore")
    if line.indent:
        mark = line.mark or Text()
        found.append_text(mark).append(" " * (line.indent - mark.cell_len))
    return found.append_text(line.forms[0])


def _folded(line: Line, form: Text) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    form = form.copy()
    form.overflow = "fold"
    if not line.indent:
        return form
    grid = Table.grid(padding=0)
    grid.add_column(width=line.indent, no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(line.mark or Text(), form)
    return grid
