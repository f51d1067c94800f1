"""How alerts and layers look in a terminal; for what is recorded now and for what is read from a history alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bnmonitor._text import count, listing, number, printable, shorten
from bnmonitor.verdict import Alert, LayerSummary, Severity, State

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

_MARKS = {Severity.INFO: ("·", "none"), Severity.WARNING: ("!", "yellow"), Severity.ERROR: ("✗", "red")}
BARS = "▁▂▃▄▅▆▇█"


def alert_block(alert: Alert, *, again: bool = False, since: bool = True) -> RenderableType:
    """An alert in a few lines: what and where, the message, the fix, where to read more.

    Args:
        alert: The alert.
        again: It was shown before and got worse: the fix need not be repeated.
        since: Say since when; an audit knows no steps.
    """
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    mark, style = _MARKS[alert.severity]
    head = Text()
    if alert.state == "cleared":
        head.append("✓ ", style="bold")
        head.append(f"{alert.code} {alert.rule}", style="bold")
        head.append(
            f" · {printable(alert.layer or 'model')} · cleared, last seen at step {alert.last_step}", style="dim"
        )
        return head
    head.append(f"{mark} {'now ' if again else ''}{alert.severity} ", style=f"bold {style}")
    head.append(f"{alert.code} {alert.rule}", style="bold")
    if alert.layer is not None:
        head.append(f" · {printable(alert.layer)}")
        head.append(alert.extent, style="dim")
    if alert.channels:
        head.append(f" · channels {listing(alert.channels)}")
    if since:
        head.append(f" · since step {alert.first_step}")
    lines = [Text(printable(alert.message))]
    if not again:
        lines.append(Text.assemble(("fix: ", "bold"), printable(alert.advice)))
        if alert.url:
            lines.append(Text(f"more: bnmonitor explain {alert.code}", style="dim"))
    return Group(head, *(Padding(line, (0, 0, 0, 2), expand=False) for line in lines))


def sparkline(values: Sequence[float], width: int = 12) -> str:
    """Draw values as a line of bars over their own log range; a blank where there is no value.

    >>> sparkline((1.0, 10.0, 100.0), width=3)
    '▁▅█'
    """
    step = max(1, -(-len(values) // width))
    parts = [values[i : i + step] for i in range(0, len(values), step)]
    tops = [max((v for v in part if v == v and 0 < v < math.inf), default=None) for part in parts]
    logs = [math.log(v) for v in tops if v is not None]
    if not logs:
        return ""
    low, spread = min(logs), max(max(logs) - min(logs), math.log(2.0))
    return "".join(
        " " if v is None else BARS[min(len(BARS) - 1, int((math.log(v) - low) / spread * len(BARS)))] for v in tops
    )


def health_table(summary: State, *, rows: int = 8, final: bool = False) -> RenderableType:
    """The worst layers first, with their course and their alerts; one line if nothing is wrong."""
    from rich.console import Group
    from rich.text import Text

    errors, warnings = summary.open(Severity.ERROR), summary.open(Severity.WARNING)
    style = "bold red" if errors else "bold yellow" if warnings else "bold"
    parts: list[RenderableType] = [Text(summary.headline(), style=style, overflow="fold")]
    worst = sorted(summary.rows, key=lambda row: row.health)
    shown = [row for row in worst if row.health <= 60][:rows] if warnings else []
    if shown:
        parts.append(_LayerRows(shown))
        if len(worst) > len(shown):
            ill = sum(row.health <= 60 for row in worst) - len(shown)
            rest = count(len(worst) - len(shown), "more layer")
            parts.append(Text(f"{rest}{f', {ill} of them with alerts' if ill else ' ✓'}", style="dim"))
    if final:
        parts += [alert_block(alert) for alert in warnings]
        reasons = dict.fromkeys(summary.skipped.values())
        for why in reasons:
            rules = ", ".join(rule for rule, reason in summary.skipped.items() if reason == why)
            parts.append(Text(f"not checked: {rules}: {why}", style="dim"))
        missing = sorted({row.recovery for row in summary.rows if row.recovery})
        for why in missing:
            names = listing([printable(row.name) for row in summary.rows if row.recovery == why], 3)
            parts.append(Text(f"no batch statistics: {names}: {why}", style="dim"))
    return Group(*parts)


class _LayerRows:
    """A table of layers with as many columns as the console is wide for; the alerts are always there."""

    def __init__(self, rows: Sequence[LayerSummary]) -> None:
        self._rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich import box
        from rich.table import Table

        width = options.max_width
        titles = {
            "layer": 0,
            "health": 0,
            "batch σ²": 75,
            "": 105,
            "gap": 105,
            "γ min": 105,
            "silent": 105,
            "alerts": 0,
        }
        fit = [title for title, least in titles.items() if width >= least]
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim", expand=False)
        for title in fit:
            right = title in ("gap", "γ min", "silent", "health")
            last = title == "alerts"
            table.add_column(title, justify="right" if right else "left", no_wrap=not last, overflow="fold")
        for row in self._rows:
            cells = dict(zip(titles, _cells(row, 32 if width >= 75 else max(8, width // 2 - 8)), strict=True))
            table.add_row(*(cells[title] for title in fit))
        yield table


def _cells(row: LayerSummary, width: int) -> list[Any]:
    from rich.text import Text

    mark, style = ("✗", "red") if row.health <= 20 else ("!", "yellow")
    blank = "–"
    now = row.batch_var[-1] if row.batch_var else float("nan")
    return [
        Text(shorten(printable(row.name), width)),
        Text(f"{mark} {row.health:.0f}", style=style),
        Text(sparkline(row.batch_var)),
        number(now) if now == now else blank,
        f"{row.running_gap:.2f}σ" if row.running_gap == row.running_gap else blank,
        f"{row.gamma_min:.2f}" if row.gamma_min == row.gamma_min else blank,
        f"{100 * row.silent:.0f} %" if row.silent == row.silent else blank,
        Text(", ".join(row.alerts)),
    ]
