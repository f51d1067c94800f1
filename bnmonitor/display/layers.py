"""The table of layers: one line a layer, the numbers kept in a narrow terminal and the words cut."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bnmonitor._text import count, number, printable, shorten, thousands
from bnmonitor.display import styles
from bnmonitor.history.statistics import BY_NAME
from bnmonitor.results import NEAR_LIMIT, Incident, LayerSummary, Severity, StepSummary

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

BARS = "▁▂▃▄▅▆▇█"

_BLANK = "–"
_WIDE = 100
"""Width of a terminal from which the titles of the columns are written out."""

_LAYER = (12, 40)
"""Least and most width of the column of layers."""

_WORDS = 10
"""Columns that a long name leaves to the words."""

_FOLDED = 2
"""Fewest layers that a line stands for: one layer has a row of its own instead."""


@dataclass(frozen=True)
class _Row:
    """A layer, and what its row says."""

    summary: LayerSummary
    severity: Severity
    since: str
    what: str
    same: int = 0
    """How many more layers the row stands for."""

    @property
    def near(self) -> bool:
        return self.severity is Severity.INFO and self.summary.seen and self.summary.health <= NEAR_LIMIT

    @property
    def mark(self) -> str:
        if self.severity > Severity.INFO:
            return self.severity.mark
        return "·" if self.near or not self.summary.seen else "✓"

    @property
    def style(self) -> str:
        return styles.NEAR if self.near else styles.OF_SEVERITY[self.severity]


class LayerTable:
    """Layers, the worst first. Layers with the same incident and the same beginning share the row of one of them.

    Args:
        summary: The state.
        rows: How many rows; the rest is counted.
        well: Whether healthy layers have rows, too.
    """

    def __init__(self, summary: StepSummary, *, rows: int, well: bool) -> None:
        self._span = summary.span
        found = _rows(summary)
        chosen = [row for row in found if well or row.severity > Severity.INFO]
        began = {incident.layer for incident in summary.open_incidents()}
        # The layers where incidents began come first, and the order is kept.
        first = sorted(chosen, key=lambda row: row.summary.name not in began)[: max(0, rows)]
        shown = [row for row in chosen if row in first]
        self._rows = shown
        self._rest = _rest([row for row in found if row not in shown]) if shown else ""

    def __bool__(self) -> bool:
        return bool(self._rows)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the table in the columns that the terminal has."""
        from rich.text import Text

        width = options.max_width
        columns = _columns(self._rows, self._span if width >= _WIDE else "")
        names = max(_LAYER[0], min(_LAYER[1], max(len(printable(row.summary.name)) for row in self._rows)))
        room = width - 2  # the sign of the severity
        while len(columns) > 1 and _width(columns) > room - _LAYER[0]:
            columns.pop()
        names = max(_LAYER[0], min(names, room - _width(columns) - 2 - _WORDS))
        words = room - _width(columns) - 2 - names
        titles = ["layer".ljust(names + 2), *(column[0] for column in columns), *(["what"] if words > 3 else [])]
        yield Text("  ".join(titles).rstrip(), style=styles.QUIET, no_wrap=True, overflow="crop")
        for i, row in enumerate(self._rows):
            line = Text(no_wrap=True, overflow="crop")
            line.append(f"{shorten(printable(row.summary.name), names):{names}} ")
            line.append(row.mark, style=row.style)
            line.append("".join(f"  {column[i + 1]}" for column in columns))
            if words > 3:
                line.append("  ").append(_cut(row.what, words), style=row.style)
            line.rstrip()
            yield line
            if row.same:
                since = f"the same since {row.since}" if row.since else "the same"
                text = f"{count(row.same, 'layer')}, {since}"
                yield Text(_cut(text, width), style=styles.QUIET, no_wrap=True, overflow="crop")
        if self._rest:
            yield Text(self._rest, style=styles.QUIET, overflow="fold")


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


def _rows(summary: StepSummary) -> list[_Row]:
    """The rows, the worst first; the layer where an incident began stands for those that are like it."""
    found: dict[str, list[Incident]] = {}
    for incident in summary.open_incidents():
        for name in incident.layers:
            found.setdefault(name, []).append(incident)
    origins = {incident.layer for incident in summary.open_incidents()}
    rows = [_row(row, found.get(row.name, [])) for row in summary.rows]
    rows.sort(key=lambda row: (-row.severity, row.summary.name not in origins, row.summary.health))
    alike: dict[tuple[object, ...], list[_Row]] = {}
    for i, row in enumerate(rows):
        alike.setdefault((row.severity, row.since, row.what) if row.severity > Severity.INFO else (i,), []).append(row)
    shown: list[_Row] = []
    for first, *others in alike.values():
        folds = len(others) >= _FOLDED
        shown += [replace(first, same=len(others))] if folds else [first, *others]
    return shown


def _row(row: LayerSummary, incidents: Sequence[Incident]) -> _Row:
    """What is open in a layer: its own alerts if it has any, otherwise the incident that it belongs to."""
    if incidents:
        worst = incidents[0]
        own = [a for i in incidents for a in i.evidence if a.state == "open" and row.name in a.layers]
        names = dict.fromkeys(a.rule for a in sorted(own, key=lambda a: (-a.severity, a.first_step)))
        since = min((a.first_step for a in own), default=worst.first_step)
        return _Row(row, worst.severity, thousands(since), printable(", ".join(names) or worst.cause))
    note = _Row(row, Severity.INFO, "", "")
    if not row.seen:
        return _Row(row, Severity.INFO, "", f"not seen: {row.recovery or 'it did not run'}")
    return _Row(row, Severity.INFO, "", "near its limit" if note.near else "" if row.settled else "warming up")


def _rest(left: Sequence[_Row]) -> str:
    """How many layers have no row, and how they are."""
    ill = sum(1 + row.same for row in left if row.severity > Severity.INFO)
    unseen = sum(not row.summary.seen for row in left if row.severity is Severity.INFO)
    near = sum(row.near for row in left)
    more = sum(1 + row.same for row in left)
    if not more:
        return ""
    says = [f"{ill} with an incident"] if ill else []
    says += [f"{unseen} not seen"] if unseen else []
    says += [f"{near} near its limit"] if near else []
    return count(more, "more layer") + ("".join(f", {each}" for each in says) or " ✓")


def _columns(rows: Sequence[_Row], span: str) -> list[list[str]]:
    """The columns of numbers, each with its title, padded to one width; the first ones stay in a narrow terminal."""
    summaries = [row.summary for row in rows]
    now = _aligned([row.batch_var[-1] if row.batch_var else math.nan for row in summaries])
    lines = [f"{sparkline(row.batch_var, 8):8} " if any(v == v for v in row.batch_var) else "" for row in summaries]
    wide = bool(span)
    variance = BY_NAME["batch_var"].short
    gap = BY_NAME["mean_lag"].title if wide else BY_NAME["mean_lag"].short
    drawn = [f"{line:9}{value}" if any(lines) else value for line, value in zip(lines, now, strict=True)]
    columns = [
        _padded(f"{variance} ({span})" if wide else variance, drawn, left=True),
        _padded(gap, _known(summaries, "running_gap", "{:.2f}σ")),
        _padded(BY_NAME["gamma_min"].short, _known(summaries, "gamma_min", "{:.2f}")),
        _padded("dead", [f"{100 * r.silent:.0f} %" if r.silent == r.silent else _BLANK for r in summaries]),
    ]
    if any(row.since for row in rows):
        columns.append(_padded("since", [row.since for row in rows]))
    return columns


def _known(rows: Iterable[LayerSummary], name: str, form: str) -> list[str]:
    values = [getattr(row, name) for row in rows]
    return [form.format(value) if value == value else _BLANK for value in values]


def _aligned(values: Sequence[float]) -> list[str]:
    """Numbers under one another, the decimal points in one column."""
    texts = [number(value) if value == value else _BLANK for value in values]
    heads = [len(text.split(".")[0].split("e")[0]) for text in texts]
    return [" " * (max(heads, default=0) - head) + text for text, head in zip(texts, heads, strict=True)]


def _padded(title: str, cells: Sequence[str], *, left: bool = False) -> list[str]:
    width = max(map(len, (title, *cells)))
    return [cell.ljust(width) if left else cell.rjust(width) for cell in (title, *cells)]


def _width(columns: Sequence[Sequence[str]]) -> int:
    return sum(2 + len(column[0]) for column in columns)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: max(0, width - 1)]}…"
