"""Explains alerts: one incident for one root cause, with everything that follows from it."""

from bnmonitor.diagnosis.base import Case, Cause
from bnmonitor.diagnosis.catalogue import CAUSES, find_cause
from bnmonitor.diagnosis.diagnosis import Change, Diagnosis

__all__ = [
    "CAUSES",
    "Case",
    "Cause",
    "Change",
    "Diagnosis",
    "find_cause",
]
