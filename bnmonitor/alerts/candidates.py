"""How long a finding has lasted, on each layer: what may become an alert, and when an alert is over."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bnmonitor.alerts.log import AlertLog, Episode
from bnmonitor.results import Severity
from bnmonitor.rules import Finding, Rule

CLEAR_AFTER = 3
"""Checks in a row without a finding after which an alert is cleared, if as many steps as opened it are quiet too.

A value that varies around its threshold is below it in one of two checks, and in three in a row once in eight. A rule
that confirms a finding over many steps judges averages over them, and takes as long to be sure that the fault is gone.
"""

Key = tuple[str, str | None]
"""A rule's code and a layer's name; None: the whole model."""


@dataclass
class Candidate:
    """What is known about one rule on one layer, or on the whole model.

    Attributes:
        since: Steps that had been checked before the first finding.
        first_step: The earliest step at which a finding began.
        seen: Steps that had been checked at the last finding.
        quiet: Checks without a finding since then.
        episode: The alert that reports it; None: no alert yet.
    """

    since: int
    first_step: int
    seen: int
    quiet: int = 0
    episode: Episode | None = None


class Candidates:
    """The findings that are waiting to be announced, and those that keep an alert open.

    Args:
        each: Steps from one check to the next. A finding is as old as that when it is first met, even if the rules
            have judged more steps at once: nothing shows yet that it lasted.
    """

    def __init__(self, each: int = 10) -> None:
        self._each = each
        self._by_key: dict[Key, Candidate] = {}
        self._announced: set[Key] = set()
        self._clock = 0
        """Steps that were checked so far."""

    def advance(self, steps: int) -> None:
        """Count the steps that a check looks at."""
        self._clock += steps

    def passed(self, steps: int, fresh: int) -> bool:
        """Return whether the last ``fresh`` steps have passed a multiple of some steps."""
        return self._clock // steps != (self._clock - fresh) // steps

    @property
    def settled(self) -> bool:
        """Whether each candidate is an info that was announced, and has a finding still."""
        return all(
            key in self._announced
            and not case.quiet
            and (case.episode is None or case.episode.alert.severity == Severity.INFO)
            for key, case in self._by_key.items()
        )

    @property
    def codes(self) -> set[str]:
        """Codes of the rules that have a candidate."""
        return {code for code, _ in self._by_key}

    def layers(self, codes: Collection[str]) -> set[str]:
        """Return the layers on which one of some rules has a candidate."""
        return {name for code, name in self._by_key if name is not None and code in codes}

    def note(self, key: Key, finding: Finding, fresh: int) -> Candidate:
        """Note a finding among the last ``fresh`` steps, and return its candidate."""
        began = self._clock - min(max(1, fresh), self._each)
        case = self._by_key.setdefault(key, Candidate(began, finding.first_step, self._clock))
        case.quiet, case.seen = 0, self._clock
        case.first_step = min(case.first_step, finding.first_step)
        return case

    def is_due(self, rule: Rule, finding: Finding, key: Key) -> bool:
        """Return whether a noted finding has lasted long enough to be announced; an info is announced once in a run."""
        lasting = max(rule.confirm, finding.lasting)
        if not finding.certain or (lasting and self._clock - self._by_key[key].since <= lasting):
            return False
        return finding.severity > Severity.INFO or key not in self._announced

    def announce(self, keys: Iterable[Key]) -> None:
        """Remember that findings were announced."""
        self._announced.update(keys)

    def fade(self, rule: Rule, current: Collection[Key]) -> set[Episode]:
        """Remove the candidates of a rule that have been quiet for long enough; return the alerts that have none left.

        Args:
            rule: The rule.
            current: The candidates with a finding at this check, and those that the rule could not judge.
        """
        touched = set()
        for key, case in list(self._by_key.items()):
            if key[0] != rule.code or key in current:
                continue
            case.quiet += 1
            gone = case.quiet >= CLEAR_AFTER and self._clock - case.seen >= rule.confirm
            if case.episode is None or gone:
                del self._by_key[key]
                touched.add(case.episode)
        alive = {case.episode for case in self._by_key.values()}
        return {episode for episode in touched - alive if episode is not None}

    def drop(self, code: str) -> None:
        """Forget all candidates of a rule."""
        self._by_key = {key: case for key, case in self._by_key.items() if key[0] != code}

    def state(self, log: AlertLog) -> dict[str, Any]:
        """Return the candidates as plain types, with their alerts as positions in the log."""

        def row(key: Key, case: Candidate) -> list[Any]:
            position = None if case.episode is None else log.index(case.episode)
            return [*key, case.since, case.first_step, case.seen, case.quiet, position]

        return {
            "clock": self._clock,
            "candidates": [row(key, case) for key, case in self._by_key.items()],
            "announced": [list(key) for key in sorted(self._announced, key=str)],
        }

    def restore(self, state: Mapping[str, Any], log: AlertLog) -> None:
        """Continue from what :meth:`state` returned."""
        self._clock = state["clock"]
        self._announced = {(code, name) for code, name in state.get("announced", state.get("told", ()))}
        self._by_key = {}
        rows = state["candidates" if "candidates" in state else "cases"]
        if not all(isinstance(each, int) for each in (self._clock, *(n for row in rows for n in row[2:6]))):
            raise TypeError("a step of a candidate is not an int")
        for code, name, since, first_step, seen, quiet, position in rows:
            episode = None if position is None else log[position]
            self._by_key[code, name] = Candidate(since, first_step, seen, quiet, episode)
