"""Comparison of two recorded runs, layer by layer and incident by incident: did a fix work?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bnmonitor._text import count, listing, number, printable, shorten
from bnmonitor.display import QUIET, STRONG, WORSE, incident_block, incident_line
from bnmonitor.history.run import Frames, History
from bnmonitor.history.source import Array
from bnmonitor.history.statistics import BY_NAME
from bnmonitor.limits import LAG_LOG_DEVIATION, LAG_MEAN, MANY_DEAD
from bnmonitor.report.read import Report, report
from bnmonitor.results import Incident

if TYPE_CHECKING:
    from rich.console import RenderableType

LARGE = 0.474
"""Cliff's delta from which an effect counts as large (Romano et al. 2006)."""

LEAST_FRAMES = 4
"""Fewest frames of each run for a comparison."""

JUDGED: Mapping[str, tuple[str, float, int]] = {
    "health": (BY_NAME["health"].title, 5.0, 1),
    "mean_lag": (BY_NAME["mean_lag"].title, LAG_MEAN / 5, -1),
    "log_lag": (BY_NAME["log_lag"].title, LAG_LOG_DEVIATION / 5, -1),
    "dead": (BY_NAME["dead"].title, MANY_DEAD / 5, -1),
}
"""What decides whether a layer got better: its name for people, the least difference of the medians that matters (a
fifth of what a rule reports), and which way is better."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """How one statistic of one layer differs between two runs, over the second half of their frames.

    Attributes:
        layer: Dotted path of the layer.
        statistic: One of :data:`JUDGED`.
        before: Median in the first run.
        after: Median in the second run.
        delta: Cliff's delta, from -1 to 1: how much more often a frame of the second run is above one of the first
            than below.
        verdict: ``"better"`` or ``"worse"``.
    """

    layer: str
    statistic: str
    before: float
    after: float
    delta: float
    verdict: Literal["better", "worse"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two runs side by side.

    Attributes:
        before: The first run.
        after: The second run.
        changes: What differs by a large effect, the largest first.
        came: Incidents that only the second run has.
        went: Incidents that only the first run has.
        stayed: Incidents of both, as the second has them.
        only_before: Layers that only the first has.
        only_after: Layers that only the second has.
    """

    before: Report
    after: Report
    changes: tuple[Change, ...]
    came: tuple[Incident, ...]
    went: tuple[Incident, ...]
    stayed: tuple[Incident, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]

    @property
    def worse(self) -> tuple[Change, ...]:
        """Changes for the worse, except in layers that got healthier: health sums up the other numbers."""
        healed = {c.layer for c in self.changes if c.statistic == "health" and c.verdict == "better"}
        return tuple(c for c in self.changes if c.verdict == "worse" and c.layer not in healed)

    def headline(self) -> str:
        """One line: did it get better?"""
        better = len({c.layer for c in self.changes} - {c.layer for c in self.worse})
        parts = [
            count(len(self.went), "incident") + " went",
            count(len(self.came), "incident") + " came",
            f"{count(better, 'layer')} better",
            f"{count(len({c.layer for c in self.worse}), 'layer')} worse",
        ]
        bad = bool(self.worse or self.came)
        return f"BatchNorm {'✗' if bad else '✓'} {', '.join(parts)}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain types that JSON can hold."""
        return {
            "schema": 2,
            "before": {"run": self.before.run, "path": str(self.before.path), "step": self.before.step},
            "after": {"run": self.after.run, "path": str(self.after.path), "step": self.after.step},
            "changes": [asdict(change) for change in self.changes],
            **{name: [incident.to_dict() for incident in getattr(self, name)] for name in ("came", "went", "stayed")},
            "only_before": list(self.only_before),
            "only_after": list(self.only_after),
        }


def compare(before: tuple[History, str], after: tuple[History, str]) -> Comparison:
    """Compare two runs, each given as a history and a run's name in it.

    A layer counts as better or worse only if the effect is large and the medians differ enough to matter. The frames of
    one run resemble each other, so the effect says how cleanly the runs differ, not how surely the fix was the reason.
    """
    runs = [history.run(name).frames for history, name in (before, after)]
    old, new = (report(*each) for each in (before, after))
    names = [tuple(row.name for row in each.rows) for each in (old, new)]
    stayed, went, came = _matched(old.incidents, new.incidents)
    changes = [c for name in names[1] if name in names[0] for c in _changes(name, runs[0], runs[1])]
    return Comparison(
        before=old,
        after=new,
        changes=tuple(sorted(changes, key=lambda c: (-abs(c.delta), c.verdict != "worse"))),
        came=came,
        went=went,
        stayed=stayed,
        only_before=tuple(name for name in names[0] if name not in names[1]),
        only_after=tuple(name for name in names[1] if name not in names[0]),
    )


def _matched(
    old: Sequence[Incident], new: Sequence[Incident]
) -> tuple[tuple[Incident, ...], tuple[Incident, ...], tuple[Incident, ...]]:
    """Return the incidents of both runs, as the second has them, those of the first only, and those of the second only.

    Equal causes match, first those that began in the same layer: where a cause shows first differs from run to run.
    """
    left, rest, stayed = list(old), list(new), []
    for key in (lambda each: (each.cause, each.layer), lambda each: each.cause):
        for incident in list(rest):
            partner = next((each for each in left if key(each) == key(incident)), None)
            if partner is not None:
                left.remove(partner)
                rest.remove(incident)
                stayed.append(incident)
    return tuple(stayed), tuple(left), tuple(rest)


def cliffs_delta(before: Array, after: Array) -> float:
    """Share of pairs in which ``after`` is above ``before`` less the share in which it is below (Cliff 1993).

    >>> cliffs_delta(np.array([1.0, 2.0]), np.array([2.0, 3.0]))
    0.75
    """
    ordered = np.sort(before)
    below, upto = np.searchsorted(ordered, after, "left"), np.searchsorted(ordered, after, "right")
    return float((below + upto - len(before)).mean() / len(before))


def _changes(layer: str, before: Frames, after: Frames) -> list[Change]:
    found = []
    for statistic, (_, least, good) in JUDGED.items():
        rows = [_second_half(frames.of(statistic)[frames.layers.index(layer)]) for frames in (before, after)]
        if min(map(len, rows)) < LEAST_FRAMES:
            continue
        delta, middles = cliffs_delta(*rows), [float(np.median(row)) for row in rows]
        if abs(delta) >= LARGE and abs(middles[1] - middles[0]) >= least:
            found.append(
                Change(
                    layer=layer,
                    statistic=statistic,
                    before=middles[0],
                    after=middles[1],
                    delta=delta,
                    verdict="better" if delta * good > 0 else "worse",
                )
            )
    return found


def _second_half(row: Array) -> Array:
    """Return the known values in the second half of a run, when the warm-up is over."""
    late = row[len(row) // 2 :]
    known: Array = late[np.isfinite(late)]
    return known


def terminal(found: Comparison, *, rows: int = 12) -> RenderableType:
    """Return the comparison for a terminal.

    Args:
        found: The comparison.
        rows: Changes that are shown; the rest is counted.
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = [Text(found.headline(), style=STRONG, overflow="fold")]
    for mark, each in (("before", found.before), ("after ", found.after)):
        parts.append(Text(printable(f"{mark} {each.about()[0]}"), style=QUIET, overflow="fold"))
    if found.changes:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style=QUIET)
        for title in ("layer", "statistic", "before", "after", "effect", ""):
            table.add_column(title, justify="right" if title in ("before", "after", "effect") else "left")
        for change in found.changes[:rows]:
            sign = Text("✗ worse", style=WORSE) if change.verdict == "worse" else Text("✓ better")
            cells = [JUDGED[change.statistic][0], number(change.before), number(change.after), f"{change.delta:+.2f}"]
            table.add_row(Text(shorten(printable(change.layer), 40)), *cells, sign)
        parts.append(table)
        rest = len(found.changes) - rows
        parts += [Text(f"{count(rest, 'more change')}", style=QUIET)] if rest > 0 else []
    for title, incidents in (("came", found.came), ("went", found.went), ("stayed", found.stayed)):
        parts += [Text(f"{title}:", style=STRONG)] if incidents else []
        parts += [incident_line(each) if title == "went" else incident_block(each) for each in incidents]
    for title, names in (("only before", found.only_before), ("only after", found.only_after)):
        parts += [Text(printable(f"{title}: {listing(names)}"), style=QUIET, overflow="fold")] if names else []
    return Group(*parts)
