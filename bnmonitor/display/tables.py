"""How layers look in a terminal, both while a run is recorded and when its history is read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bnmonitor._text import count, listing, number, printable, shorten
from bnmonitor.display import styles
from bnmonitor.display.alerts import alert_block
from bnmonitor.history.statistics import BY_NAME
from bnmonitor.results import LayerSummary, Severity, StepSummary, health_severity

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.text import Text

BARS = "▁▂▃▄▅▆▇█"

_TITLES = (
    "layer",
    *(BY_NAME[name].short for name in ("health", "batch_var")),
    "",
    *(BY_NAME[name].short for name in ("mean_lag", "gamma_min", "silent")),
    "alerts",
)
_TEXTS = ("layer", BY_NAME["batch_var"].short, "alerts")
"""Columns of text, which begin on the left."""

_GAP = 3
"""Blanks that rich puts between two columns."""

_READERS = ("bnmonitor report", "tensorboard --logdir")


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
    """Return a table of the worst layers with their course and alerts; one line if nothing is wrong.

    Args:
        summary: The state.
        rows: Layers that the table shows; the rest is counted.
        well: Show healthy layers too.
    """
    from rich.console import Group
    from rich.text import Text

    warnings = summary.open(Severity.WARNING)
    style = styles.strong(styles.OF_SEVERITY[max(alert.severity for alert in warnings)]) if warnings else styles.STRONG
    parts: list[RenderableType] = [Text(summary.headline(), style=style, overflow="fold")]
    worst, ill = sorted(summary.rows, key=lambda row: row.health), summary.ill()
    shown = (worst if well else ill if warnings else [])[: max(0, rows)]
    if shown:
        parts.append(_LayerRows(shown))
        if len(worst) > len(shown):
            left = max(0, len(ill) - len(shown))
            rest = count(len(worst) - len(shown), "more layer")
            parts.append(Text(f"{rest}{f', {left} of them with alerts' if left else ' ✓'}", style=styles.QUIET))
    return Group(*parts)


def final_summary(
    summary: StepSummary, *, rows: int = 8, well: bool = False, history: Sequence[str] = ()
) -> RenderableType:
    """Return the report at the end of a run: layers, alerts with fixes, what was not checked, place of the history.

    Args:
        summary: The state.
        rows: Layers that the table shows, and alerts that are cleared or infos; the rest is counted.
        well: Show healthy layers too.
        history: Directories that the run's history was written to.
    """
    from rich.console import Group
    from rich.text import Text

    parts = [health_table(summary, rows=rows, well=well)]
    parts += [alert_block(a) for a in sorted(summary.open(Severity.WARNING), key=lambda a: (-a.severity, a.first_step))]
    quiet = [a for a in summary.alerts if a.state == "cleared" or a.severity is Severity.INFO]
    if quiet:
        parts += [Text(""), Text("cleared, or only worth knowing:", style=styles.QUIET)]
        parts += [alert_block(alert) for alert in quiet[-rows:]]
        if len(quiet) > rows:
            parts.append(Text(f"{count(len(quiet) - rows, 'earlier alert')} of this kind", style=styles.QUIET))
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
    """Return notes on what was not checked, what could not be recovered, and where the history is."""
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
    table.add_column(no_wrap=True, style=styles.QUIET)
    table.add_column(overflow="fold", style=styles.QUIET)
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
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style=styles.QUIET, expand=False)
        for title, _ in chosen:
            table.add_column(
                Text(title),
                justify="left" if title in _TEXTS else "right",
                no_wrap=title != "alerts",
                overflow="fold",
            )
        for cells in zip(*(cells for _, cells in chosen), strict=True):
            table.add_row(*cells)
        yield table


def _cells(row: LayerSummary, width: int) -> list[Text]:
    from rich.text import Text

    severity = health_severity(row.health)
    mark = "✓" if severity is Severity.INFO else severity.mark
    blank = "–"
    now = row.batch_var[-1] if row.batch_var else float("nan")
    return [
        Text(shorten(printable(row.name), width)),
        Text(f"{mark} {row.health:.0f}", style=styles.OF_SEVERITY[severity]),
        Text(sparkline(row.batch_var)),
        Text(number(now) if now == now else blank),
        Text(f"{row.running_gap:.2f}σ" if row.running_gap == row.running_gap else blank),
        Text(f"{row.gamma_min:.2f}" if row.gamma_min == row.gamma_min else blank),
        Text(f"{100 * row.silent:.0f} %" if row.silent == row.silent else blank),
        Text(printable(", ".join(row.alerts))),
    ]
