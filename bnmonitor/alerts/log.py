"""The alerts of a run in the order they opened, and how each of them changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bnmonitor._text import DOCS, count, listing
from bnmonitor.results import AFFECTED, Alert
from bnmonitor.rules import CATALOGUE, Finding, Rule

_CODES = {rule.code for rule in CATALOGUE}


@dataclass(eq=False)
class Episode:
    """One alert, with what its message is made of.

    Attributes:
        alert: The alert as it is now.
        own: How many layers it began with; layers that joined later are counted as followers.
        message: Its message without the followers.
        also: Names of other rules whose findings it explains.
    """

    alert: Alert
    own: int
    message: str
    also: list[str] = field(default_factory=list)

    @property
    def is_open(self) -> bool:
        """Whether the alert is open."""
        return self.alert.state == "open"

    def amend(self, **changes: Any) -> None:
        """Change fields of the alert, and count the followers in its message again."""
        self.message = changes.get("message", self.message)
        alert = replace(self.alert, **changes)
        self.alert = replace(alert, message=self.message + self._followers(alert))

    def _followers(self, alert: Alert) -> str:
        layers = len(alert.layers) - self.own
        more = f"; {count(layers, 'more layer')}{AFFECTED}" if layers > 0 and alert.layer is not None else ""
        return more + (f"; with {listing(self.also)}" if self.also else "")

    def renew(self, finding: Finding, names: Sequence[str], now: int) -> bool:
        """Update the alert with a new finding of its rule; return whether it got worse."""
        alert = self.alert
        worse = finding.severity > alert.severity
        # A fault of the whole model lists its layers each time; a single layer was added when it was announced.
        layers = self._joined(finding, names) if finding.layers and not finding.modules else alert.layers
        self.own += len(layers) - len(alert.layers)
        changes: dict[str, Any] = {"last_step": now, "severity": max(alert.severity, finding.severity)}
        if worse and finding.layer is not None and names[finding.layer] == alert.layer:
            changes |= {
                name: getattr(finding, name) for name in ("channels", "value", "threshold", "message", "advice")
            }
        self.amend(layers=layers, **changes)
        return worse

    def explain(self, rule: Rule, finding: Finding, names: Sequence[str]) -> bool:
        """Count a finding of another rule, which the alert explains; return whether the alert got worse."""
        if not self.is_open:
            return False
        if rule.name not in self.also:
            self.also.append(rule.name)
        worse = finding.severity > self.alert.severity
        self.amend(layers=self._joined(finding, names), severity=max(self.alert.severity, finding.severity))
        return worse

    def _joined(self, finding: Finding, names: Sequence[str]) -> tuple[str, ...]:
        """The layers of the alert, and those of a finding that are new to it."""
        positions = finding.layers or (() if finding.layer is None else (finding.layer,))
        return tuple(dict.fromkeys((*self.alert.layers, *(names[i] for i in positions))))


class AlertLog:
    """Every alert of a run. The log only grows, so an index keeps its alert."""

    def __init__(self) -> None:
        self._episodes: list[Episode] = []

    def __iter__(self) -> Iterator[Episode]:
        return iter(self._episodes)

    def __reversed__(self) -> Iterator[Episode]:
        return reversed(self._episodes)

    def __getitem__(self, index: int) -> Episode:
        return self._episodes[index]

    @property
    def alerts(self) -> list[Alert]:
        """The alerts in the order they opened."""
        return [episode.alert for episode in self._episodes]

    def index(self, episode: Episode) -> int:
        """Return the position of an episode."""
        return self._episodes.index(episode)

    def add(self, rule: Rule, finding: Finding, layers: tuple[str, ...], *, now: int, own: int) -> Episode:
        """Open an alert for a finding.

        Args:
            rule: The rule that made the finding.
            finding: The finding.
            layers: Names of the affected layers, the first of them first.
            now: The current step.
            own: How many of the layers do not count as followers.
        """
        alert = Alert(
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
            url=f"{DOCS}/rules/{rule.code}.md" if rule.code in _CODES else "",
        )
        episode = Episode(alert, own, finding.message)
        self._episodes.append(episode)
        return episode

    def state(self) -> dict[str, Any]:
        """Return the log as plain types."""
        return {
            "alerts": [each.alert.to_dict() for each in self._episodes],
            "episodes": [[each.own, each.message, list(each.also)] for each in self._episodes],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state` returned."""
        if not all(isinstance(own, int) and isinstance(message, str) for own, message, _ in _episodes(state)):
            raise TypeError("a message of an alert is not a string, or a count not an int")
        self._episodes = [
            Episode(Alert.from_dict(plain), own, message, list(also))
            for plain, (own, message, also) in zip(state["alerts"], _episodes(state), strict=True)
        ]


def _episodes(state: Mapping[str, Any]) -> list[Any]:
    """The rows of the episodes; checkpoints of bnmonitor before its rooms call them stories."""
    if "episodes" in state:
        return list(state["episodes"])
    return [[own, message, also] for message, own, also in state["stories"]]
