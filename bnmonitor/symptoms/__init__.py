"""Pages that begin with what a user sees, such as a NaN after hours, and lead to the causes; found by words."""

from bnmonitor.symptoms.manual import code_of, described_symptom, plain_symptom, symptom_index, symptom_page
from bnmonitor.symptoms.pages import Reason, Symptom, all_symptoms, setup
from bnmonitor.symptoms.search import search_symptoms

__all__ = [
    "Reason",
    "Symptom",
    "all_symptoms",
    "code_of",
    "described_symptom",
    "plain_symptom",
    "search_symptoms",
    "setup",
    "symptom_index",
    "symptom_page",
]
