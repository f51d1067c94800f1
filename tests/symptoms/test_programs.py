"""The programs of the pages: a wrong one gives the incident that is named, a right one none."""

from __future__ import annotations

import re

import pytest

from bnmonitor.symptoms import Reason, Symptom, all_symptoms, code_of
from tests.symptoms.running import incidents_of

PROGRAMS = [
    pytest.param(symptom, reason, id=f"{symptom.name}-{number}")
    for symptom in all_symptoms()
    for number, reason in enumerate(symptom.reasons, 1)
]


def shape(text: str) -> str:
    """A text without its numbers, which differ from processor to processor, and without its line breaks."""
    return " ".join(re.sub(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?", "#", text).split())


@pytest.mark.parametrize(("symptom", "reason"), PROGRAMS)
def test_a_wrong_program_gives_the_incident_that_the_page_shows(symptom: Symptom, reason: Reason) -> None:
    incidents = incidents_of(code_of(reason, right=False))
    assert [incident.cause for incident in incidents] == [reason.cause]
    assert shape("\n".join(map(str, incidents))) == shape(reason.says), "run `python docs/gen_symptoms.py --run`"


@pytest.mark.parametrize(("symptom", "reason"), PROGRAMS)
def test_a_right_program_gives_no_incident(symptom: Symptom, reason: Reason) -> None:
    assert incidents_of(code_of(reason, right=True)) == ()
