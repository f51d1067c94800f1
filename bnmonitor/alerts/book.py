"""Findings become episodes: pending, open, cleared. Nothing is said twice, and followers are counted."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bnmonitor._text import DOCS, count, listing
from bnmonitor.layers import LayerTable
from bnmonitor.results import FOLLOWED, Severity
from bnmonitor.results import Alert as Alert
from bnmonitor.rules import CATALOGUE, Finding, ForLayers, Rule, judge, unmet
from bnmonitor.rules.monitor.rule_error import RuleError
from bnmonitor.window import Window

CLEAR_AFTER = 3
"""Checks in a row without a finding after which an alert is cleared, if as many steps as opened it are quiet too.

A value that wavers about its threshold is below it in one of two checks, and in three in a row once in eight. A rule
that wants a finding confirmed for many steps judges averages over them, and takes as long to be sure that it is gone.
"""

_SILENCING = "BN101"
_CODES = {rule.code for rule in CATALOGUE}


@dataclass
class _Candidate:
    """What is known of one rule on one layer, or on the whole model."""

    since: int
    first_step: int
    seen: int
    quiet: int = 0
    alert: int | None = None


@dataclass
class _Episode:
    """What goes with an alert: its message without the followers, the layers that it began with, who else joined."""

    message: str
    own: int
    also: list[str]


class AlertBook:
    """Every alert of a run, and what may become one.

    Args:
        rules: The rules to run at each check.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = list(rules)
        self._ordered: tuple[list[Rule], list[Rule]] = [], []
        self.special: Mapping[str, Sequence[ForLayers]] = {}
        """Rules that have other thresholds in some layers, by code."""
        self.broken: set[str] = set()
        """Codes of the rules that raised."""
        self.alerts: list[Alert] = []
        self._episodes: list[_Episode] = []
        self._cases: dict[tuple[str, str | None], _Candidate] = {}
        self._told: set[tuple[str, str | None]] = set()
        self._clock = 0

    def open(self) -> list[Alert]:
        """Return the alerts that are open."""
        return [alert for alert in self.alerts if alert.state == "open"]

    def held(self, layers: LayerTable) -> Tensor:
        """Layers whose baseline must not follow what they do now: ``[L]`` bool."""
        holding = {rule.code for rule in self.rules if rule.holds}
        names = {name for (code, name), _ in self._cases.items() if code in holding}
        return torch.tensor([name in names for name in layers.names], dtype=torch.bool, device="cpu")

    def check(
        self, window: Window, absent: Mapping[str, str] | None = None, moments: Collection[str] = ("check",)
    ) -> list[Alert]:
        """Run every rule whose moment it is on the window.

        Args:
            window: The window.
            absent: What a rule may need and is not there, by the words of :data:`bnmonitor.rules.NEEDS`; the rules
                that need it are left out, and what they said before stands.
            moments: What it is time for: ``"check"``, ``"evaluation"``, ``"end"``.

        Returns:
            The alerts that opened, got worse or were cleared.
        """
        self._clock += window.fresh
        events: list[Alert] = []
        broken_from = len(window.layers)
        known = {code for code, _ in self._cases}
        for rule in self._in_order():
            late = window.facts.untrained and not rule.untrained
            if late or rule.moment not in moments or unmet(rule.needs, absent or {}):
                continue
            try:
                findings = judge(rule, self.special.get(rule.code, ()), window)
            except Exception as error:
                events += self._retire(rule, window.steps[-1])
                events.append(self.tell(RuleError.report(rule.code, error, window.steps[-1]), RuleError()))
                continue
            if not findings and rule.code not in known:
                continue
            unjudged: tuple[str, ...] = ()
            if rule.code == _SILENCING:
                broken_from = min([f.layer for f in findings if f.layer is not None], default=broken_from)
            else:
                findings = [f for f in findings if f.layers or f.layer is None or f.layer < broken_from]
                unjudged = window.layers.names[broken_from:]
            taken = {name for code, name in self._cases if name is not None and code in rule.yields_to}
            findings = [f for f in findings if f.layer is None or window.layers.names[f.layer] not in taken]
            events += self._update(rule, findings, window, (*unjudged, *taken))
        return events

    def _in_order(self) -> list[Rule]:
        """The rules in the order in which they are judged, found anew only where they have changed."""
        if self._ordered[0] != self.rules:
            self._ordered = list(self.rules), _leaders_first(self.rules)
        return self._ordered[1]

    def tell(self, finding: Finding, rule: Rule) -> Alert:
        """Open an alert that belongs to no layer."""
        return self.alerts[self._add(self._alert(rule, finding, (), finding.first_step), 0)]

    def _add(self, alert: Alert, own: int) -> int:
        """Append an alert that began with so many layers; return its index."""
        self.alerts.append(alert)
        self._episodes.append(_Episode(alert.message, own, []))
        return len(self.alerts) - 1

    def _amend(self, index: int, **changes: Any) -> Alert:
        """Change an alert; what its message says of followers is counted anew."""
        story = self._episodes[index]
        story.message = changes.get("message", story.message)
        alert = replace(self.alerts[index], **changes)
        followers = len(alert.layers) - story.own
        told = [count(followers, "layer")] if followers > 0 and alert.layer is not None else []
        joined = " and ".join(told + ([listing(story.also)] if story.also else []))
        self.alerts[index] = replace(alert, message=story.message + (FOLLOWED + joined if joined else ""))
        return self.alerts[index]

    def _retire(self, rule: Rule, step: int) -> list[Alert]:
        """Switch off a rule that raised; nobody watches over its open alerts any more, and they say so."""
        self.rules.remove(rule)
        self.broken.add(rule.code)
        self._cases = {key: case for key, case in self._cases.items() if key[0] != rule.code}
        return [
            self._amend(i, state="cleared", message=f"{self._episodes[i].message}; not watched since step {step}")
            for i, alert in enumerate(self.alerts)
            if alert.code == rule.code and alert.state == "open"
        ]

    def _update(self, rule: Rule, findings: list[Finding], window: Window, unjudged: Sequence[str] = ()) -> list[Alert]:
        names = window.layers.names
        now = window.steps[-1]
        changed: dict[int, bool] = {}
        opening: list[tuple[Finding, _Candidate]] = []
        # What is behind a NaN can not be judged: nothing said of it fades.
        current: set[tuple[str, str | None]] = {(rule.code, name) for name in unjudged}
        for finding in findings:
            key = (rule.code, None if finding.layers or finding.layer is None else names[finding.layer])
            current.add(key)
            began = self._clock - max(1, window.fresh)
            case = self._cases.setdefault(key, _Candidate(began, finding.first_step, self._clock))
            case.quiet, case.seen = 0, self._clock
            case.first_step = min(case.first_step, finding.first_step)
            if case.alert is not None:
                changed[case.alert] = changed.get(case.alert, False) | self._renew(case.alert, finding, names, now)
            elif self._ripe(rule, finding, case, key):
                leader = self._leader(rule, case, window)
                if leader is None:
                    opening.append((finding, case))
                else:
                    changed[leader] = changed.get(leader, False) | self._follow(leader, rule, finding, names)
        changed |= dict.fromkeys(self._fade(rule, current), True)
        events = [self.alerts[i] for i, news in changed.items() if news]
        if opening:
            events += self._open(rule, opening, window)
        return events

    def _ripe(self, rule: Rule, finding: Finding, case: _Candidate, key: tuple[str, str | None]) -> bool:
        if not finding.certain or (rule.confirm and self._clock - case.since <= rule.confirm):
            return False
        return finding.severity > Severity.INFO or key not in self._told

    def _leader(self, rule: Rule, case: _Candidate, window: Window) -> int | None:
        """The alert of another rule that explains a new finding: one that began before it, and is in the window yet."""
        slack = 0 if rule.exact else max(1, window.fresh)
        for index, alert in enumerate(self.alerts):
            before = alert.code in rule.follows and alert.first_step <= case.first_step + slack
            if before and alert.severity > Severity.INFO and window.steps[-1] - alert.last_step <= len(window):
                return index
        return None

    def _follow(self, leader: int, rule: Rule, finding: Finding, names: tuple[str, ...]) -> bool:
        """Count a finding under the alert that explains it; return whether that got worse."""
        alert, story = self.alerts[leader], self._episodes[leader]
        if alert.state != "open":
            return False
        if rule.name not in story.also:
            story.also.append(rule.name)
        worse = finding.severity > alert.severity
        self._amend(leader, layers=_joined(alert, finding, names), severity=max(alert.severity, finding.severity))
        return worse

    def _renew(self, index: int, finding: Finding, names: tuple[str, ...], now: int) -> bool:
        """Bring an open alert up to date; return whether it got worse."""
        alert = self.alerts[index]
        worse = finding.severity > alert.severity
        # A fault of the whole model tells its layers each time; a layer that falls ill later was added as it opened.
        layers = _joined(alert, finding, names) if finding.layers and not finding.modules else alert.layers
        self._episodes[index].own += len(layers) - len(alert.layers)
        changes: dict[str, Any] = {"last_step": now, "severity": max(alert.severity, finding.severity)}
        if worse and finding.layer is not None and names[finding.layer] == alert.layer:
            changes |= {name: getattr(finding, name) for name in ("channels", "value", "threshold", "message")}
        self._amend(index, layers=layers, **changes)
        return worse

    def _fade(self, rule: Rule, current: set[tuple[str, str | None]]) -> list[int]:
        """Let the cases that were not found this time fade; return the alerts that this clears."""
        touched = set()
        for key, case in list(self._cases.items()):
            if key[0] != rule.code or key in current:
                continue
            case.quiet += 1
            gone = case.quiet >= CLEAR_AFTER and self._clock - case.seen >= rule.confirm
            if case.alert is None or gone:
                del self._cases[key]
                touched.add(case.alert)
        alive = {case.alert for case in self._cases.values()}
        cleared = [index for index in touched if index is not None and index not in alive]
        for index in cleared:
            self.alerts[index] = replace(self.alerts[index], state="cleared")
        return cleared

    def _open(self, rule: Rule, opening: list[tuple[Finding, _Candidate]], window: Window) -> list[Alert]:
        """Open one alert for all that came up together, or let them follow one that is open."""
        names, now = window.layers.names, window.steps[-1]
        for finding, _ in opening:
            whole = finding.layers or finding.layer is None
            self._told.add((rule.code, None if whole else names[finding.layer or 0]))
        earliest = min(case.first_step for _, case in opening)
        slack = 0 if rule.exact else max(1, window.fresh)
        lead, lead_case = min(
            opening,
            key=lambda item: (
                item[1].first_step > earliest + slack,
                item[0].layer if item[0].layer is not None else -1,
            ),
        )
        members = sorted({i for f, _ in opening if f.layer is not None for i in (f.layer, *f.layers)})
        worst = max((f for f, _ in opening), key=lambda f: f.severity)
        index = self._followed(rule, lead, lead_case, window)
        if index is None:
            ordered = [i for i in (lead.layer, *members) if i is not None]
            layers = lead.modules or tuple(names[i] for i in dict.fromkeys(ordered))
            index = self._add(self._alert(rule, lead, layers, now), max(1, len(lead.modules or lead.layers)))
            more = (
                f"; worse in {names[worst.layer]}" if worst.severity > lead.severity and worst.layer is not None else ""
            )
            self._amend(
                index, first_step=lead_case.first_step, severity=worst.severity, message=f"{lead.message}{more}"
            )
            events = [self.alerts[index]]
        else:
            alert = self.alerts[index]
            new = tuple(names[i] for i in members if names[i] not in alert.layers)
            severity = max(alert.severity, worst.severity)
            self._amend(index, layers=alert.layers + new, severity=severity, last_step=now)
            events = [self.alerts[index]] if worst.severity > alert.severity else []
        for _, case in opening:
            case.alert = index
        return events

    def _followed(self, rule: Rule, lead: Finding, case: _Candidate, window: Window) -> int | None:
        """The open alert of the same rule that a new finding belongs to: one that began within a window of it.

        Downstream or upstream: an explosion travels forward with the activations and backward with the gradients.
        """
        for index in range(len(self.alerts) - 1, -1, -1):
            alert = self.alerts[index]
            same = alert.code == rule.code and alert.state == "open" and lead.layer is not None
            if same and case.first_step - alert.first_step <= len(window):
                return index
        return None

    def _alert(self, rule: Rule, finding: Finding, layers: tuple[str, ...], now: int) -> Alert:
        own = rule.code in _CODES
        return Alert(
            code=rule.code,
            rule=rule.name,
            severity=finding.severity,
            layer=layers[0] if layers else None,
            layers=layers,
            channels=finding.channels,
            first_step=finding.first_step,
            last_step=now,
            state="open",
            value=finding.value,
            threshold=finding.threshold,
            message=finding.message,
            advice=finding.advice,
            url=f"{DOCS}/rules/{rule.code}.md" if own else "",
        )

    def state_dict(self) -> dict[str, Any]:
        """Return alerts and cases as plain types."""
        return {
            "clock": self._clock,
            "alerts": [alert.to_dict() for alert in self.alerts],
            "stories": [list(astuple(story)) for story in self._episodes],
            "cases": [[*key, *astuple(case)] for key, case in self._cases.items()],
            "told": [list(key) for key in sorted(self._told, key=str)],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self._clock = state["clock"]
        self.alerts = [Alert.from_dict(plain) for plain in state["alerts"]]
        self._episodes = [_Episode(*row) for row in state["stories"]]
        self._cases = {(row[0], row[1]): _Candidate(*row[2:]) for row in state["cases"]}
        self._told = {(code, name) for code, name in state["told"]}


def _leaders_first(rules: Sequence[Rule]) -> list[Rule]:
    """The rules in their order, but for those that follow others: these come after them."""
    by_code = {rule.code: rule for rule in rules}

    def depth(rule: Rule, above: frozenset[str] = frozenset()) -> int:
        leaders = (by_code[code] for code in rule.follows - above if code in by_code)
        return max((1 + depth(leader, above | {rule.code}) for leader in leaders), default=0)

    return sorted(rules, key=depth)


def _joined(alert: Alert, finding: Finding, names: tuple[str, ...]) -> tuple[str, ...]:
    """The layers of an alert and of a finding that joins it."""
    its = finding.layers or ((finding.layer,) if finding.layer is not None else ())
    return tuple(dict.fromkeys((*alert.layers, *(names[i] for i in its))))
