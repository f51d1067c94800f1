"""How bad something is, and how much health it leaves to a layer."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any


class Severity(IntEnum):
    """How bad an alert is. An info is hygiene; a warning costs accuracy; an error makes the result wrong."""

    INFO = 10
    WARNING = 20
    ERROR = 30

    def __str__(self) -> str:
        return self.name.lower()

    @property
    def mark(self) -> str:
        """The sign of the severity, so that color is never the only difference."""
        return _MARKS[self]


_MARKS = {Severity.INFO: "·", Severity.WARNING: "!", Severity.ERROR: "✗"}

HEALTH_CAPS: Mapping[Severity, float] = {Severity.INFO: 100.0, Severity.WARNING: 60.0, Severity.ERROR: 20.0}
"""The most health that a layer can have with an open incident of a severity."""

NEAR_LIMIT_HEALTH = HEALTH_CAPS[Severity.WARNING] + 10.0
"""The least health of a layer without an open incident: its running statistics are at the limit of a warning."""

NEAR_LIMIT = NEAR_LIMIT_HEALTH + 10.0
"""Health from which on a layer without an open incident is called near its limit."""


def health_near(nearness: Any) -> Any:
    """Return the health of a layer without an open incident.

    Args:
        nearness: How near its lag is to the limit of a warning, from 0 to 1; numbers, arrays and tensors will do.

    >>> health_near(0.0), health_near(1.0)
    (100.0, 70.0)
    """
    return 100.0 - (100.0 - NEAR_LIMIT_HEALTH) * nearness * nearness


def health_severity(health: float) -> Severity:
    """Return the severity of the worst incident that a health leaves room for.

    >>> [str(health_severity(health)) for health in (61.0, 60.0, 20.0)]
    ['info', 'warning', 'error']
    """
    found = (severity for severity in (Severity.ERROR, Severity.WARNING) if health <= HEALTH_CAPS[severity])
    return next(found, Severity.INFO)
