"""An audit in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnmonitor._text import count, listing, number, printable, shorten
from bnmonitor.audit.judge import Audit
from bnmonitor.display import QUIET, STRONG, finding_block, unchecked

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

_BLANK = "–"


def audit_table(found: Audit, name: str, *, rows: int = 8) -> RenderableType:
    """Return the verdict, the worst layers, the alerts, and what was not checked.

    Args:
        found: The audit.
        name: What was audited.
        rows: Layers that the table shows; the rest is counted.
    """
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text(printable(name), style=QUIET, overflow="fold")]
    parts.append(Text(found.headline(), style=STRONG, overflow="fold"))
    if found.rows:
        parts.append(_Layers(found, rows))
    rest = len(found.rows) - rows
    parts += [Text(count(rest, "more layer"), style=QUIET)] if rest > 0 else []
    if found.moved:
        parts.append(Text(printable(_moved(found)), style=QUIET, overflow="fold"))
    if found.estimates is not None:
        parts.append(Text(printable(found.estimates.sentence()), overflow="fold"))
    parts += [finding_block(alert) for alert in found.alerts]
    parts += [
        Text(printable(f"not checked: {line}"), style=QUIET, overflow="fold") for line in unchecked(found.skipped)
    ]
    return Group(*parts)


class _Layers:
    """The worst layers, a line each: numbers are kept at any width, and names are cut in the middle."""

    def __init__(self, found: Audit, rows: int) -> None:
        order = sorted(range(len(found.rows)), key=lambda i: found.rows[i].health)
        self._lines = [_cells(found, i) for i in order[:rows]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        widths = [max(len(row[i]) for row in (_TITLES, *self._lines)) for i in range(len(_TITLES))]
        rest = sum(widths[1:]) + 2 * (len(_TITLES) - 1)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style=QUIET, padding=(0, 1, 0, 0))
        for title in _TITLES:
            table.add_column(title, justify="left" if title in ("layer", "found") else "right", no_wrap=True)
        for name, *cells in self._lines:
            table.add_row(Text(shorten(name, max(8, options.max_width - rest))), *cells)
        yield table


_TITLES = ("layer", "channels", "σ² least", "median", "most", "mean/σ", "γ min", "found")


def _cells(found: Audit, place: int) -> tuple[str, ...]:
    row = found.rows[place]
    numbers = [*found.spread[place], found.offset[place], row.gamma_min]
    cells = [_BLANK if value != value else number(value) for value in numbers]
    severity = {a.code: a.severity for a in reversed(found.alerts)}
    codes = sorted(dict.fromkeys(row.alerts), key=lambda code: -severity.get(code, 0))
    return printable(row.name), str(row.channels), *cells, listing(codes, 1)


def _moved(found: Audit) -> str:
    """How far the layers have moved from the reference, in a line."""
    middle = sorted(each.mean for each in found.moved)[len(found.moved) // 2]
    furthest = found.moved[0]
    return (
        f"since the reference, means have moved by {number(middle)}σ in the median layer, and the furthest is "
        f"{furthest.layer}: mean {number(furthest.mean)}σ, log deviation {number(furthest.deviation)}, "
        f"γ {number(100 * furthest.gamma)} %"
    )


def audit_line(found: Audit, name: str) -> str:
    """Return one line: the verdict, the rules that found something, and how many layers could not be judged."""
    rules = ", ".join(dict.fromkeys(f"{alert.code} {alert.rule}" for alert in found.alerts))
    left_out = sum(what.startswith("layer ") for what in found.skipped)
    parts = [found.headline(), rules, f"{count(left_out, 'layer')} not checked" if left_out else ""]
    return f"{printable(name)}: {' · '.join(part for part in parts if part)}"
