"""The incidents of a recorded run, and the severity that they give to each layer at each step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from bnmonitor.history.source import Array
from bnmonitor.limits import LAG_LOG_DEVIATION, LAG_MEAN
from bnmonitor.results import HEALTH_CAPS, Alert, Incident, Severity, health_near

Described = TypeVar("Described", Alert, Incident)


def described(kind: type[Described], plain: Mapping[str, Any]) -> Described | None:
    """Return the alert or the incident that a record describes; None if the record is damaged."""
    try:
        return kind.from_dict(plain)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        return None


def replay(
    rows: Iterable[tuple[int, Mapping[str, Any]]], begins: Mapping[int, int], alerts: Sequence[Mapping[str, Any]]
) -> tuple[Incident, ...]:
    """Return every incident of a run in its last state, the one that was recorded first at first.

    Two records are of one incident if they share their index and an alert: a session that continues from a checkpoint
    writes the incidents of the checkpoint again. What it does not write again is over: either it began at a step that
    the later session has trained anew, and is left out, or the later session does not know it, and it ends there.

    An open warning or error that is in no incident is one of its own: it is from before there were incidents, or its
    incident was not written any more when the process was killed.

    Args:
        rows: The session and the record of each change, in the order of writing.
        begins: The first step of each session.
        alerts: The run's alerts as they are recorded.
    """
    found: list[tuple[int, Incident]] = []
    known: set[tuple[str, str, int]] = set()
    for session, plain in rows:
        incident = described(Incident, plain)
        if incident is None:
            continue
        known |= _keys(incident)
        place = next((i for i, (_, each) in enumerate(found) if _same(each, incident)), len(found))
        found[place : place + 1] = [(session, incident)]
    kept = [each for session, incident in found if (each := _lasting(session, incident, begins)) is not None]
    for plain in alerts:
        alert = described(Alert, plain)
        if alert is not None and alert.key not in known and alert.severity > Severity.INFO:
            kept.append(Incident.of(alert))
    return tuple(replace(incident, index=i) for i, incident in enumerate(kept))


def _keys(incident: Incident) -> set[tuple[str, str, int]]:
    return {alert.key for alert in incident.evidence}


def _same(one: Incident, other: Incident) -> bool:
    return one.index == other.index and not _keys(one).isdisjoint(_keys(other))


def _lasting(session: int, incident: Incident, begins: Mapping[int, int]) -> Incident | None:
    """Return an incident as the sessions after its own leave it; None if they have trained its steps anew."""
    later = min((step for number, step in begins.items() if number > session), default=None)
    if later is None:
        return incident
    if incident.first_step >= later:
        return None
    return replace(incident, state="resolved", last_step=min(incident.last_step, later - 1))


def span(incident: Incident, layer: str) -> tuple[int, float]:
    """Return the first and the last step at which an incident affects a layer; infinity while it is open."""
    first = min((a.first_step for a in incident.evidence if layer in a.layers), default=incident.first_step)
    return first, float("inf") if incident.state == "open" else incident.last_step


def severities(incidents: Iterable[Incident], layers: Sequence[str], steps: Array) -> Array:
    """Return the worst severity open at each layer and step, ``[L, S]``: 0 where no incident is open."""
    worst = np.zeros((len(layers), len(steps)), np.int64)
    place = {name: i for i, name in enumerate(layers)}
    for incident in incidents:
        for name in incident.layers:
            if name in place:
                first, last = span(incident, name)
                row = worst[place[name]]
                row[(steps >= first) & (steps <= last)] = np.maximum(
                    row[(steps >= first) & (steps <= last)], int(incident.severity)
                )
    return worst


def health(recorded: Array, worst: Array, mean_lag: Array, log_lag: Array) -> Array:
    """Return the health of layers so that it agrees with the incidents, which are known better afterwards.

    A frame is written with the incidents that were open then. An incident begins before it is found, and ends before
    that is certain.

    Args:
        recorded: ``[L, S]``.
        worst: The severities of the incidents that are open.
        mean_lag: The lag of the running mean, in standard deviations.
        log_lag: The lag of the running deviation, in nats.
    """
    lag = np.fmax(np.abs(mean_lag) / LAG_MEAN, np.abs(log_lag) / LAG_LOG_DEVIATION)
    near = health_near(np.clip(np.nan_to_num(lag, nan=0.0, posinf=1.0), 0.0, 1.0))
    found = np.where(recorded <= HEALTH_CAPS[Severity.WARNING], near, recorded)
    for severity in (Severity.WARNING, Severity.ERROR):
        found = np.where((worst >= severity) & ~np.isnan(recorded), np.fmin(found, HEALTH_CAPS[severity]), found)
    return found.astype(np.float32)
