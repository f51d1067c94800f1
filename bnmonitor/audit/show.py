"""An audit in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnmonitor._text import count, number, printable, shorten
from bnmonitor.audit.judge import Audit
from bnmonitor.display import QUIET, STRONG, finding_block, unchecked

if TYPE_CHECKING:
    from rich.console import RenderableType

_BLANK = "–"


def audit_table(found: Audit, name: str, *, rows: int = 8) -> RenderableType:
    """Return the verdict, the worst layers, the alerts, and what was not checked.

    Args:
        found: The audit.
        name: What was audited.
        rows: Layers that the table shows; the rest is counted.
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = [Text(printable(name), style=QUIET, overflow="fold")]
    parts.append(Text(found.headline(), style=STRONG, overflow="fold"))
    order = sorted(range(len(found.rows)), key=lambda i: found.rows[i].health)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style=QUIET)
    for title in ("layer", "channels", "least σ²", "median σ²", "most σ²", "mean/σ", "γ min", "found"):
        table.add_column(title, justify="left" if title in ("layer", "found") else "right", overflow="fold")
    for i in order[:rows]:
        row = found.rows[i]
        numbers = [*found.spread[i], found.offset[i], row.gamma_min]
        cells = [_BLANK if value != value else number(value) for value in numbers]
        table.add_row(Text(shorten(printable(row.name), 28)), str(row.channels), *cells, Text(", ".join(row.alerts)))
    if found.rows:
        parts.append(table)
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
    """Return one line: the verdict and the rules that found something."""
    rules = ", ".join(dict.fromkeys(f"{alert.code} {alert.rule}" for alert in found.alerts))
    return f"{printable(name)}: {found.headline()}{f' · {rules}' if rules else ''}"
