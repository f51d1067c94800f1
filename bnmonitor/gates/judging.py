"""Which problems count: those that are neither ignored nor known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bnmonitor._text import count
from bnmonitor.gates.baseline import Known
from bnmonitor.gates.problem import Problem
from bnmonitor.gates.suppressions import Suppressions
from bnmonitor.gates.target import Target
from bnmonitor.results import Severity

Status = Literal["new", "worse", "known", "ignored"]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A problem with what a project says of it.

    Attributes:
        problem: The problem.
        target: Where it was found.
        status: Whether it is new, known, worse than it was known to be, or ignored.
        reason: Why, where it is not new.
    """

    problem: Problem
    target: Target
    status: Status
    reason: str = ""

    @property
    def counts(self) -> bool:
        """Whether it is neither known nor ignored."""
        return self.status in ("new", "worse")

    @property
    def fingerprint(self) -> str:
        """That of the problem, where it was found."""
        return self.problem.fingerprint(self.target.place)


def judged(
    targets: Sequence[Target], suppressions: Suppressions, known: Mapping[str, Known] | None = None
) -> list[Judged]:
    """Judge every problem.

    Args:
        targets: What was looked at.
        suppressions: What is ignored.
        known: The baseline; None: there is none.
    """
    return [_one(problem, target, suppressions, known or {}) for target in targets for problem in target.problems]


def _one(problem: Problem, target: Target, suppressions: Suppressions, known: Mapping[str, Known]) -> Judged:
    why = suppressions.reason(problem)
    if why:
        return Judged(problem=problem, target=target, status="ignored", reason=why)
    entry = known.get(problem.fingerprint(target.place))
    if entry is None:
        return Judged(problem=problem, target=target, status="new")
    worse = entry.worsened(problem, target)
    return Judged(
        problem=problem, target=target, status="worse" if worse else "known", reason=worse or "in the baseline"
    )


def counted(found: Sequence[Judged], least: Severity | None) -> list[Judged]:
    """Return the problems that a check fails for.

    Args:
        found: All problems.
        least: The least severity that matters; None: none does.
    """
    return [each for each in found if each.counts and least is not None and each.problem.severity >= least]


def told(found: Sequence[Judged], least: Severity | None) -> str:
    """Return a line that says what a baseline and suppressions have changed; empty if they have changed nothing."""
    known = sum(each.status == "known" for each in found)
    ignored = sum(each.status == "ignored" for each in found)
    worse = [each for each in counted(found, least) if each.status == "worse"]
    parts = [f"{count(known, 'problem')} known from the baseline"] if known else []
    parts += [f"{count(ignored, 'problem')} ignored by pyproject.toml"] if ignored else []
    parts += [f"{each.problem.name} is worse than in the baseline: {each.reason}" for each in worse]
    if not parts:
        return ""
    return f"{'; '.join(parts)}; {len(counted(found, least)) or 'none'} left that counts"
