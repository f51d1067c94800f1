"""One incident for one root cause: which alerts open one, which are explained, and when it is over."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from bnmonitor import Severity
from bnmonitor.diagnosis import CAUSES, Diagnosis, find_cause
from bnmonitor.results import Alert, Incident
from bnmonitor.rules import CATALOGUE
from bnmonitor.testing import diagnose, make_sample, make_window
from bnmonitor.window import Window

RULES = {rule.code: rule for rule in CATALOGUE}


def alert(code: str, layer: str | None = "0", *, first: int = 100, last: int = 110, **fields: Any) -> Alert:
    """An open warning of a rule."""
    given: dict[str, Any] = {
        "severity": Severity.WARNING,
        "layers": () if layer is None else (layer,),
        "channels": (),
        "state": "open",
        "value": 2.0,
        "threshold": 1.0,
        "message": f"{code} says so",
        "advice": "mend it",
        "url": f"{code}.md",
        **fields,
    }
    return Alert(code=code, rule=RULES[code].name, layer=layer, first_step=first, last_step=last, **given)


def window(**more: Any) -> Window:
    """Four layers, named 0 to 3 in execution order, and steps 50 to 113."""
    made = make_window(channels=(2, 2, 2, 2), steps=64, **more)
    return replace(made, layers=replace(made.layers, names=("0", "1", "2", "3")), steps=tuple(range(50, 114)))


def told(*alerts: Alert, at: Window | None = None) -> tuple[Incident, ...]:
    """The incidents of alerts that opened one after the other."""
    diagnosis = Diagnosis()
    for i in range(len(alerts)):
        diagnosis.update(alerts[: i + 1], at or window())
    return diagnosis.incidents


def test_an_alert_that_nothing_explains_is_an_incident_of_its_own() -> None:
    [incident] = told(alert("BN804", "2", severity=Severity.ERROR))
    assert (incident.code, incident.cause, incident.severity) == ("BN804", "wrong-axis", Severity.ERROR)
    assert (incident.layer, incident.of_layers, incident.state) == ("2", 4, "open")
    assert [each.code for each in incident.evidence] == ["BN804"]
    assert incident.title
    assert incident.detail == "BN804 says so"
    assert incident.advice == "mend it"


def test_a_network_that_never_left_evaluation_mode_is_one_incident_with_the_fix_of_its_cause() -> None:
    trained = alert("BN401", "0", layers=("0", "1"), message="it runs in evaluation mode", advice="call model.train()")
    initial = alert("BN404", "0", severity=Severity.ERROR)
    for order in ((trained, initial), (initial, trained)):
        [incident] = told(*order)
        assert (incident.cause, incident.severity) == ("eval-mode-in-training", Severity.ERROR)
        assert incident.detail == "it runs in evaluation mode, and are still the initial 0 and 1"
        assert incident.advice.startswith("call model.train(); if the weights were loaded")
    [alone] = told(initial)
    assert alone.cause == "foreign-statistics"


def test_data_that_loses_its_scale_is_the_cause_of_a_first_layer_that_no_longer_varies() -> None:
    batch = torch.ones(64, 8)
    batch[30:, :2] = 1e-9
    at = window(batch_var=batch, chain=True)
    [incident] = told(alert("BN105", "0", first=80, severity=Severity.ERROR), at=at)
    assert incident.cause == "changed-input"
    assert incident.detail == "the batch variance of the first layer vanished at step 80; gamma had not moved"
    [later] = told(alert("BN105", "1", first=80, severity=Severity.ERROR), at=at)
    assert later.cause == "variance-collapse", "only the first layer sees the data"


def test_a_scale_that_grows_from_step_to_step_is_not_told_as_a_jump() -> None:
    batch = torch.ones(64, 8)
    batch[20:, :2] = 2.0 ** torch.arange(44)[:, None]
    [incident] = told(alert("BN106", "0", first=80), at=window(batch_var=batch, chain=True))
    assert incident.detail == "the batch variance of the first layer grew ×1.02e+03 by step 80; gamma had not moved"


def test_a_change_of_the_data_is_told_with_the_step_since_which_it_lasts() -> None:
    batch = torch.ones(64, 8)
    batch[20:24, :2] = batch[30:, :2] = 400.0  # an earlier jump, which was over soon
    [incident] = told(alert("BN106", "0", first=80), at=window(batch_var=batch, chain=True))
    assert incident.detail == "the batch variance of the first layer grew ×400 at step 80; gamma had not moved"
    assert incident.advice.startswith("compare a batch of step 80 ")


def test_a_mean_that_runs_off_soon_after_the_data_jumped_is_the_data_s() -> None:
    mean = torch.zeros(64, 8)
    mean[30:, :2] = 25.0
    [incident] = told(alert("BN107", "0", first=83), at=window(batch_mean=mean, chain=True))
    says = "the batch mean of the first layer moved by 25 standard deviations at step 80; gamma had not moved"
    assert (incident.cause, incident.detail) == ("changed-input", says)


@pytest.mark.parametrize(("power", "says"), [(2e4, "mend it; normalize the input too, whose mean"), (1.0, "mend it")])
def test_a_rate_that_is_too_high_for_raw_data_names_the_data_in_its_advice(power: float, says: str) -> None:
    at = window()
    sample = replace(make_sample(at.layers), data=torch.tensor([[power, torch.nan, torch.nan, torch.nan], [2.0] * 4]))
    [incident] = told(alert("BN704", "0", layers=("0", "1", "2", "3")), at=replace(at, sample=sample))
    assert incident.advice.startswith(says)
    assert ("normalize" in incident.advice) is (power > 1e3)


def test_an_info_is_a_note_and_opens_no_incident() -> None:
    assert told(alert("BN803", severity=Severity.INFO)) == ()


def test_an_info_that_an_open_incident_explains_belongs_to_it() -> None:
    [incident] = told(alert("BN704", "0", layers=("0", "1", "2", "3")), alert("BN701", "2", severity=Severity.INFO))
    assert [each.code for each in incident.evidence] == ["BN704", "BN701"]


def test_consequences_in_later_layers_join_the_incident_of_their_cause() -> None:
    [incident] = told(alert("BN106", "1"), alert("BN304", "2", first=105), alert("BN707", "3", first=110))
    assert [each.code for each in incident.evidence] == ["BN106", "BN304", "BN707"]
    assert incident.layers == ("1", "2", "3")
    assert incident.layer == "1"


def test_what_lies_before_the_cause_in_the_network_is_not_its_consequence() -> None:
    first, second = told(alert("BN106", "2"), alert("BN304", "1", first=105))
    assert (first.code, second.code) == ("BN106", "BN304")


def test_what_began_long_before_the_cause_is_not_its_consequence() -> None:
    assert len(told(alert("BN304", "2", first=20), alert("BN106", "1", first=100))) == 2


def test_alerts_of_one_check_make_one_incident_led_by_the_cause() -> None:
    diagnosis = Diagnosis()
    everywhere = ("0", "1", "2", "3")
    alerts = [alert("BN701", "0"), alert("BN702", "1"), alert("BN704", "0", layers=everywhere)]
    [change] = diagnosis.update(alerts, window())
    assert change.kind == "opened"
    assert change.incident.cause == "learning-rate-too-high"
    codes = [each.code for each in change.incident.evidence]
    assert codes[0] == "BN704"
    assert sorted(codes[1:]) == ["BN701", "BN702"]


def test_a_cause_that_shows_later_takes_an_incident_over() -> None:
    diagnosis = Diagnosis()
    early = [alert("BN701", "1")]
    assert [c.kind for c in diagnosis.update(early, window())] == ["opened"]
    later = [*early, alert("BN704", "0", first=95, layers=("0", "1", "2", "3"))]
    [change] = diagnosis.update(later, window())
    assert change.kind == "revised"
    assert change.incident.index == 0
    assert change.incident.cause == "learning-rate-too-high"
    assert [each.code for each in change.incident.evidence] == ["BN704", "BN701"]
    assert diagnosis.incident_of(0) == diagnosis.incident_of(1) == change.incident


def test_evidence_that_needs_an_evaluation_explains_what_began_long_before() -> None:
    [incident] = told(alert("BN305", "1", first=20), alert("BN505", "1", first=100))
    assert incident.code == "BN505"


def test_an_incident_is_resolved_when_all_its_alerts_are_cleared() -> None:
    diagnosis = Diagnosis()
    both = [alert("BN106", "1"), alert("BN304", "2")]
    diagnosis.update(both, window())
    half = [replace(both[0], state="cleared"), both[1]]
    assert diagnosis.update(half, window()) == []
    assert diagnosis.incidents[0].state == "open"
    none = [replace(each, state="cleared") for each in both]
    [change] = diagnosis.update(none, window())
    assert (change.kind, change.incident.state) == ("resolved", "resolved")
    assert diagnosis.update(none, window()) == []


def test_an_incident_that_comes_back_soon_is_the_same_incident() -> None:
    diagnosis = Diagnosis()
    gone = alert("BN106", "1", state="cleared")
    diagnosis.update([alert("BN106", "1")], window())
    diagnosis.update([gone], window())
    [change] = diagnosis.update([gone, alert("BN304", "2", first=130)], window())
    assert change.kind == "reopened"
    assert change.incident.index == 0
    assert change.incident.state == "open"


def test_severity_that_rises_is_said_once() -> None:
    diagnosis = Diagnosis()
    diagnosis.update([alert("BN106", "1")], window())
    worse = [alert("BN106", "1", severity=Severity.ERROR)]
    assert [c.kind for c in diagnosis.update(worse, window())] == ["worse"]
    assert diagnosis.update(worse, window()) == []


def test_after_a_loss_that_is_nan_nothing_opens_an_incident_of_its_own() -> None:
    losses = (2.3,) * 40 + (float("nan"),) * 24
    lost = window(facts={"losses": losses, "loss_start": 2.3})
    [incident] = told(alert("BN101", "0"), alert("BN502", "3", first=112), alert("BN303", "2", first=112), at=lost)
    assert len(incident.evidence) == 3


def test_a_loss_that_is_not_known_yet_is_no_loss_that_is_nan() -> None:
    """From an accelerator it arrives later, and a loop may pass one every tenth step."""
    losses = (2.3,) * 40 + (None,) * 24
    young = window(facts={"losses": losses, "loss_start": 2.3})
    assert len(told(alert("BN101", "0"), alert("BN303", "2", first=112), alert("BN502", "3", first=112), at=young)) == 2
    [rate] = told(alert("BN704", "0", layers=("0", "1", "2", "3"), first=60), at=young)
    assert "2.3 → 2.3" in rate.detail


def test_a_rate_stays_too_high_while_the_loss_is_no_better_than_at_the_start() -> None:
    diagnosis = Diagnosis()
    facts = {"losses": (5.0,) * 64, "loss_start": 2.3, "loss_best": 2.3}
    bad, good = window(facts=facts), window(facts={**facts, "losses": (0.5,) * 64})
    rate = alert("BN704", "0", layers=("0", "1", "2", "3"), first=60)
    diagnosis.update([rate], bad)
    cleared = [replace(rate, state="cleared")]
    assert diagnosis.update(cleared, bad) == []
    assert diagnosis.incidents[0].severity is Severity.ERROR
    assert [c.kind for c in diagnosis.update(cleared, good)] == ["resolved"]


def test_bnmonitors_own_faults_are_never_explained_by_a_training() -> None:
    assert len(told(alert("BN704", "0", layers=("0", "1", "2", "3")), alert("BN002", None))) == 2


def test_every_warning_and_error_is_in_exactly_one_incident() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = [code for code in RULES if not code.startswith("BN0")]
    for _ in range(200):
        diagnosis, alerts = Diagnosis(), list[Alert]()
        for check in range(8):
            for _ in range(int(torch.randint(0, 4, (), generator=generator))):
                code = codes[int(torch.randint(0, len(codes), (), generator=generator))]
                layer = str(int(torch.randint(0, 4, (), generator=generator)))
                level = (Severity.INFO, Severity.WARNING, Severity.ERROR)[
                    int(torch.randint(0, 3, (), generator=generator))
                ]
                alerts.append(alert(code, layer, first=50 + 8 * check, last=50 + 8 * check, severity=level))
            if alerts:
                at = int(torch.randint(0, len(alerts), (), generator=generator))
                alerts[at] = replace(alerts[at], state="cleared")
            before = diagnosis.incidents
            diagnosis.update(alerts, window())
            assert [i.index for i in diagnosis.incidents][: len(before)] == [i.index for i in before]
        members = [each for incident in diagnosis.incidents for each in incident.evidence]
        assert len(members) == sum(diagnosis.incident_of(i) is not None for i in range(len(alerts)))
        for i, each in enumerate(alerts):
            own = diagnosis.incident_of(i)
            if each.severity > Severity.INFO:
                assert own is not None
                assert each in own.evidence
        for incident in diagnosis.incidents:
            if any(each.state == "open" and each.severity > Severity.INFO for each in incident.evidence):
                assert incident.state == "open"


def test_incidents_continue_from_a_checkpoint() -> None:
    alerts = [alert("BN106", "1"), alert("BN304", "2"), alert("BN804", "0")]
    diagnosis, resumed = Diagnosis(), Diagnosis()
    diagnosis.update(alerts, window())
    resumed.load_state_dict(json.loads(json.dumps(diagnosis.state_dict())), alerts)
    assert resumed.incidents == diagnosis.incidents
    more = [*alerts, alert("BN707", "3", first=112)]
    assert diagnosis.update(more, window()) == resumed.update(more, window())
    assert resumed.incidents == diagnosis.incidents


def test_an_incident_survives_json() -> None:
    [incident] = told(alert("BN106", "1", value=float("inf")))
    assert Incident.from_dict(json.loads(json.dumps(incident.to_dict()))) == incident


@pytest.mark.parametrize(
    ("field", "value"), [("layers", [1]), ("index", "0"), ("severity", "bad"), ("title", None), ("evidence", [{}])]
)
def test_a_damaged_incident_is_refused(field: str, value: object) -> None:
    [incident] = told(alert("BN106", "1"))
    with pytest.raises((KeyError, TypeError, ValueError)):
        Incident.from_dict({**incident.to_dict(), field: value})


def test_an_incident_prints_as_three_lines() -> None:
    [incident] = told(alert("BN106", "1", layers=("1", "2", "3")))
    first, second, third = str(incident).split("\n")
    assert first == "! the batch variance exploded · since step 100 · 3 of 4 layers, first layer 1"
    assert second == "  BN106 says so"
    assert third == "  fix: mend it · bnmonitor explain BN106"


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: cause.name)
def test_a_cause_knows_the_rules_it_speaks_of(cause: Any) -> None:
    """The contract of every cause."""
    assert find_cause(cause.name) is cause
    assert cause.leads
    assert set(cause.leads) <= RULES.keys()
    for prefix in cause.explains:
        assert any(code.startswith(prefix) for code in RULES), prefix
    text = type(cause).__doc__ or ""
    assert "## What it is" in text
    assert "## What to do" in text


def test_an_unknown_cause_names_the_nearest_one() -> None:
    with pytest.raises(KeyError, match="learning-rate-too-high"):
        find_cause("learning-rate-to-high")


def test_an_incident_links_to_the_page_of_its_cause_or_of_its_rule() -> None:
    (momentum,) = diagnose(make_window(momentum=0.99))
    assert momentum.url.endswith("/docs/causes/momentum.md")
    (other,) = diagnose(make_window(momentum=0.01, facts={"buffer_dtypes": (torch.bfloat16,)}))
    assert other.url.endswith("/docs/rules/BN104.md")


def test_a_layer_that_returns_from_a_forgotten_evaluation_mode_was_not_unfrozen() -> None:
    everywhere = ("0", "1", "2", "3")
    forgotten = alert("BN401", "0", first=60, layers=everywhere)
    [incident] = told(forgotten, alert("BN405", "0", first=100, layers=everywhere), alert("BN303", "0", first=110))
    assert incident.cause == "eval-mode-in-training"
    assert [each.code for each in incident.evidence] == ["BN401", "BN405", "BN303"]
    [shock] = told(alert("BN405", "0", first=100, layers=everywhere))
    assert shock.cause == "unfreeze-shock"
