"""The power curves of benchmarks/detection.py: a table for each, one of all, and a picture."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from textwrap import fill

from bnmonitor import Severity
from bnmonitor.rules import find
from tests.end_to_end.faults.graded import CURVES, Curve
from tests.end_to_end.faults.power import wilson
from tests.end_to_end.faults.trial import Outcome

Graded = Sequence[tuple[float | None, Outcome]]
"""Outcomes with the size of their fault; None: without one."""

HARM = 2.0
"""Points of accuracy from which a loss counts as harm."""

INTRODUCTION = f"""\
## Power

How small a fault the statistical rules find. Each fault is injected in graded size, from too small to matter to plainly
harmful; beside each training runs the same one, with the same seed, without the fault. Found: the rule spoke after the
injection, with Wilson's 95 % interval. Told: it spoke, or any other rule gave a warning or an error after the
injection, and that rule did not in the training without the fault; the user knows that something is wrong, if not by
the name of the fault. Cost: points of accuracy in evaluation, on average over the evaluations from the injection on,
that the training with the fault has less than the one without, with the standard error of the mean; a loss below zero
is a gain, by chance or because the fault does good in a training so short. Harm begins, in each network for itself, at
the smallest size from which on every size costs at least {HARM:g} points and twice its standard error; the shares that
are found and told there are of the trainings of these networks at these sizes; found from is the size from which on at
least 95 % are found of every size. A fault that costs nothing here can cost much elsewhere (half precision, longer
trainings, folding): the networks are tiny.

![Share of trainings in which each rule spoke, by the size of the fault, with the loss of accuracy](pictures/power.svg)

| rule | size of the fault | harm begins at | found there | told there | found from (at 95 %) | without a fault |
|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Grade:
    """What came of the trainings with a fault of one size.

    Attributes:
        found: In how many the rule spoke.
        told: In how many this rule or another spoke that did not without the fault.
        runs: Of how many in which the fault took place.
        void: In how many it did not.
        loss: Points of accuracy lost, on average.
        error: Standard error of that.
    """

    size: float | None
    found: int
    told: int
    runs: int
    void: int
    loss: float
    error: float

    @property
    def share(self) -> float:
        """The share of trainings in which the rule spoke."""
        return self.found / self.runs if self.runs else math.nan

    @property
    def harmful(self) -> bool:
        """Whether the loss is large, and larger than chance makes it."""
        return self.loss >= max(HARM, 2 * self.error)


def grades(curve: Curve, graded: Graded, network: str = "") -> list[Grade]:
    """Return the grades of a curve from weak to strong, the one without a fault first; of all networks, or of one."""
    mine = [(size, o) for size, o in graded if o.name == curve.name and network in ("", o.network)]
    without = {(o.network, o.seed): o for size, o in mine if size is None}
    found = []
    for size in (None, *curve.sizes):
        of_size = [o for s, o in mine if s == size]
        valid = [o for o in of_size if o.took_place]
        pairs = [(o, without[o.network, o.seed]) for o in valid if (o.network, o.seed) in without]
        scores = ((sound.score, o.score) for o, sound in pairs)
        losses = [100 * (before - after) for before, after in scores if before is not None and after is not None]
        error = statistics.stdev(losses) / math.sqrt(len(losses)) if len(losses) > 1 else math.inf
        loss = statistics.mean(losses) if losses else math.nan
        spoke = sum(o.detected for o in valid)
        told = sum(bool(speakers(o) - speakers(sound)) for o, sound in pairs)
        found.append(Grade(size, spoke, told, len(valid), len(of_size) - len(valid), loss, error))
    return found


def speakers(outcome: Outcome) -> set[str]:
    """Codes of the rules that told that something is wrong after the injection: its own, no milder than it should."""
    own = (outcome.code, *outcome.also)
    after = (a for a in outcome.told if a["opened"] >= outcome.start)
    return {a["code"] for a in after if a["level"] >= (outcome.least if a["code"] in own else Severity.WARNING)}


def harm(found: Sequence[Grade]) -> Grade | None:
    """The grade at which harm begins: from it on every one is harmful."""
    begins = None
    for grade in reversed([g for g in found if g.size is not None and g.runs]):
        if not grade.harmful:
            break
        begins = grade
    return begins


def sure(found: Sequence[Grade]) -> Grade | None:
    """The grade from which on the rule speaks in at least 95 % of the trainings of every size."""
    begins = None
    for grade in reversed([g for g in found if g.size is not None and g.runs]):
        if grade.share < 0.95:
            break
        begins = grade
    return begins


def share(found: int, of: int) -> str:
    """A share with its interval, in percent."""
    low, high = wilson(found, of)
    return f"{100 * found / of:.0f} % ({100 * low:.0f}–{100 * high:.0f})" if of else "–"


def section(graded: Graded) -> Iterator[str]:
    """Yield the lines of the section."""
    if not graded:
        return
    yield INTRODUCTION.rstrip()
    known = {outcome.name for _, outcome in graded}
    curves = [curve for curve in CURVES if curve.name in known]
    for curve in curves:
        found = grades(curve, graded)
        networks = sorted({o.network for _, o in graded if o.name == curve.name})
        begins = {network: grade for network in networks if (grade := harm(grades(curve, graded, network)))}
        surely, without = sure(found), found[0]
        cells = (
            f"[{curve.code}](rules/{curve.code}.md) {find(curve.code).name}",
            curve.what,
            ", ".join(f"{network} {grade.size:g}" for network, grade in begins.items()) or "none of these",
            share(sum(g.found for g in begins.values()), sum(g.runs for g in begins.values())),
            share(sum(g.told for g in begins.values()), sum(g.runs for g in begins.values())),
            f"{surely.size:g}" if surely else "none of these",
            f"{without.found} of {without.runs}",
        )
        yield f"| {' | '.join(cells)} |"
    yield ""
    for curve in curves:
        yield from _table(curve, graded)


def _table(curve: Curve, graded: Graded) -> Iterator[str]:
    mine = [o for _, o in graded if o.name == curve.name]
    networks, seeds = sorted({o.network for o in mine}), len({o.seed for o in mine})
    yield f"{curve.code}, by {curve.what}; {', '.join(networks)}, {seeds} seeds:"
    yield ""
    if curve.note:
        yield from fill(curve.note, 120).splitlines()
        yield ""
    yield "| size | trainings | found | told | cost in points |"
    yield "|---|---|---|---|---|"
    for grade in grades(curve, graded):
        if grade.size is None:
            continue
        void = f", {grade.void} void" if grade.void else ""
        loss = f"{grade.loss:+.1f} ± {grade.error:.1f}" if grade.runs > 1 else "–"
        shares = f"{share(grade.found, grade.runs)} | {share(grade.told, grade.runs)}"
        yield f"| {grade.size:g} | {grade.runs}{void} | {shares} | {loss} |"
    yield ""


STYLE = """\
text { font: 11px ui-monospace, SFMono-Regular, Menlo, monospace; fill: #1f2328; }
.faint { fill: #59636e; font-size: 10px; } .grid { stroke: #818b98; stroke-opacity: .25; }
.found { stroke: #1a7f37; fill: none; stroke-width: 2; } .dot { fill: #1a7f37; } .bar { stroke: #1a7f37; }
.loss { fill: #bc4c00; fill-opacity: .35; }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc; } .faint { fill: #9198a1; } .grid { stroke: #9198a1; }
  .found, .bar { stroke: #3fb950; } .dot { fill: #3fb950; } .loss { fill: #db6d28; }
}
"""

_WIDE, _HIGH, _LEFT, _TOP, _COLUMNS = 250, 150, 34, 40, 3


def picture(graded: Graded) -> str:
    """Return all curves as SVG: the share that was found as a line, the loss of accuracy as bars."""
    rows = -(-len(CURVES) // _COLUMNS)
    width, height = _COLUMNS * (_WIDE + 2 * _LEFT), rows * (_HIGH + _TOP + 34) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'role="img" aria-label="Power curves: share of trainings in which a rule spoke, by the size of the fault">',
        f"<style>{STYLE}</style>",
        '<text class="faint" x="8" y="14">line: share of trainings in which the rule spoke, with its 95 % interval; '
        "bars: points of accuracy lost, up to 50</text>",
    ]
    for i, curve in enumerate(CURVES):
        x0 = _LEFT + (i % _COLUMNS) * (_WIDE + 2 * _LEFT)
        y0 = 20 + _TOP + (i // _COLUMNS) * (_HIGH + _TOP + 34)
        parts += _panel(curve, grades(curve, graded), x0, y0)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(curve: Curve, found: Sequence[Grade], x0: float, y0: float) -> Iterator[str]:
    sized = [g for g in found if g.size is not None]
    step = _WIDE / len(sized)
    yield f'<text x="{x0}" y="{y0 - 22}">{curve.code}</text>'
    yield f'<text class="faint" x="{x0}" y="{y0 - 9}">{escape(curve.what)}</text>'
    for level in (0, 0.5, 1):
        y = y0 + _HIGH * (1 - level)
        yield f'<line class="grid" x1="{x0}" x2="{x0 + _WIDE}" y1="{y}" y2="{y}"/>'
        yield f'<text class="faint" text-anchor="end" x="{x0 - 4}" y="{y + 3}">{100 * level:.0f}</text>'
    points = []
    for i, grade in enumerate(sized):
        x = x0 + step * (i + 0.5)
        yield f'<text class="faint" text-anchor="middle" x="{x}" y="{y0 + _HIGH + 14}">{grade.size:g}</text>'
        if not grade.runs:
            continue
        lost = _HIGH * min(50.0, max(0.0, grade.loss)) / 50 if grade.loss == grade.loss else 0.0
        yield f'<rect class="loss" x="{x - step / 4}" y="{y0 + _HIGH - lost}" width="{step / 2}" height="{lost}"/>'
        low, high = wilson(grade.found, grade.runs)
        y = y0 + _HIGH * (1 - grade.share)
        yield f'<line class="bar" x1="{x}" x2="{x}" y1="{y0 + _HIGH * (1 - low)}" y2="{y0 + _HIGH * (1 - high)}"/>'
        yield f'<circle class="dot" cx="{x}" cy="{y}" r="3"/>'
        points.append(f"{x},{y}")
    yield f'<polyline class="found" points="{" ".join(points)}"/>'
