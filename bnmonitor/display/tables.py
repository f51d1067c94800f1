"""How alerts and layers look in a terminal; for what is recorded now and for what is read from a history alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bnmonitor._text import count, listing, number, printable, shorten
from bnmonitor.results import Alert, LayerSummary, Severity, StepSummary

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.text import Text

_MARKS = {Severity.INFO: ("·", "none"), Severity.WARNING: ("!", "yellow"), Severity.ERROR: ("✗", "red")}
BARS = "▁▂▃▄▅▆▇█"

_ILL = 60.0
"""Health of a layer with an open warning, at best."""

_TITLES = ("layer", "health", "batch σ²", "", "gap", "γ min", "silent", "alerts")
_GAP = 3
"""Blanks that rich leaves between two columns."""

_READERS = ("bnmonitor report", "tensorboard --logdir")


def alert_block(alert: Alert, *, fix: bool = True, now: bool = False, since: bool = True) -> RenderableType:
    """An alert in a few lines: what and where, the message, the fix, where to read more.

    Args:
        alert: The alert.
        fix: Say what to do; without, a line will do for one that was cleared.
        now: Say that it has got worse since it was shown.
        since: Say since when; an audit knows no steps.
    """
    from rich.table import Table
    from rich.text import Text

    gone = alert.state == "cleared"
    mark, style = ("✓", "none") if gone else _MARKS[alert.severity]
    head = Text()
    if not gone:
        head.append(f"{'now ' * now}{alert.severity} ", style=f"bold {style}")
    head.append(printable(f"{alert.code} {alert.rule}"), style="bold")
    if alert.layer is not None or (gone and not fix):
        head.append(f" · {printable(alert.layer or 'model')}")
    if gone and not fix:
        head.append(f" · cleared, last seen at step {alert.last_step}", style="dim")
        lines = [head]
    else:
        head.append(alert.extent, style="dim")
        if alert.channels:
            head.append(f" · channels {listing(alert.channels)}")
        if gone:
            lasted = alert.last_step > alert.first_step
            head.append(f" · cleared: step{'s' if lasted else ''} {alert.first_step}")
            head.append(f" to {alert.last_step}" if lasted else "")
        elif since:
            head.append(f" · since step {alert.first_step}")
        lines = [head, Text(printable(alert.message))]
    if fix:
        lines.append(Text.assemble(("fix: ", "bold"), printable(alert.advice)))
        if alert.url:
            lines.append(Text(printable(f"more: bnmonitor explain {alert.code}"), style="dim"))
    block = Table.grid(padding=(0, 1))
    block.add_column()
    block.add_column(overflow="fold")
    for line in lines:
        block.add_row(Text(mark if line is head else "", style=f"bold {style}"), line)
    return block


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


def health_table(summary: StepSummary, *, rows: int = 8, well: bool = False) -> RenderableType:
    """The worst layers first, with their course and their alerts; one line if nothing is wrong.

    Args:
        summary: The state.
        rows: Layers that the table shows; the rest is counted.
        well: Show layers that are well, too.
    """
    from rich.console import Group
    from rich.text import Text

    errors, warnings = summary.open(Severity.ERROR), summary.open(Severity.WARNING)
    style = "bold red" if errors else "bold yellow" if warnings else "bold"
    parts: list[RenderableType] = [Text(summary.headline(), style=style, overflow="fold")]
    worst = sorted(summary.rows, key=lambda row: row.health)
    shown = [row for row in worst if well or (warnings and row.health <= _ILL)][: max(0, rows)]
    if shown:
        parts.append(_LayerRows(shown))
        if len(worst) > len(shown):
            ill = sum(row.health <= _ILL for row in worst[len(shown) :])
            rest = count(len(worst) - len(shown), "more layer")
            parts.append(Text(f"{rest}{f', {ill} of them with alerts' if ill else ' ✓'}", style="dim"))
    return Group(*parts)


def final_summary(
    summary: StepSummary, *, rows: int = 8, well: bool = False, history: Sequence[str] = ()
) -> RenderableType:
    """All there is to say at the end: the layers, every alert with its fix, what was not checked, where the history is.

    Args:
        summary: The state.
        rows: Layers that the table shows, and alerts that are cleared or infos; the rest is counted.
        well: Show layers that are well, too.
        history: Directories that the run's history was written to.
    """
    from rich.console import Group
    from rich.text import Text

    parts = [health_table(summary, rows=rows, well=well)]
    parts += [alert_block(a) for a in sorted(summary.open(Severity.WARNING), key=lambda a: (-a.severity, a.first_step))]
    quiet = [a for a in summary.alerts if a.state == "cleared" or a.severity is Severity.INFO]
    if quiet:
        parts += [Text(""), Text("cleared, or only worth knowing:", style="dim")]
        parts += [alert_block(alert) for alert in quiet[-rows:]]
        if len(quiet) > rows:
            parts.append(Text(f"{count(len(quiet) - rows, 'earlier alert')} of this kind", style="dim"))
    if summary.skipped or history or any(row.recovery for row in summary.rows):
        parts.append(_footer(summary, history))
    return Group(*parts)


def unchecked(skipped: Mapping[str, str]) -> list[str]:
    """Say which rules could not run, a line for each reason.

    >>> unchecked({"a": "needs x", "b": "needs y", "c": "needs x"})
    ['a, c: needs x', 'b: needs y']
    """
    reasons: dict[str, list[str]] = {}
    for rule, why in skipped.items():
        reasons.setdefault(why, []).append(rule)
    return [f"{', '.join(rules)}: {why}" for why, rules in reasons.items()]


def _footer(summary: StepSummary, history: Sequence[str]) -> RenderableType:
    """What was not checked, what could not be recovered and where the history is, under one another."""
    from rich.table import Table
    from rich.text import Text

    blind: dict[str, list[str]] = {}
    for row in summary.rows:
        if row.recovery:
            blind.setdefault(row.recovery, []).append(printable(row.name))
    notes = {
        "not checked:": unchecked(summary.skipped),
        "no batch σ²:": [f"{listing(names, 3)}: {why}" for why, names in sorted(blind.items())],
        "history:": [f"{command} {place}" for place in history for command in _READERS],
    }
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold", style="dim")
    for label, lines in notes.items():
        for place, line in enumerate(lines):
            table.add_row(Text("" if place else label), Text(printable(line), overflow="fold"))
    return table


class _LayerRows:
    """A table of layers with as many columns as the console is wide for; the alerts are always there."""

    def __init__(self, rows: Sequence[LayerSummary]) -> None:
        self._rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        width = options.max_width
        lines = [_cells(row, 32 if width >= 75 else max(8, width // 2 - 8)) for row in self._rows]
        columns = [(title, [line[i] for line in lines]) for i, title in enumerate(_TITLES)]
        needs = [max(len(title), *map(len, cells)) + _GAP for title, cells in columns]
        # The layer, its health and its alerts first; then what else fits, from the left.
        left = width + _GAP - needs[0] - needs[1] - min(needs[-1], max(30, width // 3))
        fit = 2
        while fit < len(columns) - 1 and needs[fit] <= left:
            left -= needs[fit]
            fit += 1
        chosen = [*columns[:fit], columns[-1]]
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim", expand=False)
        for title, _ in chosen:
            right = title in ("health", "", "gap", "γ min", "silent")
            table.add_column(
                Text(title), justify="right" if right else "left", no_wrap=title != "alerts", overflow="fold"
            )
        for cells in zip(*(cells for _, cells in chosen), strict=True):
            table.add_row(*cells)
        yield table


def _cells(row: LayerSummary, width: int) -> list[Text]:
    from rich.text import Text

    mark, style = ("✗", "red") if row.health <= 20 else ("!", "yellow") if row.health <= _ILL else ("✓", "none")
    blank = "–"
    now = row.batch_var[-1] if row.batch_var else float("nan")
    return [
        Text(shorten(printable(row.name), width)),
        Text(f"{mark} {row.health:.0f}", style=style),
        Text(sparkline(row.batch_var)),
        Text(number(now) if now == now else blank),
        Text(f"{row.running_gap:.2f}σ" if row.running_gap == row.running_gap else blank),
        Text(f"{row.gamma_min:.2f}" if row.gamma_min == row.gamma_min else blank),
        Text(f"{100 * row.silent:.0f} %" if row.silent == row.silent else blank),
        Text(printable(", ".join(row.alerts))),
    ]
