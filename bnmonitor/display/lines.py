"""Lines that fit a terminal: the longest of several forms, the rest of it under a hanging indent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.text import Text


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


class Lines:
    """Lines under one another.

    Each takes the first form that fits, and is folded if none does. Where lines are not wrapped, as in a file, it takes
    the first form in one piece.

    Args:
        lines: The lines.
    """

    def __init__(self, *lines: Line) -> None:
        self._lines = lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the lines."""
        for line in self._lines:
            if options.no_wrap:
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
