"""Findings become episodes: when an alert opens, whom it names, what is said again and what is not."""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from bnmonitor import Alert, AlertError, BatchNormWarning, Finding, Monitor, Rule, Severity
from bnmonitor.alerts import AlertBook
from bnmonitor.alerts.candidates import CLEAR_AFTER
from bnmonitor.rules import find
from bnmonitor.testing import RecordingSink, make_window
from bnmonitor.window import Window

INFO, WARNING, ERROR = Severity.INFO, Severity.WARNING, Severity.ERROR
LAYERS = 5
_PLAIN = make_window(channels=(2,) * LAYERS)


@dataclass(frozen=True, kw_only=True)
class Scripted(Rule):
    """Says what the test puts into ``answers``."""

    code: ClassVar[str] = "XY100"
    name: ClassVar[str] = "scripted"
    severity: ClassVar[Severity] = WARNING
    confirm: ClassVar[int] = 0

    answers: list[Finding] = field(default_factory=list)

    def check(self, window: Window) -> list[Finding]:
        return list(self.answers)


@dataclass(frozen=True, kw_only=True)
class Exact(Scripted):
    exact: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class Patient(Scripted):
    confirm: ClassVar[int] = 20


@dataclass(frozen=True, kw_only=True)
class Slow(Scripted):
    confirm: ClassVar[int] = 50


@dataclass(frozen=True, kw_only=True)
class Following(Scripted):
    code: ClassVar[str] = "XY050"
    name: ClassVar[str] = "following"
    follows: ClassVar[frozenset[str]] = frozenset({"XY100"})


@dataclass(frozen=True, kw_only=True)
class Fragile(Scripted):
    """Says what the test wants, and raises once it wants too much."""

    def check(self, window: Window) -> list[Finding]:
        if len(self.answers) > 1:
            raise ZeroDivisionError("division by zero")
        return list(self.answers)


@dataclass(frozen=True, kw_only=True)
class Holding(Scripted):
    holds: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class Raising(Scripted):
    code: ClassVar[str] = "XY200"

    def check(self, window: Window) -> list[Finding]:
        raise ZeroDivisionError("division by zero")


@dataclass(frozen=True, kw_only=True)
class AlsoRaising(Raising):
    code: ClassVar[str] = "XY201"


@dataclass(frozen=True, kw_only=True)
class Another(Scripted):
    code: ClassVar[str] = "XY300"


@dataclass(frozen=True, kw_only=True)
class NotANumber(Scripted):
    code: ClassVar[str] = "XY090"
    silences_downstream: ClassVar[bool] = True


def finding(layer: int | None = 0, step: int = 0, severity: Severity = WARNING, **more: Any) -> Finding:
    given = {"value": 1.0, "threshold": 0.5, "message": "it is ill", "advice": "mend it", **more}
    return Finding(severity=severity, layer=layer, first_step=step, **given)


class Story:
    """A book and a rule whose findings are told check by check, ten steps apart."""

    def __init__(self, rule: Scripted | None = None, *others: Rule) -> None:
        self.rule = rule or Scripted()
        self.book = AlertBook([self.rule, *others])
        self.now = -1

    def check(self, *findings: Finding, fresh: int = 10) -> list[Alert]:
        self.now += fresh
        self.rule.answers[:] = findings
        steps = tuple(range(self.now - len(_PLAIN) + 1, self.now + 1))
        return self.book.check(replace(_PLAIN, steps=steps, fresh=fresh))

    def quiet(self, checks: int) -> list[Alert]:
        return [event for _ in range(checks) for event in self.check()]


# -- pending, open, cleared --------------------------------------------------------------------------------------------


def test_finding_opens_an_alert_that_says_everything_the_finding_said() -> None:
    story = Story()
    said = finding(2, 7, channels=(1,), value=3.0, threshold=2.0, message="broken", advice="mend")
    [alert] = story.check(said)
    assert alert == Alert(
        code="XY100",
        rule="scripted",
        severity=WARNING,
        layer="layer2",
        layers=("layer2",),
        channels=(1,),
        first_step=7,
        last_step=9,
        state="open",
        value=3.0,
        threshold=2.0,
        message="broken",
        advice="mend",
        url="",
    )
    assert story.book.alerts == story.book.open() == [alert]


def test_nothing_is_said_twice_while_it_lasts_and_the_alert_keeps_what_was_told() -> None:
    story = Story()
    [told] = story.check(finding(1, 3, value=1.0, channels=(1,)))
    for value in (2.0, 5.0, 4.0):
        assert story.check(finding(1, 3, value=value, channels=(0,))) == []
    assert story.book.alerts == [replace(told, last_step=39)]


def test_alert_is_cleared_after_three_quiet_checks_and_not_before() -> None:
    story = Story()
    story.check(finding())
    assert story.quiet(CLEAR_AFTER - 1) == []
    assert story.book.open()
    [alert] = story.check()
    assert (alert.state, alert.last_step) == ("cleared", 9)
    assert story.book.alerts == [alert]
    assert story.quiet(5) == []


def test_finding_in_between_starts_the_quiet_checks_anew() -> None:
    story = Story()
    story.check(finding())
    for _ in range(3):
        assert story.quiet(CLEAR_AFTER - 1) == []
        assert story.check(finding()) == []
    assert len(story.book.alerts) == 1


def test_rule_that_wants_confirmation_is_as_slow_to_clear() -> None:
    story = Story(Slow())
    for _ in range(6):
        story.check(finding())
    assert story.book.open()
    assert story.quiet(4) == []
    assert [a.state for a in story.quiet(1)] == ["cleared"]


def test_fault_that_comes_back_is_a_new_alert_and_the_old_one_keeps_its_place() -> None:
    story = Story()
    story.check(finding(0, 5))
    story.quiet(CLEAR_AFTER)
    [again] = story.check(finding(0, 48))
    assert [a.state for a in story.book.alerts] == ["cleared", "open"]
    assert story.book.alerts[1] == again
    assert again.first_step == 48


def test_rule_that_wants_confirmation_opens_only_when_it_has_lasted() -> None:
    story = Story(Patient())
    assert story.check(finding(0, 4)) == []
    assert story.check(finding(0, 9)) == []
    [alert] = story.check(finding(0, 14))
    assert alert.first_step == 4, "it began when it was first found, not when it was confirmed"


def test_confirmation_starts_anew_after_a_single_quiet_check() -> None:
    story = Story(Patient())
    story.check(finding())
    story.check(finding())
    story.check()
    assert story.check(finding()) == []
    assert story.check(finding()) == []
    assert story.check(finding())


def test_confirmation_counts_steps_not_checks() -> None:
    story = Story(Patient())
    assert story.check(finding(), fresh=1) == []
    assert story.check(finding(), fresh=10) == []
    assert story.check(finding(), fresh=9) == []
    assert story.check(finding(), fresh=1)


def test_a_finding_among_many_steps_is_as_old_as_one_check() -> None:
    story = Story(Patient())
    assert story.check(finding(0, 4), fresh=50) == [], "nothing shows that it has lasted"
    assert story.check(finding(0, 4), fresh=10) == []
    [alert] = story.check(finding(0, 4), fresh=10)
    assert alert.first_step == 4


def test_the_rules_need_not_judge_soon_only_while_nothing_but_infos_is_open() -> None:
    story = Story()
    assert story.book.settled
    story.check(finding(severity=INFO))
    assert story.book.settled
    story.check(finding(severity=INFO), finding(1))
    assert not story.book.settled
    story.quiet(CLEAR_AFTER)
    assert story.book.settled
    patient = Story(Patient())
    patient.check(finding())
    assert not patient.book.settled, "it may be confirmed at the next check"


def test_uncertain_finding_is_kept_back_but_dates_the_alert() -> None:
    story = Story()
    assert story.check(finding(0, 3, certain=False)) == []
    assert story.check(finding(0, 12, certain=False)) == []
    [alert] = story.check(finding(0, 25))
    assert alert.first_step == 3


# -- severity ----------------------------------------------------------------------------------------------------------


def test_escalation_is_told_once_with_the_new_message() -> None:
    story = Story()
    story.check(finding(0, 2, message="bad"))
    [worse] = story.check(finding(0, 2, ERROR, message="very bad", value=9.0, threshold=8.0))
    assert (worse.severity, worse.message, worse.value, worse.threshold) == (ERROR, "very bad", 9.0, 8.0)
    assert story.check(finding(0, 2, ERROR, message="very bad")) == []
    assert len(story.book.alerts) == 1


def test_severity_is_the_worst_it_has_been_and_coming_back_to_it_is_no_news() -> None:
    story = Story()
    story.check(finding(severity=ERROR))
    assert story.check(finding(severity=WARNING)) == []
    assert story.check(finding(severity=ERROR)) == []
    assert story.book.alerts[0].severity is ERROR


def test_escalation_of_a_follower_escalates_the_incident_but_keeps_what_the_first_layer_says() -> None:
    story = Story()
    story.check(finding(1, 2, message="first", channels=(1,)), finding(3, 2, message="second"))
    [worse] = story.check(finding(1, 2, message="first", channels=(1,)), finding(3, 2, ERROR, message="second worse"))
    assert (worse.severity, worse.layer, worse.message, worse.channels) == (
        ERROR,
        "layer1",
        "first; 1 more layer affected",
        (1,),
    )


def test_info_is_told_once_for_good() -> None:
    story = Story()
    assert len(story.check(finding(severity=INFO))) == 1
    assert [a.state for a in story.quiet(CLEAR_AFTER)] == ["cleared"]
    assert story.check(finding(severity=INFO)) == []
    assert story.quiet(CLEAR_AFTER) == []
    assert len(story.book.alerts) == 1


def test_info_in_another_layer_is_another_info() -> None:
    story = Story()
    story.check(finding(0, 0, INFO))
    story.quiet(CLEAR_AFTER)
    [other] = story.check(finding(3, 50, INFO))
    assert other.layer == "layer3"


def test_info_that_was_told_still_opens_as_a_warning_when_it_gets_worse() -> None:
    story = Story()
    story.check(finding(severity=INFO))
    story.quiet(CLEAR_AFTER)
    assert story.check(finding(severity=INFO)) == []
    [alert] = story.check(finding(severity=WARNING))
    assert alert.severity is WARNING


# -- incidents of several layers ---------------------------------------------------------------------------------------


def test_layers_that_fail_together_are_one_alert_under_the_first_in_execution_order() -> None:
    story = Story()
    [alert] = story.check(finding(3, 5), finding(1, 8), finding(4, 6))
    assert (alert.layer, alert.layers, alert.first_step) == ("layer1", ("layer1", "layer3", "layer4"), 8)


def test_layer_that_failed_more_than_a_check_earlier_leads_though_it_comes_later() -> None:
    story = Story()
    [alert] = story.check(finding(1, 60), finding(3, 40))
    assert (alert.layer, alert.layers, alert.first_step) == ("layer3", ("layer3", "layer1"), 40)


def test_exact_rule_blames_the_layer_that_failed_a_single_step_earlier() -> None:
    [alert] = Story(Exact()).check(finding(1, 6), finding(3, 5))
    assert alert.layer == "layer3"
    [alert] = Story(Exact()).check(finding(1, 5), finding(3, 5))
    assert alert.layer == "layer1"


def test_worse_follower_lends_its_severity_and_is_named() -> None:
    [alert] = Story().check(finding(1, 5, message="mild"), finding(3, 5, ERROR, message="bad"))
    assert (alert.layer, alert.severity, alert.message) == (
        "layer1",
        ERROR,
        "mild; worse in layer3; 1 more layer affected",
    )


def test_downstream_layer_that_fails_later_joins_the_open_alert_in_silence() -> None:
    story = Story()
    story.check(finding(1, 5))
    assert story.check(finding(1, 5), finding(3, 15)) == []
    [alert] = story.book.alerts
    assert (alert.layer, alert.layers) == ("layer1", ("layer1", "layer3"))


def test_follower_that_is_worse_is_told() -> None:
    story = Story()
    story.check(finding(1, 5))
    [worse] = story.check(finding(1, 5), finding(3, 15, ERROR))
    assert (worse.layer, worse.layers, worse.severity) == ("layer1", ("layer1", "layer3"), ERROR)
    assert len(story.book.alerts) == 1


def test_upstream_layer_that_fails_later_joins_as_well_and_does_not_take_the_lead() -> None:
    story = Story()
    story.check(finding(3, 5))
    assert story.check(finding(3, 5), finding(1, 15)) == []
    [alert] = story.book.alerts
    assert (alert.layer, alert.layers) == ("layer3", ("layer3", "layer1"))


@pytest.mark.parametrize("layer", [1, 4])
def test_layer_that_fails_more_than_a_window_later_opens_its_own_alert(layer: int) -> None:
    story = Story()
    story.check(finding(2, 5))
    for _ in range(7):
        story.check(finding(2, 5))
    assert story.check(finding(2, 5), finding(3, 5 + len(_PLAIN))) == []
    [alert] = story.check(finding(2, 5), finding(3, 5), finding(layer, 6 + len(_PLAIN)))
    assert alert.layers == (f"layer{layer}",)


def test_cleared_alert_takes_no_followers() -> None:
    story = Story()
    story.check(finding(1, 5))
    story.quiet(CLEAR_AFTER)
    [alert] = story.check(finding(3, 15))
    assert alert.layer == "layer3"


def test_incident_is_cleared_when_its_last_layer_is() -> None:
    story = Story()
    story.check(finding(1), finding(3))
    for _ in range(CLEAR_AFTER + 1):
        assert story.check(finding(3)) == []
    assert [a.state for a in story.quiet(CLEAR_AFTER)] == ["cleared"]


def test_fault_of_the_whole_model_is_one_alert_and_learns_of_layers_that_join() -> None:
    story = Story()
    [alert] = story.check(finding(2, 5, layers=(2, 3)))
    assert (alert.layer, alert.layers) == ("layer2", ("layer2", "layer3"))
    assert story.check(finding(0, 5, layers=(0, 2, 3))) == []
    [alert] = story.book.alerts
    assert alert.layer == "layer2", "an alert keeps the layer it was opened with"
    assert set(alert.layers) == {"layer0", "layer2", "layer3"}


def test_finding_without_a_layer_makes_an_alert_without_one() -> None:
    [alert] = Story().check(finding(None, 5))
    assert (alert.layer, alert.layers) == (None, ())
    assert "since step 5: it is ill" in str(alert)


def test_two_rules_do_not_share_an_alert() -> None:
    other = Another()
    story = Story(Scripted(), other)
    other.answers[:] = [finding(1, 0), finding(2, 0)]
    story.check(finding(1, 0))
    assert [(a.code, a.layers) for a in story.book.alerts] == [("XY100", ("layer1",)), ("XY300", ("layer1", "layer2"))]


# -- one rule follows another -----------------------------------------------------------------------------------------


def story_of_two() -> tuple[Story, Following]:
    follower = Following()
    return Story(Scripted(), follower), follower


def test_what_another_alert_explains_is_counted_there_and_opens_none() -> None:
    story, follower = story_of_two()
    follower.answers[:] = [finding(3, 6), finding(4, 6)]
    [alert] = story.check(finding(1, 5))
    follower.answers[:] = [finding(3, 6), finding(4, 6), finding(1, 6)]
    assert story.check(finding(1, 5)) == []
    [alert] = story.book.alerts
    assert (alert.code, alert.layer, alert.layers) == ("XY100", "layer1", ("layer1", "layer3", "layer4"))
    assert alert.message == "it is ill; 2 more layers affected; with following"


def test_cause_cannot_come_after_its_effect() -> None:
    story, follower = story_of_two()
    follower.answers[:] = [finding(3, 5)]
    story.check()
    events = story.check(finding(1, 5 - 1), fresh=1)
    assert {a.code for a in story.book.alerts} == {"XY050", "XY100"}, "it was open before"
    story, follower = story_of_two()
    follower.answers[:] = [finding(3, 5)]
    events = story.check(finding(1, 26), fresh=20)
    assert {a.code for a in events} == {"XY050", "XY100"}


def test_follower_that_is_worse_makes_the_incident_worse() -> None:
    story, follower = story_of_two()
    story.check(finding(1, 5))
    follower.answers[:] = [finding(3, 12, ERROR)]
    [worse] = story.check(finding(1, 5))
    assert (worse.code, worse.severity) == ("XY100", ERROR)
    assert story.check(finding(1, 5)) == []


def test_info_explains_nothing() -> None:
    story, follower = story_of_two()
    follower.answers[:] = [finding(3, 6)]
    assert {a.code for a in story.check(finding(1, 5, INFO))} == {"XY050", "XY100"}


def test_follower_that_outlives_its_cause_by_a_window_opens_an_alert_of_its_own() -> None:
    story, follower = story_of_two()
    follower.answers[:] = [finding(3, 6)]
    story.check(finding(1, 5))
    opened = [next((a.code for a in story.check() if a.state == "open"), "") for _ in range(8)]
    # Last seen at step 9, in the window of 64 steps until step 73.
    assert opened == ["", "", "", "", "", "", "XY050", ""]


# -- a rule that silences downstream -----------------------------------------------------------------------------------


def test_layers_behind_a_nan_are_not_judged_by_other_rules() -> None:
    first, other = NotANumber(), Scripted()
    story = Story(first, other)
    other.answers[:] = [finding(i) for i in range(LAYERS)]
    events = story.check(finding(2, 0, ERROR))
    assert [(a.code, a.layers) for a in events] == [("XY090", ("layer2",)), ("XY100", ("layer0", "layer1"))]


def test_alert_of_a_layer_that_can_not_be_judged_any_more_is_not_cleared() -> None:
    first, other = NotANumber(), Another()
    story = Story(first, other)
    other.answers[:] = [finding(3), finding(1)]
    story.check()
    other.answers[:] = []
    events = [e for _ in range(CLEAR_AFTER + 1) for e in story.check(finding(2, 10, ERROR))]
    assert [(a.code, a.state) for a in events] == [("XY090", "open")]
    assert [(a.code, a.state) for a in story.book.alerts] == [("XY300", "open"), ("XY090", "open")]
    cleared = story.quiet(CLEAR_AFTER)
    assert {(a.code, a.state) for a in cleared} == {("XY300", "cleared"), ("XY090", "cleared")}


def test_faults_of_the_whole_model_are_not_silenced() -> None:
    first, other = NotANumber(), Scripted()
    story = Story(first, other)
    other.answers[:] = [finding(3, layers=(3, 4))]
    assert [a.code for a in story.check(finding(0, 0, ERROR))] == ["XY090", "XY100"]


# -- rules that raise --------------------------------------------------------------------------------------------------


def test_rule_that_raises_is_reported_once_and_switched_off_while_others_go_on() -> None:
    behind = Another()
    story = Story(Scripted(), Raising(), behind)
    behind.answers[:] = [finding(1)]
    events = story.check(finding(1))
    assert [a.code for a in events] == ["XY100", "BN001", "XY300"]
    told = events[1]
    assert (told.layer, told.severity, told.first_step, told.state) == (None, WARNING, 9, "open")
    assert told.message == "rule XY200 raised ZeroDivisionError: division by zero"
    assert told.url.endswith("/rules/BN001.md")
    assert story.check(finding(1)) == []
    assert [rule.code for rule in story.book.rules] == ["XY100", "XY300"]


def test_open_alert_of_a_rule_that_raises_is_closed_and_says_why() -> None:
    story = Story(Fragile())
    story.check(finding(1, 3))
    closed, told = story.check(finding(1, 3), finding(2, 3))
    assert (closed.state, closed.message) == ("cleared", "it is ill; not watched since step 19")
    assert told.code == "BN001"
    assert story.book.alerts == [closed, told]
    assert story.quiet(5) == []


def test_rule_that_raised_holds_no_baseline_any_more() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Both(Fragile):
        holds: ClassVar[bool] = True

    story = Story(Both())
    story.check(finding(1, 3))
    assert story.book.held(_PLAIN.layers).any()
    story.check(finding(1, 3), finding(2, 3))
    assert not story.book.held(_PLAIN.layers).any()


def test_two_rules_that_raise_in_one_check_are_two_alerts_with_keys_of_their_own() -> None:
    story = Story(Scripted(), Raising(), AlsoRaising())
    events = story.check()
    assert [a.code for a in events] == ["BN001", "BN001"]
    assert len({a.key for a in events}) == 2


# -- state -------------------------------------------------------------------------------------------------------------


def through_a_checkpoint(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def resumed(story: Story) -> Story:
    copy = Story(type(story.rule)())
    copy.book.load_state_dict(through_a_checkpoint(story.book.state_dict()))
    copy.now = story.now
    return copy


SCENES: dict[str, list[list[Finding]]] = {
    "open and renewed": [[finding(1)], [finding(1)], [finding(1, 0, ERROR)], [finding(1)]],
    "cleared and back": [[finding(1)], [], [], [], [finding(1, 45)], [finding(1, 45)]],
    "quiet counts": [[finding(1)], [], [finding(1)], [], [], []],
    "infos": [[finding(1, 0, INFO)], [], [], [], [finding(1, 0, INFO)], [finding(1, 0, WARNING)]],
    "followers": [[finding(1)], [finding(1), finding(3, 12)], [finding(3, 12)], [], [], [], []],
    "whole model": [[finding(1, layers=(1, 2))], [finding(1, layers=(1, 2))], [], [], []],
    "no layer": [[finding(None)], [finding(None)], [], [], []],
}


@pytest.mark.parametrize("rule", [Scripted, Patient])
@pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES)
def test_resuming_at_any_check_tells_the_same_story(rule: type[Scripted], scene: list[list[Finding]]) -> None:
    whole = Story(rule())
    events = [whole.check(*findings) for findings in scene]
    assert whole.book.alerts or rule is Patient
    for cut in range(len(scene)):
        story = Story(rule())
        told = [story.check(*findings) for findings in scene[:cut]]
        story = resumed(story)
        told += [story.check(*findings) for findings in scene[cut:]]
        assert told == events
        assert story.book.alerts == whole.book.alerts


def test_state_is_plain_enough_for_json_and_does_not_change_with_the_book() -> None:
    story = Story()
    story.check(finding(1, value=math.inf))
    state = story.book.state_dict()
    before = json.dumps(state, allow_nan=False)
    story.check(finding(1, 0, ERROR), finding(2))
    assert json.dumps(state, allow_nan=False) == before


def test_alert_describes_itself_in_json_and_comes_back_equal() -> None:
    [alert] = Story().check(finding(2, 7, ERROR, channels=(0, 1), layers=(2, 4)))
    plain = json.loads(json.dumps(alert.to_dict(), allow_nan=False))
    assert plain["severity"] == "error"
    assert plain["layers"] == ["layer2", "layer4"]
    assert Alert.from_dict(plain) == alert


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_alert_with_a_number_that_json_has_not_comes_back_equal(value: float) -> None:
    [alert] = Story().check(finding(value=value, threshold=value))
    back = Alert.from_dict(json.loads(json.dumps(alert.to_dict(), allow_nan=False)))
    assert repr(back) == repr(alert)


def test_alert_reads_as_one_line() -> None:
    [alert] = Story().check(finding(1, 7, channels=(0, 1)), finding(3, 7))
    assert str(alert) == "XY100 scripted · layer1 · channels 0, 1 · since step 7: it is ill; 1 more layer affected"
    [whole] = Story().check(finding(1, 7, layers=(1, 3)))
    assert str(whole) == "XY100 scripted · layer1 and 1 more layer · since step 7: it is ill"


def test_layers_with_an_open_alert_of_a_holding_rule_are_held() -> None:
    story = Story(Holding())
    story.check(finding(1), finding(3))
    assert story.book.held(_PLAIN.layers).tolist() == [False, True, False, True, False]
    story.quiet(CLEAR_AFTER)
    assert not story.book.held(_PLAIN.layers).any()
    other = Story(Scripted())
    other.check(finding(1))
    assert not other.book.held(_PLAIN.layers).any()


# -- through the monitor -----------------------------------------------------------------------------------------------


def train(monitor: Monitor, model: nn.Module, steps: int = 1) -> None:
    for _ in range(steps):
        model(torch.randn(32, 3)).sum().backward()
        monitor.step()


def a_model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2), nn.BatchNorm1d(2))


def test_alerts_of_a_monitor_are_append_only_and_an_index_keeps_its_alert() -> None:
    rule, model = Scripted(), a_model()
    script = [[finding(1)], [finding(1), finding(0, 1)], [], [], [], [finding(0, 5)], [finding(0, 5, ERROR)]]
    seen: list[tuple[Alert, ...]] = []
    with Monitor(model, select=(), rules=[rule], check_every_n_steps=1, on_alert="log", sinks=[]) as monitor:
        for answers in script:
            rule.answers[:] = answers
            train(monitor, model)
            seen.append(monitor.alerts)
    identity = [[(a.code, a.layer, a.first_step) for a in alerts] for alerts in seen]
    assert all(later[: len(former)] == former for former, later in pairwise(identity))
    assert [(a.layer, a.layers, a.state, a.severity) for a in seen[-1]] == [
        ("4", ("4", "1"), "cleared", WARNING),
        ("1", ("1",), "open", ERROR),
    ]
    assert seen[0][0].state == "open", "a tuple that was handed out does not change"


def test_monitor_tells_its_sinks_of_opened_worse_and_cleared() -> None:
    rule, sink, model = Scripted(), RecordingSink(), a_model()
    with Monitor(model, select=(), rules=[rule], check_every_n_steps=1, on_alert="log", sinks=[sink]) as monitor:
        for answers in ([finding()], [finding(severity=ERROR)], [finding()], [], [], []):
            rule.answers[:] = answers
            train(monitor, model)
    told = [(a.state, a.severity) for what, a in sink.events if what == "alert"]
    assert told == [("open", WARNING), ("open", ERROR), ("cleared", ERROR)]


def test_resumed_monitor_goes_on_with_its_alerts_and_counters() -> None:
    rule, model = Scripted(), a_model()
    with Monitor(model, select=(), rules=[rule], check_every_n_steps=1, on_alert="log", sinks=[]) as monitor:
        rule.answers[:] = [finding(1, 0)]
        train(monitor, model, 3)
        state = through_a_checkpoint(monitor.state_dict())
    again = Monitor(model, select=(), rules=[rule], check_every_n_steps=1, on_alert="log", sinks=[])
    again.load_state_dict(state)
    assert again.alerts == monitor.alerts
    with again:
        train(again, model, 2)
        assert again.steps == tuple(range(5))
        [alert] = again.alerts
        assert (alert.first_step, alert.last_step, alert.state) == (0, 4, "open")


def test_catalogue_links_to_the_manual_and_own_rules_do_not() -> None:
    book = AlertBook([find("BN301")])
    [alert] = book.check(make_window(momentum=0.99))
    assert alert.url.startswith("https://")
    assert alert.url.endswith("/rules/BN301.md")


def test_every_alert_of_a_check_reaches_the_sinks_though_the_first_one_raises() -> None:
    first, second, sink, model = Scripted(), Another(), RecordingSink(), a_model()
    first.answers[:] = second.answers[:] = [finding()]
    monitor = Monitor(model, select=(), rules=[first, second], on_alert="raise", sinks=[sink])
    with pytest.raises(AlertError), monitor:
        train(monitor, model)
    assert [a.code for a in monitor.alerts] == ["XY100", "XY300"]
    assert [a.code for what, a in sink.events if what == "alert"] == ["XY100", "XY300"]


@pytest.mark.filterwarnings("error::bnmonitor.BatchNormWarning")
def test_warning_that_the_user_made_an_error_is_raised_as_it_is() -> None:
    rule, model = Scripted(), a_model()
    rule.answers[:] = [finding()]
    with (
        pytest.raises(BatchNormWarning, match=r"^XY100 scripted"),
        Monitor(model, select=(), rules=[rule], on_alert="warn", sinks=[]) as monitor,
    ):
        train(monitor, model)


@dataclass(frozen=True, kw_only=True)
class Seldom(Scripted):
    every: ClassVar[int] = 30
    judged: list[int] = field(default_factory=list)

    def check(self, window: Window) -> list[Finding]:
        self.judged.append(window.steps[-1])
        return super().check(window)


@dataclass(frozen=True, kw_only=True)
class Related(Seldom):
    code: ClassVar[str] = "XY101"
    yields_to: ClassVar[frozenset[str]] = frozenset({"XY100"})


def _checks(book: AlertBook, checks: range, fresh: int = 10) -> None:
    for i in checks:
        steps = tuple(range((i + 1) * fresh - len(_PLAIN), (i + 1) * fresh))
        book.check(replace(_PLAIN, steps=steps, fresh=fresh))


def test_a_rule_of_the_whole_window_judges_seldom_until_it_has_found_something() -> None:
    rule, related = Seldom(), Related()
    book = AlertBook([rule, related])
    _checks(book, range(5))
    assert rule.judged == related.judged == [29]
    rule.answers.append(
        Finding(severity=WARNING, layer=1, first_step=40, value=2.0, threshold=1.0, message="", advice="")
    )
    _checks(book, range(5, 8))
    assert rule.judged == related.judged == [29, 59, 69, 79]
    rule.answers.clear()
    _checks(book, range(8, 14))  # it is cleared after three checks, and judged every 30 steps again
    assert rule.judged == [29, 59, 69, 79, 89, 99, 109, 119]
    assert [alert.state for alert in book.alerts] == ["cleared"]
    book.check(replace(_PLAIN, steps=tuple(range(76, 140)), fresh=0), moments=("end",))
    assert rule.judged[-1] == 139
    book.check(replace(_PLAIN, steps=tuple(range(76, 140)), fresh=0), moments=("end",))
    assert len(rule.judged) == 9, "it had judged all steps"


def test_a_rule_of_the_whole_window_judges_at_each_check_if_checks_are_as_far_apart() -> None:
    rule = Seldom()
    _checks(AlertBook([rule]), range(4), fresh=32)
    assert rule.judged == [31, 63, 95, 127]
