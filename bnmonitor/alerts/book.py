"""When a finding opens an alert, and which layer the alert names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bnmonitor.alerts.candidates import Candidate, Candidates, Key
from bnmonitor.alerts.log import AlertLog, Episode
from bnmonitor.layers import LayerTable
from bnmonitor.results import Alert, Severity
from bnmonitor.rules import Finding, ForLayers, MonitorFault, Rule, judge, unmet
from bnmonitor.rules.monitor.rule_error import RuleError
from bnmonitor.window import Window


class _Opening(NamedTuple):
    """A finding that is due to be announced, and its candidate."""

    finding: Finding
    candidate: Candidate


class AlertBook:
    """Turns findings into alerts: each fault is announced once, and layers that it spreads to are counted.

    Args:
        rules: The rules to run at each check.
        special: Rules that have other thresholds in some layers, by code.
        each: Steps from one check to the next.
    """

    def __init__(
        self, rules: Sequence[Rule], special: Mapping[str, Sequence[ForLayers]] | None = None, *, each: int = 10
    ) -> None:
        self.rules = list(rules)
        """The rules that still run: a rule that raises is removed."""
        self._special = special or {}
        self._ordered: tuple[list[Rule], list[Rule]] = [], []
        self._log = AlertLog()
        self._each = each
        self._candidates = Candidates(each)
        self._waiting: set[str] = set()
        """Codes of the rules that have left out a check since they last judged."""

    @property
    def alerts(self) -> list[Alert]:
        """Every alert so far, in the order they opened."""
        return self._log.alerts

    @property
    def settled(self) -> bool:
        """Whether no finding waits to be announced, to get worse or to be cleared, but those that are infos."""
        return self._candidates.settled

    def open(self) -> list[Alert]:
        """Return the alerts that are open."""
        return [episode.alert for episode in self._log if episode.is_open]

    def held(self, layers: LayerTable) -> Tensor:
        """Return the layers whose baseline must not follow what they do now: ``[L]`` bool."""
        names = self._candidates.layers({rule.code for rule in self.rules if rule.holds})
        if not names:
            return torch.zeros(len(layers), dtype=torch.bool, device="cpu")
        return torch.tensor([name in names for name in layers.names], dtype=torch.bool, device="cpu")

    def open_fault(self, finding: Finding, rule: MonitorFault) -> Alert:
        """Open an alert about bnmonitor itself, which concerns no layer, and return it."""
        return self._log.add(rule, finding, (), now=finding.first_step, own=0).alert

    # -- a check -------------------------------------------------------------------------------------------------------

    def check(
        self, window: Window, absent: Mapping[str, str] | None = None, moments: Collection[str] = ("check",)
    ) -> list[Alert]:
        """Run the rules that are due on the window.

        Args:
            window: The window.
            absent: The needs that are not met, by the words of :data:`bnmonitor.rules.NEEDS`; rules with such a need
                do not run, and their alerts stay as they are.
            moments: The moments of :attr:`bnmonitor.Rule.moment` that it is now: ``"check"``, ``"evaluation"``,
                ``"end"``.

        Returns:
            The alerts that opened, got worse or were cleared.
        """
        self._candidates.advance(window.fresh)
        events: list[Alert] = []
        broken_from = len(window.layers)
        known = self._candidates.codes
        for rule in self._in_order():
            too_early = window.facts.untrained and not rule.untrained
            too_early |= not len(window.layers) and not rule.without_layers
            last = rule.at_end or rule.code in self._waiting
            now = rule.moment in moments or (last and "end" in moments)
            if too_early or not now or unmet(rule.needs, absent or {}) or self._waits(rule, window.fresh, moments):
                continue
            try:
                findings = judge(rule, self._special.get(rule.code, ()), window)
            except Exception as error:
                events += self._retire(rule, error, window.steps[-1])
                continue
            if not findings and rule.code not in known:
                continue
            unjudged: tuple[str, ...] = ()
            if rule.silences_downstream:
                broken_from = min([broken_from, *(f.layer for f in findings if f.layer is not None)])
            else:
                findings = [f for f in findings if f.layers or f.layer is None or f.layer < broken_from]
                unjudged = window.layers.names[broken_from:]
            taken = self._candidates.layers(rule.yields_to)
            findings = [f for f in findings if f.layer is None or window.layers.names[f.layer] not in taken]
            events += self._update(rule, findings, window, (*unjudged, *taken))
        return events

    def _waits(self, rule: Rule, fresh: int, moments: Collection[str]) -> bool:
        """Whether a rule leaves out this check: it has found nothing, and has judged most of these steps before."""
        if not rule.every:
            return False
        related = {rule.code, *rule.yields_to, *(other.code for other in self.rules if rule.code in other.yields_to)}
        due = self._candidates.passed(rule.every, fresh) or "end" in moments
        if due or related & self._candidates.codes:
            self._waiting.discard(rule.code)
            return False
        self._waiting.add(rule.code)
        return True

    def _in_order(self) -> list[Rule]:
        """The rules in the order in which they run, sorted again only after the rules have changed."""
        if self._ordered[0] != self.rules:
            self._ordered = list(self.rules), _leaders_first(self.rules)
        return self._ordered[1]

    def _retire(self, rule: Rule, error: Exception, step: int) -> list[Alert]:
        """Remove a rule that raised, close its alerts, which are not checked any more, and open one about the rule."""
        self.rules.remove(rule)
        self._candidates.drop(rule.code)
        closed = [episode for episode in self._log if episode.alert.code == rule.code and episode.is_open]
        for episode in closed:
            episode.amend(state="cleared", message=f"{episode.message}; not watched since step {step}")
        fault = self.open_fault(RuleError.report(rule.code, error, step), RuleError())
        return [*(episode.alert for episode in closed), fault]

    def _update(self, rule: Rule, findings: list[Finding], window: Window, unjudged: Iterable[str]) -> list[Alert]:
        """Bring the candidates and alerts of a rule up to date; return the alerts that changed."""
        names, now = window.layers.names, window.steps[-1]
        news: dict[Episode, bool] = {}
        opening: list[_Opening] = []
        # Layers that the rule could not judge are not quiet: their candidates stay as they are.
        current: set[Key] = {(rule.code, name) for name in unjudged}
        for finding in findings:
            key = _key(rule, finding, names)
            current.add(key)
            case = self._candidates.note(key, finding, window.fresh)
            if case.episode is not None:
                news[case.episode] = news.get(case.episode, False) | case.episode.renew(finding, names, now)
            elif self._candidates.is_due(rule, finding, key):
                leader = self._leader(rule, case, window)
                if leader is None:
                    opening.append(_Opening(finding, case))
                else:
                    news[leader] = news.get(leader, False) | leader.explain(rule, finding, names)
        over = self._candidates.fade(rule, current)
        for episode in [each for each in self._log if each in over]:
            episode.amend(state="cleared")
            news[episode] = True
        events = [episode.alert for episode, is_news in news.items() if is_news]
        return events + (self._open(rule, opening, window) if opening else [])

    def _leader(self, rule: Rule, case: Candidate, window: Window) -> Episode | None:
        """The alert of another rule that explains a new finding: it began before, and is still in the window."""
        slack = self._slack(rule, window)
        for episode in self._log:
            alert = episode.alert
            before = alert.code in rule.follows and alert.first_step <= case.first_step + slack
            if before and alert.severity > Severity.INFO and window.steps[-1] - alert.last_step <= len(window):
                return episode
        return None

    def _slack(self, rule: Rule, window: Window) -> int:
        """By how many steps the beginning of a rule's findings is uncertain."""
        return 0 if rule.exact else min(max(1, window.fresh), self._each)

    # -- opening -------------------------------------------------------------------------------------------------------

    def _open(self, rule: Rule, opening: list[_Opening], window: Window) -> list[Alert]:
        """Announce findings that came up together, in a new alert or in one that is open; return it if it is news."""
        self._candidates.announce(_key(rule, each.finding, window.layers.names) for each in opening)
        lead = _lead(rule, opening, self._slack(rule, window))
        worst = max((each.finding for each in opening), key=lambda finding: finding.severity)
        affected = sorted({i for each in opening for i in _positions(each.finding)})
        episode = self._joinable(rule, lead, window)
        if episode is None:
            news = True
            episode = self._begin(rule, lead, worst, affected, window)
        else:
            news = worst.severity > episode.alert.severity
            _join(episode, worst, affected, window)
        for each in opening:
            each.candidate.episode = episode
        return [episode.alert] if news else []

    def _joinable(self, rule: Rule, lead: _Opening, window: Window) -> Episode | None:
        """The open alert of the same rule that a new finding belongs to: one that began within a window before it.

        The finding may be downstream or upstream of the alert: an explosion travels forward with the activations and
        backward with the gradients.
        """
        if lead.finding.layer is None:
            return None
        for episode in reversed(self._log):
            same = episode.alert.code == rule.code and episode.is_open
            if same and lead.candidate.first_step - episode.alert.first_step <= len(window):
                return episode
        return None

    def _begin(self, rule: Rule, lead: _Opening, worst: Finding, affected: Sequence[int], window: Window) -> Episode:
        """Open an alert that names the layer of the lead first, and then all others."""
        names, finding = window.layers.names, lead.finding
        first = [] if finding.layer is None else [finding.layer]
        layers = finding.modules or tuple(names[i] for i in dict.fromkeys([*first, *affected]))
        own = max(1, len(finding.modules or finding.layers))
        message = finding.message
        if worst.severity > finding.severity and worst.layer is not None:
            message += f"; worse in {names[worst.layer]}"
        episode = self._log.add(rule, finding, layers, now=window.steps[-1], own=own)
        episode.amend(first_step=lead.candidate.first_step, severity=worst.severity, message=message)
        return episode

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return alerts and candidates as plain types."""
        return {**self._log.state(), **self._candidates.state(self._log)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned."""
        self._log.restore(state)
        self._candidates.restore(state, self._log)


def _key(rule: Rule, finding: Finding, names: Sequence[str]) -> Key:
    """The candidate that a finding belongs to."""
    return rule.code, None if finding.layers or finding.layer is None else names[finding.layer]


def _positions(finding: Finding) -> tuple[int, ...]:
    """The layers of a finding."""
    return () if finding.layer is None else (finding.layer, *finding.layers)


def _lead(rule: Rule, opening: Sequence[_Opening], slack: int) -> _Opening:
    """The finding that the alert is about: of those that began first, the one first in execution order.

    What is each layer's own does not travel from one to the next: there, the worst.
    """
    earliest = min(each.candidate.first_step for each in opening)
    began_first = [each for each in opening if each.candidate.first_step <= earliest + slack]
    if rule.own:
        return max(began_first, key=lambda each: each.finding.value / max(each.finding.threshold, 1e-9))
    return min(began_first, key=lambda each: -1 if each.finding.layer is None else each.finding.layer)


def _join(episode: Episode, worst: Finding, affected: Sequence[int], window: Window) -> None:
    """Add new layers to an open alert of the same rule."""
    alert, names = episode.alert, window.layers.names
    new = tuple(names[i] for i in affected if names[i] not in alert.layers)
    severity = max(alert.severity, worst.severity)
    episode.amend(layers=alert.layers + new, severity=severity, last_step=window.steps[-1])


def _leaders_first(rules: Sequence[Rule]) -> list[Rule]:
    """The rules in their order, except that a rule which follows others comes after them."""
    by_code = {rule.code: rule for rule in rules}

    def depth(rule: Rule, above: frozenset[str] = frozenset()) -> int:
        leaders = (by_code[code] for code in rule.follows - above if code in by_code)
        return max((1 + depth(leader, above | {rule.code}) for leader in leaders), default=0)

    return sorted(rules, key=depth)
