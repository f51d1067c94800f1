"""The colors of the tab, light; its palette.css has the same."""

from __future__ import annotations

from bnmonitor._html import SEVERITY
from bnmonitor.results import HEALTH_CAPS, NEAR_LIMIT, Severity

HEALTH = {"error": "#b8242a", "warning": "#eda63a", "near": "#7f8fd6", "middle": "#bcc9e6", "healthy": "#e4edee"}
SIGNED = ("#762a83", "#9970ab", "#c2a5cf", "#e7d4e8", "#f4f4f2", "#d9f0d3", "#a6dba0", "#5aae61", "#1b7837")
UNKNOWN = "#f1f1ef"
LINE = "#1f5fbf"

__all__ = ["HEALTH", "HEALTH_STOPS", "HEALTH_TICKS", "LINE", "SEVERITY", "SIGNED", "UNKNOWN"]

_ERROR, _WARNING = HEALTH_CAPS[Severity.ERROR], HEALTH_CAPS[Severity.WARNING]

_ABOVE = 0.1

HEALTH_STOPS = (
    (0.0, HEALTH["error"]),
    (_ERROR, HEALTH["error"]),
    (_ERROR + _ABOVE, HEALTH["warning"]),
    (_WARNING, HEALTH["warning"]),
    (_WARNING + _ABOVE, HEALTH["near"]),
    (NEAR_LIMIT, HEALTH["near"]),
    ((NEAR_LIMIT + 100) / 2, HEALTH["middle"]),
    (100.0, HEALTH["healthy"]),
)
"""The color at each health, flat up to each limit: a layer is red where, and only where, an error is open."""

HEALTH_TICKS = (0.0, _ERROR, _WARNING, NEAR_LIMIT, 100.0)
