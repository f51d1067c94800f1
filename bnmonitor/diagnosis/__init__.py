"""Explains alerts: one incident for one root cause, with everything that follows from it."""

from bnmonitor.diagnosis.base import Case, Cause
from bnmonitor.diagnosis.catalogue import CAUSES, find_cause
from bnmonitor.diagnosis.diagnosis import Change, Diagnosis
from bnmonitor.diagnosis.manual import cause_index, cause_page, cause_url, explained_cause, plain_cause

__all__ = [
    "CAUSES",
    "Case",
    "Cause",
    "Change",
    "Diagnosis",
    "cause_index",
    "cause_page",
    "cause_url",
    "explained_cause",
    "find_cause",
    "plain_cause",
]
