"""Comparison of any number of recorded runs: each against the first, a row a run."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bnmonitor._text import count, number, printable, shorten, thousands
from bnmonitor.display import QUIET, STRONG, WORSE
from bnmonitor.history.run import History
from bnmonitor.report.compare import Comparison, compare
from bnmonitor.report.read import Report

if TYPE_CHECKING:
    from rich.console import RenderableType

SCHEMA = 3
"""Version of what :func:`to_dict` returns; it changes only if a field changes its meaning or goes."""


def several(runs: Sequence[tuple[History, str]]) -> tuple[Comparison, ...]:
    """Compare each run but the first with the first; each is given as a history and a run's name in it."""
    return tuple(compare(runs[0], run) for run in runs[1:])


def to_dict(found: Sequence[Comparison]) -> dict[str, Any]:
    """Return plain types that JSON can hold: the runs, the first one first, and each comparison with it."""
    return {
        "schema": SCHEMA,
        "runs": [_about(each) for each in _reports(found)],
        "comparisons": [each.to_dict() for each in found],
    }


def headline(found: Sequence[Comparison]) -> str:
    """One line: how many runs are worse than the first, and which have no open incident."""
    reports = _reports(found)
    worse = sum(map(is_worse, found))
    healthy = sum(not each.open_incidents() for each in reports)
    mark = "✗" if worse else "✓"
    return (
        f"BatchNorm {mark} {count(len(reports), 'run')}: {healthy} without an open incident, "
        f"{worse} worse than the first"
    )


def is_worse(found: Comparison) -> bool:
    """Return whether a run has an incident that the first has not, or a layer that is worse."""
    return bool(found.came or found.worse)


def terminal(found: Sequence[Comparison], *, rows: int = 12) -> RenderableType:
    """Return a table for a terminal, a row a run.

    Args:
        found: Each run against the first.
        rows: Runs that are shown; the rest is counted.
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    reports = _reports(found)
    names = [shorten(printable(name), 28) for name in _names(reports)]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style=QUIET, expand=True)
    for title in ("run", "loss", "lr", "health", "verdict", "against first"):
        right = title in ("loss", "lr", "health")
        words = title in ("verdict", "against first")
        # Where there is little room the words are cut, never a number.
        table.add_column(title, justify="right" if right else "left", no_wrap=True, ratio=1 if words else None)
    for i, (name, each) in enumerate(zip(names[:rows], reports, strict=False)):
        worst, more = each.open_incidents()[:1], len(each.open_incidents()) - 1
        if worst:
            others = f" (+{more})" if more else ""
            said = Text(
                f"{worst[0].severity.mark} {worst[0].title}{others}, since {thousands(worst[0].first_step)}",
                style=WORSE,
            )
        else:
            said = Text("✓ no open incident")
        health = "–" if each.health is None or math.isnan(each.health) else f"{each.health:.0f}"
        against = _against(found[i - 1]) if i else Text("the first", style=QUIET)
        table.add_row(Text(name), _known(each.loss), _rates(each), health, said, against)
    parts: list[RenderableType] = [Text(headline(found), style=STRONG, overflow="fold"), table]
    rest = len(reports) - rows
    parts += [Text(f"{count(rest, 'more run')} (--rows {len(reports)} shows all)", style=QUIET)] if rest > 0 else []
    hint = "`bnmonitor compare` with two of them shows what differs, layer by layer"
    parts.append(Text(hint, style=QUIET, overflow="fold"))
    return Group(*parts)


def _reports(found: Sequence[Comparison]) -> list[Report]:
    return [found[0].before, *(each.after for each in found)]


def _names(reports: Sequence[Report]) -> list[str]:
    """Return the paths below the directory that all of them are in."""
    paths = [str(each.path.resolve()) for each in reports]
    common = os.path.commonpath(paths)
    return [os.path.relpath(path, common) for path in paths]


def _about(each: Report) -> dict[str, Any]:
    worst = each.open_incidents()
    return {
        "run": each.run,
        "path": str(each.path),
        "step": each.step,
        "verdict": worst[0].title if worst else "",
        "severity": str(worst[0].severity) if worst else "",
        "first_step": min((incident.first_step for incident in each.incidents), default=None),
        "health": each.health,
        "loss": each.loss if math.isfinite(each.loss) else None,
        "learning_rates": [rate if math.isfinite(rate) else None for rate in each.learning_rates],
    }


def _known(value: float) -> str:
    return "–" if math.isnan(value) else number(value)


def _rates(each: Report) -> str:
    known = [rate for rate in each.learning_rates if not math.isnan(rate)]
    return number(max(known)) if known else "–"


def _against(found: Comparison) -> RenderableType:
    from rich.text import Text

    worse = len({change.layer for change in found.worse})
    better = len({change.layer for change in found.changes} - {change.layer for change in found.worse})
    parts = [
        f"{len(found.came)} came" if found.came else "",
        f"{len(found.went)} went" if found.went else "",
        f"{count(worse, 'layer')} worse" if worse else "",
        f"{count(better, 'layer')} better" if better else "",
    ]
    said = ", ".join(part for part in parts if part)
    return Text(said or "the same", style=WORSE if is_worse(found) else "", no_wrap=True, overflow="ellipsis")
