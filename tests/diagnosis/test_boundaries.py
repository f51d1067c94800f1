"""Where one outcome turns into another: how near an alert must be to its cause, and what an incident keeps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from bnmonitor import Severity
from bnmonitor.diagnosis import Diagnosis
from bnmonitor.diagnosis.base import Case, Cause
from bnmonitor.diagnosis.diagnosis import NEAR, RECENT
from bnmonitor.window import Window
from tests.diagnosis.test_diagnosis import alert, told, window

WARNING, ERROR = Severity.WARNING, Severity.ERROR


@dataclass(frozen=True, kw_only=True)
class Batch(Cause):
    """A cause that tells what it was given, and how bad it is by the number of its alerts."""

    name: ClassVar[str] = "batch"
    leads: ClassVar[tuple[str, ...]] = ("BN201",)
    explains: ClassVar[frozenset[str]] = frozenset({"BN304"})

    def detail(self, case: Case) -> str:
        return f"was {'nothing' if case.was is None else case.was.state}, lost {case.lost}"

    def severity(self, case: Case) -> Severity:
        return ERROR if len(case.evidence) == 2 else WARNING


def lost() -> Window:
    """A window whose loss is NaN at its end, at step 113."""
    return window(facts={"losses": (2.3,) * 40 + (float("nan"),) * 24, "loss_start": 2.3})


@pytest.mark.parametrize(("earlier", "incidents"), [(NEAR, 1), (NEAR + 1, 2)])
@pytest.mark.parametrize("code", ["BN304", "BN303"])
def test_a_consequence_may_begin_a_few_steps_before_its_cause(code: str, earlier: int, incidents: int) -> None:
    at = window() if code == "BN304" else lost()  # a loss that is NaN explains what the cause does not
    found = told(alert("BN106", "1"), alert(code, "2", first=100 - earlier), at=at)
    assert len(found) == incidents


def test_a_layer_that_the_window_does_not_have_says_nothing_of_the_order() -> None:
    assert len(told(alert("BN106", "gone"), alert("BN304", "0"))) == 1
    assert len(told(alert("BN106", "1"), alert("BN304", "gone"))) == 1
    assert len(told(alert("BN106", "1"), alert("BN304", "0"))) == 2


def test_bnmonitors_own_faults_are_not_explained_by_a_loss_that_is_nan() -> None:
    assert [each.code for each in told(alert("BN101", "0"), alert("BN002", None, first=112), at=lost())] == [
        "BN101",
        "BN002",
    ]


@pytest.mark.parametrize(("later", "incidents"), [(RECENT, 1), (RECENT + 1, 2)])
def test_an_incident_that_is_over_comes_back_within_some_steps(later: int, incidents: int) -> None:
    diagnosis, gone = Diagnosis(), alert("BN106", "1", state="cleared", last=110)
    diagnosis.update([alert("BN106", "1")], window())
    diagnosis.update([gone], window())
    diagnosis.update([gone, alert("BN304", "2", first=110 + later)], window())
    assert len(diagnosis.incidents) == incidents


def test_an_incident_lasts_to_its_last_alert_and_to_the_newest_step_once_the_training_is_lost() -> None:
    both = [alert("BN106", "1", last=104), alert("BN304", "2", last=108)]
    assert [each.last_step for each in told(*both)] == [108]
    assert [each.last_step for each in told(*both, at=lost())] == [113]
    diagnosis = Diagnosis()
    diagnosis.update(both)
    assert [each.last_step for each in diagnosis.incidents] == [108]


def test_an_incident_without_a_layer_of_its_own_names_the_first_that_it_affects() -> None:
    [incident] = told(alert("BN106", None), alert("BN304", "2"))
    assert (incident.code, incident.layer, incident.layers) == ("BN106", "2", ("2",))
    [alone] = told(alert("BN106", None))
    assert (alone.layer, alone.layers) == (None, ())


def test_the_severity_of_an_incident_is_its_causes_and_never_falls() -> None:
    diagnosis = Diagnosis([Batch()])
    alerts = [alert("BN201", "0", severity=ERROR)]
    diagnosis.update(alerts, window())
    assert [each.severity for each in diagnosis.incidents] == [WARNING], "the cause says how bad it is, not the alert"
    for layer, severity in (("1", ERROR), ("2", ERROR)):
        alerts.append(alert("BN304", layer))
        diagnosis.update(alerts, window())
        assert [each.severity for each in diagnosis.incidents] == [severity]
    assert len(diagnosis.incidents[0].evidence) == 3


def test_an_incident_is_a_warning_at_least() -> None:
    class Mild(Batch):
        def severity(self, case: Case) -> Severity:
            return Severity.INFO

    diagnosis = Diagnosis([Mild()])
    diagnosis.update([alert("BN201", "0")], window())
    assert [each.severity for each in diagnosis.incidents] == [WARNING]


def test_of_what_came_up_in_one_check_the_worse_incident_is_the_first() -> None:
    diagnosis = Diagnosis([])
    diagnosis.update([alert("BN804", "0"), alert("BN502", "3", severity=ERROR)], window())
    assert [each.code for each in diagnosis.incidents] == ["BN502", "BN804"]


def test_a_cause_is_told_what_the_incident_was_and_whether_the_training_is_lost() -> None:
    diagnosis, one = Diagnosis([Batch()]), [alert("BN201", "0")]
    seen = []
    for at in (window(), window(), lost()):
        diagnosis.update(one, at)
        seen.append(diagnosis.incidents[0].detail)
    assert seen == ["was nothing, lost False", "was open, lost False", "was open, lost True"]


def test_a_training_stays_lost_until_a_window_shows_that_it_is_not() -> None:
    diagnosis, one = Diagnosis([Batch()]), alert("BN201", "0")
    diagnosis.update([one], lost())
    cleared = [replace(one, state="cleared")]
    assert diagnosis.update(cleared, lost()) == []
    assert diagnosis.update(cleared) == [], "without a window nobody has looked"
    assert [change.kind for change in diagnosis.update(cleared, window())] == ["resolved"]


@pytest.mark.parametrize("members", [[], [-1], [0, -1]])
def test_a_state_of_an_incident_without_its_alerts_is_refused(members: list[int]) -> None:
    diagnosis, alerts = Diagnosis(), [alert("BN106", "1")]
    diagnosis.update(alerts, window())
    state = diagnosis.state_dict()
    state["records"][0]["members"] = members
    with pytest.raises(ValueError, match=r"^an incident has no alert$"):
        Diagnosis().load_state_dict(state, alerts)


def test_most_running_variances_that_are_not_finite_lose_a_training_and_half_of_them_do_not() -> None:
    for columns, incidents in ((4, 2), (5, 1)):
        running = torch.ones(64, 8)
        running[-1, :columns] = torch.inf
        at = window(running_var=running)
        assert len(told(alert("BN101", "0"), alert("BN502", "3", first=112), at=at)) == incidents


@pytest.mark.parametrize("code", ["BN303", "BN305"])
def test_a_chain_that_shrinks_its_output_a_little_hides_no_other_fault(code: str) -> None:
    mild, severe = (alert("BN206", "1", severity=severity) for severity in (WARNING, ERROR))
    assert [each.code for each in told(mild, alert(code, "2", severity=ERROR))] == ["BN206", code]
    [incident] = told(severe, alert(code, "2", severity=ERROR))
    assert (incident.code, incident.cause) == ("BN206", "small-batch")
