"""What bnmonitor says of a run: its alerts, and the state of every layer. Free of torch, to read a history with."""

from bnmonitor.results.advice import advised_rate
from bnmonitor.results.incidents import AFFECTED, ROLLED_BACK, Alert, Incident, still_open, worst_of
from bnmonitor.results.severity import (
    HEALTH_CAPS,
    NEAR_LIMIT,
    NEAR_LIMIT_HEALTH,
    Severity,
    health_near,
    health_severity,
)
from bnmonitor.results.state import LayerSummary, StepSummary
from bnmonitor.results.suggestion import RateSuggestion, suggest_rate

__all__ = [
    "AFFECTED",
    "HEALTH_CAPS",
    "NEAR_LIMIT",
    "NEAR_LIMIT_HEALTH",
    "ROLLED_BACK",
    "Alert",
    "Incident",
    "LayerSummary",
    "RateSuggestion",
    "Severity",
    "StepSummary",
    "advised_rate",
    "health_near",
    "health_severity",
    "still_open",
    "suggest_rate",
    "worst_of",
]
