"""Runs as a notebook shows them: the verdict, a map of health, and the incidents."""

from __future__ import annotations

import html
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence

from bnmonitor._html import block, plain, strong, table
from bnmonitor._text import count
from bnmonitor.history.entry import Entry
from bnmonitor.history.statistics import BY_NAME
from bnmonitor.results import Incident, still_open
from bnmonitor.runs.colors import HEALTH
from bnmonitor.runs.data import RunData

_MOST_COLUMNS = 80
_MOST_ROWS = 60


def of_run(run: RunData) -> str:
    """Return a run: its verdict, how healthy its layers were, and its incidents."""
    found = still_open(run.incidents)
    name = run.directory.name if run.name == "." else run.name
    about = f"{name} · {count(len(run.layers), 'layer')}"
    picture = ""
    if "health" in run.metrics:
        picture = health_map(run.layers, run.steps.tolist(), run.table("health").tolist())
    return block(
        strong(run.verdict, str(found[0].severity) if found else ""), plain(about), picture, of_incidents(run.incidents)
    )


def of_incidents(incidents: Sequence[Incident]) -> str:
    """Return incidents as a table."""
    head = ("severity", "incident", "layer", "since step", "state", "fix")
    return table(head, [(i.severity, i.title, i.where, f"{i.first_step:,}", i.state, i.advice) for i in incidents])


def of_runs(runs: Mapping[str, Entry]) -> str:
    """Return a list of runs, a row each."""
    rows = (
        (name, each.verdict, f"{each.last_step:,}", "" if each.loss is None else f"{each.loss:.4g}")
        for name, each in runs.items()
    )
    return block(table(("run", "verdict", "last step", "loss"), rows) or "no run")


def health_map(names: Sequence[str], steps: Sequence[int], health: Sequence[Sequence[float]]) -> str:
    """Return health as a picture: a row for each layer, the steps from left to right; empty without either.

    Args:
        names: Name of each layer.
        steps: Number of each step, rising.
        health: For each step that of each layer, 0 to 100; NaN where it is not known.
    """
    if not names or not steps:
        return ""
    worst = [_worst([row[layer] for row in health]) for layer in range(len(names))]
    # Of many layers the worst are shown, in their order; one that nothing is known of comes last.
    shown = sorted(sorted(range(len(names)), key=lambda layer: (math.isnan(worst[layer]), worst[layer]))[:_MOST_ROWS])
    columns = _columns(steps)
    tall = max(4, min(16, 320 // len(shown)))
    left, wide = 160, max(4, 480 // len(columns))
    parts = []
    for row, layer in enumerate(shown):
        top, name = row * tall, names[layer]
        if tall >= 10 or row % -(-10 // tall) == 0:
            short = name if len(name) <= 24 else f"...{name[-21:]}"
            parts.append(
                f'<text x="{left - 6}" y="{top + tall - 1}" text-anchor="end" font-size="10" fill="currentColor">'
                f"{html.escape(short)}</text>"
            )
        for column, frames in enumerate(columns):
            value = _worst([health[at][layer] for at in frames])
            if not math.isnan(value):
                parts.append(
                    f'<rect x="{left + column * wide}" y="{top}" width="{wide}" height="{tall}" '
                    f'fill="{_color(value)}"><title>{html.escape(name)}, step {steps[frames[0]]}: '
                    f"{value:.0f}</title></rect>"
                )
    high, across = len(shown) * tall, len(columns) * wide
    for x, anchor, step in ((left, "start", steps[0]), (left + across, "end", steps[-1])):
        parts.append(
            f'<text x="{x}" y="{high + 13}" text-anchor="{anchor}" font-size="10" fill="currentColor">{step:,}</text>'
        )
    more = f"<div>and {len(names) - len(shown)} more layers, none worse</div>" if len(names) > len(shown) else ""
    size = f'width="{left + across + 10}" height="{high + 18}"'
    return f'<svg {size} role="img" aria-label="health of each layer over the run">{"".join(parts)}</svg>{more}'


def _columns(steps: Sequence[int]) -> list[range]:
    """The logged steps of each column, as positions: columns are as wide in steps, and one without any repeats one."""
    count = min(len(steps), _MOST_COLUMNS)
    each = (steps[-1] - steps[0] + 1) / count
    ends = [bisect_left(steps, steps[0] + each * (i + 1)) for i in range(count)]
    return [range(min(start, end - 1), end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _worst(values: Sequence[float]) -> float:
    """The lowest health; NaN if none is known."""
    return min((value for value in values if not math.isnan(value)), default=math.nan)


def _color(health: float) -> str:
    limits = BY_NAME["health"].limits
    for name in ("error", "warning", "near"):
        if health <= limits[name]:
            return HEALTH[name]
    return HEALTH["middle"] if health < (limits["near"] + 100) / 2 else HEALTH["healthy"]
