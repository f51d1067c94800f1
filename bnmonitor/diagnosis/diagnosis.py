"""Turns the alerts of a run into incidents: which alert opens one, which one explains it, and when it is over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from bnmonitor.diagnosis.base import Case, Cause, is_lost, matches
from bnmonitor.diagnosis.catalogue import CAUSES, OTHER
from bnmonitor.diagnosis.manual import cause_url
from bnmonitor.results import Alert, Incident, Severity
from bnmonitor.window import Window

Kind = Literal["opened", "worse", "revised", "reopened", "resolved"]

RECENT = 100
"""Steps after an incident is resolved in which an alert that it explains opens it again, instead of another one."""

NEAR = 20
"""Steps by which the beginning of a consequence may lie before that of its cause: beginnings are known to a check."""


class Change(NamedTuple):
    """An incident that has changed, and how.

    Attributes:
        incident: The incident as it is now.
        kind: ``"opened"``, ``"worse"`` (its severity rose), ``"revised"`` (another cause explains it), ``"resolved"``,
            or ``"reopened"`` (it came back soon after that).
    """

    incident: Incident
    kind: Kind


@dataclass(eq=False)
class _Record:
    """One incident, with what it is made of: positions in the log of alerts, the leading one first."""

    incident: Incident
    cause: Cause
    members: list[int]
    lost: bool = False
    kinds: list[Kind] = field(default_factory=list)

    @property
    def is_open(self) -> bool:
        return self.incident.state == "open"


class Diagnosis:
    """Explains alerts. Every warning and error is in exactly one incident; an info only where one explains it.

    Args:
        causes: The causes, the one that explains most first.
    """

    def __init__(self, causes: Sequence[Cause] = CAUSES) -> None:
        self._causes = tuple(causes)
        self._records: list[_Record] = []
        self._of: dict[int, int] = {}
        self._seen = 0
        """How many alerts of the log were looked at."""

    @property
    def incidents(self) -> tuple[Incident, ...]:
        """Every incident so far, in the order they opened. An index keeps its incident."""
        return tuple(record.incident for record in self._records)

    def incident_of(self, index: int) -> Incident | None:
        """Return the incident of an alert, by the position of the alert in the log; None for a note."""
        at = self._of.get(index)
        return None if at is None else self._records[at].incident

    def update(self, alerts: Sequence[Alert], window: Window | None = None) -> list[Change]:
        """Explain what is new in the log of alerts.

        Args:
            alerts: Every alert so far; the log only grows.
            window: The steps that were judged last.

        Returns:
            The incidents that opened, got worse, were explained by another cause, or were resolved.
        """
        new = [i for i in range(len(alerts)) if i not in self._of and self._matters(alerts[i], i)]
        self._seen = len(alerts)
        if not new and not any(record.is_open for record in self._records):
            return []
        lost = is_lost(window)
        new.sort(key=lambda i: self._priority(alerts[i], window))
        for i in new:
            if i not in self._of:
                self._place(i, new, alerts, window, lost=lost)
        return [change for record in self._records for change in self._refresh(record, alerts, window, lost=lost)]

    def _matters(self, alert: Alert, index: int) -> bool:
        """Whether an alert needs an incident: a note does only when it is new, and something explains it."""
        return alert.severity > Severity.INFO or index >= self._seen

    # -- who explains what ---------------------------------------------------------------------------------------------

    def _place(self, i: int, new: Sequence[int], alerts: Sequence[Alert], window: Window | None, *, lost: bool) -> None:
        """Put an alert into an incident: one that explains it, one that it explains, or one of its own."""
        alert = alerts[i]
        cause = self._claimant(alert, window)
        noted = alert.severity is Severity.INFO
        explained = [r for r in self._records if r.is_open and self._takes_over(cause, alert, r, alerts, window)]
        if not explained or noted:
            for record in self._records:
                if self._continues(record, alert) and self._explains(record, alert, window):
                    self._join(record, [i])
                    return
        if noted:
            return
        if explained:
            record = explained[0]
            record.cause = cause
            record.members.insert(0, i)
            self._of[i] = self._records.index(record)
            record.kinds.append("revised")
        else:
            record = _Record(Incident.of(alert, len(self._records), len(_order(window))), cause, [i], lost)
            self._of[i] = len(self._records)
            self._records.append(record)
            record.kinds.append("opened")
        order = _order(window)
        followers = [
            j
            for j in new
            if j not in self._of
            and alerts[j].severity > Severity.INFO
            and _follows(cause, [alert], alerts[j], order, lost=record.lost)
        ]
        self._join(record, followers)

    def _join(self, record: _Record, members: Iterable[int]) -> None:
        for i in members:
            record.members.append(i)
            self._of[i] = self._records.index(record)

    def _continues(self, record: _Record, alert: Alert) -> bool:
        return record.is_open or alert.first_step - record.incident.last_step <= RECENT

    def _explains(self, record: _Record, alert: Alert, window: Window | None) -> bool:
        return _follows(record.cause, record.incident.evidence, alert, _order(window), lost=record.lost)

    def _takes_over(
        self, cause: Cause, alert: Alert, record: _Record, alerts: Sequence[Alert], window: Window | None
    ) -> bool:
        """Whether a cause that became known now explains an incident that is open already."""
        if self._rank(cause) >= self._rank(record.cause):
            return False
        order = _order(window)
        return all(_follows(cause, [alert], alerts[j], order, lost=False) for j in record.members)

    def _claimant(self, alert: Alert, window: Window | None) -> Cause:
        """The first cause that an alert speaks for."""
        case = Case(evidence=(alert,), window=window)
        return next((c for c in self._causes if alert.code in c.leads and c.fits(case)), OTHER)

    def _priority(self, alert: Alert, window: Window | None) -> tuple[int, int, int, int]:
        """What is explained first: what explains most, then what is worse, says more, and began first."""
        cause = self._claimant(alert, window)
        says = cause.leads.index(alert.code) if alert.code in cause.leads else 0
        return self._rank(cause), -alert.severity, says, alert.first_step

    def _rank(self, cause: Cause) -> int:
        return self._causes.index(cause) if cause in self._causes else len(self._causes)

    # -- how an incident goes on ---------------------------------------------------------------------------------------

    def _refresh(self, record: _Record, alerts: Sequence[Alert], window: Window | None, *, lost: bool) -> list[Change]:
        """Bring an incident up to date with its alerts, and say how it has changed."""
        evidence = _causally([alerts[i] for i in record.members])
        was, opened = record.incident, "opened" in record.kinds
        active = any(alert.state == "open" for alert in evidence)
        unchanged = not record.kinds and len(evidence) == len(was.evidence)
        if unchanged and not active and not record.is_open:
            return []
        # A training comes back where somebody repairs it; without a window nobody has looked.
        still = record.lost and record.is_open and (lost or window is None)
        record.lost = still or (lost and active)
        case = Case(evidence=evidence, window=window, was=None if opened else was, lost=record.lost)
        is_open = active or (record.is_open and (record.lost or record.cause.lasts(case)))
        severity = max(record.cause.severity(case), Severity.WARNING, was.severity if not opened else Severity.INFO)
        # A note says nothing against the health of its layers.
        serious = [alert for alert in evidence if alert.severity > Severity.INFO] or evidence
        layers = tuple(dict.fromkeys(name for alert in serious for name in alert.layers))
        told = {
            "title": record.cause.title(case),
            "detail": record.cause.detail(case),
            "advice": record.cause.advice(case),
        }
        changes: dict[str, Any] = {
            **({name: text for name, text in told.items() if text} if is_open or opened else {}),
            "code": case.lead.code,
            "cause": record.cause.name_of(case),
            "severity": severity,
            "layer": case.lead.layer if case.lead.layer is not None else next(iter(layers), None),
            "layers": layers,
            "first_step": min(alert.first_step for alert in evidence),
            "last_step": max(alert.last_step for alert in evidence),
            "state": "open" if is_open else "resolved",
            "evidence": evidence,
            "url": cause_url(record.cause) if record.cause.name else case.lead.url,
        }
        if lost and is_open and window is not None:
            changes["last_step"] = window.steps[-1]
        record.incident = replace(was, **changes)
        kinds, record.kinds = record.kinds, []
        if opened:
            return [Change(record.incident, "opened" if is_open else "resolved")]
        if not is_open and record.incident.state != was.state:
            return [Change(record.incident, "resolved")]
        found: list[Change] = []
        if severity > was.severity:
            found.append(Change(record.incident, "worse"))
        elif is_open and was.state == "resolved":
            found.append(Change(record.incident, "reopened"))
        elif "revised" in kinds and record.incident.title != was.title:
            found.append(Change(record.incident, "revised"))
        return found

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the incidents as plain types."""
        return {
            "seen": self._seen,
            "records": [
                {
                    "incident": {**record.incident.to_dict(), "evidence": []},
                    "cause": record.cause.name,
                    "members": list(record.members),
                    "lost": record.lost,
                }
                for record in self._records
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any], alerts: Sequence[Alert]) -> None:
        """Continue from what :meth:`state_dict` returned.

        Args:
            state: The state.
            alerts: The log of alerts that goes with it.
        """
        by_name = {cause.name: cause for cause in self._causes if cause.name}
        self._records, self._of, self._seen = [], {}, min(int(state["seen"]), len(alerts))
        for at, plain in enumerate(state["records"]):
            members = [int(i) for i in plain["members"]]
            evidence = tuple(alerts[i] for i in members)
            if not evidence or min(members) < 0:
                raise ValueError("an incident has no alert")
            incident = replace(Incident.from_dict(plain["incident"]), index=at, evidence=_causally(evidence))
            record = _Record(incident, by_name.get(plain["cause"], OTHER), members, bool(plain["lost"]))
            self._records.append(record)
            self._of.update(dict.fromkeys(members, at))


def _causally(alerts: Sequence[Alert]) -> tuple[Alert, ...]:
    """The leading alert, then the others by when they began and how bad they are."""
    return (alerts[0], *sorted(alerts[1:], key=lambda alert: (alert.first_step, -alert.severity)))


def _order(window: Window | None) -> dict[str, int]:
    return {} if window is None else {name: i for i, name in enumerate(window.layers.names)}


def _follows(cause: Cause, evidence: Sequence[Alert], alert: Alert, order: Mapping[str, int], *, lost: bool) -> bool:
    """Whether an alert follows from a cause: by its rule, by when it began and by where."""
    if matches(alert.code, ("BN0",)):
        return False
    began = min(each.first_step for each in evidence)
    if lost and alert.first_step >= began - NEAR:
        return True
    if alert.code not in cause.leads and not matches(alert.code, cause.explains):
        return False
    if not cause.belated and alert.first_step < began - NEAR:
        return False
    if cause.everywhere:
        return True
    affected = {name for each in evidence for name in each.layers}
    if not affected or affected & {*alert.layers}:
        return True
    first = min((order[name] for name in affected if name in order), default=0)
    return all(order.get(name, first) >= first for name in alert.layers)
