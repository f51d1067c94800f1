"""What was found, in the form that all gates share: an incident of a run, or an alert of an audit."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from bnmonitor.results import Alert, Incident, Severity

WHOLE = 0.5
"""From this share of the layers on, a problem is one of the whole model: which layer was first is chance."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that was found and is not over.

    Attributes:
        code: Code of the rule whose page explains it.
        name: Name of the cause of an incident, or of the rule of an alert.
        names: Every name and code by which it can be ignored, in lower case: those of the cause and its leading rule.
        severity: How bad it is.
        layers: The affected layers, the first one first.
        whole: Whether it is one of the whole model.
        lines: What is printed of it, up to three lines: what and where, the numbers, the fix.
        title: What it is, in a few words.
        url: The page that explains it.
        first_step: The step when it began; None where there are no steps.
    """

    code: str
    name: str
    names: tuple[str, ...]
    severity: Severity
    layers: tuple[str, ...]
    whole: bool
    lines: tuple[str, ...]
    title: str
    url: str
    first_step: int | None

    @classmethod
    def of_incident(cls, incident: Incident) -> Problem:
        """Return the problem that an incident of a run is."""
        lead = incident.evidence[:1]
        names = [incident.code, incident.cause, *(word for alert in lead for word in (alert.code, alert.rule))]
        first, *rest = incident.lines()
        return cls(
            code=incident.code,
            name=incident.cause,
            names=tuple(dict.fromkeys(name.lower() for name in names)),
            severity=incident.severity,
            layers=incident.layers,
            whole=_is_whole(incident.layers, incident.of_layers),
            lines=(first, *(line for line in rest if line)),
            title=incident.title,
            url=incident.url,
            first_step=incident.first_step,
        )

    @classmethod
    def of_alert(cls, alert: Alert, of_layers: int, *, steps: bool) -> Problem:
        """Return the problem that an alert is.

        Args:
            alert: The alert.
            of_layers: How many layers there are.
            steps: Whether its steps mean anything: an audit has none.
        """
        where = f" · {alert.layer}{alert.extent}" if alert.layer is not None else ""
        since = f" · since step {alert.first_step}" if steps else ""
        title = alert.rule.replace("-", " ")
        return cls(
            code=alert.code,
            name=alert.rule,
            names=(alert.code.lower(), alert.rule.lower()),
            severity=alert.severity,
            layers=alert.layers,
            whole=_is_whole(alert.layers, of_layers),
            lines=(
                f"{alert.severity.mark} {title}{since}{where}",
                alert.message,
                f"fix: {alert.advice} · bnmonitor explain {alert.code}",
            ),
            title=title,
            url=alert.url,
            first_step=alert.first_step if steps else None,
        )

    @property
    def layer(self) -> str | None:
        """The layer that a fingerprint names; None if it is a problem of the whole model, or of no layer."""
        return None if self.whole or not self.layers else self.layers[0]

    @property
    def text(self) -> str:
        """All lines, without the sign of the severity, which other programs have a field for."""
        first, *rest = self.lines
        return "\n".join([first.removeprefix(f"{self.severity.mark} "), *rest])

    def fingerprint(self, place: str = "") -> str:
        """Return what this problem has in common with itself in another run: its name and its layer, no numbers.

        Args:
            place: The :attr:`Target.place` that it was found in.
        """
        parts = "\n".join([self.name, self.layer or "*", place])
        return hashlib.sha256(parts.encode("utf-8", "backslashreplace")).hexdigest()[:16]


def _is_whole(layers: tuple[str, ...], of_layers: int) -> bool:
    return len(layers) > 1 and 0 < of_layers * WHOLE <= len(layers)
