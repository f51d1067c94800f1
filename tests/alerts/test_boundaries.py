"""Where one outcome of a check turns into another: the last step that counts, and the first that does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from bnmonitor import Alert, Severity
from bnmonitor.alerts import AlertBook
from bnmonitor.layers import discover
from bnmonitor.rules import ForLayers
from bnmonitor.testing import make_window
from tests.alerts.test_alerts import Another, Following, Patient, Scripted, Seldom, Story, _checks, finding, resumed

WARNING, ERROR = Severity.WARNING, Severity.ERROR


@dataclass(frozen=True, kw_only=True)
class Own(Scripted):
    own: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class Third(Scripted):
    code: ClassVar[str] = "XY040"
    name: ClassVar[str] = "third"
    follows: ClassVar[frozenset[str]] = frozenset({"XY050"})


@dataclass(frozen=True, kw_only=True)
class Returning(Scripted):
    """The rule of ``Scripted``, which here follows the last of those that follow it."""

    follows: ClassVar[frozenset[str]] = frozenset({"XY040"})


# -- which finding leads -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [1.0, 0.0])
def test_of_what_is_each_layers_own_the_one_furthest_beyond_its_threshold_leads(threshold: float) -> None:
    [alert] = Story(Own()).check(
        finding(1, value=8.0, threshold=4.0), finding(2, value=3.0, threshold=threshold), finding(3, value=1.0)
    )
    assert (alert.layer, alert.layers, alert.value) == ("layer2", ("layer2", "layer1", "layer3"), 3.0)


def test_a_finding_of_no_layer_leads_those_of_layers() -> None:
    [alert] = Story().check(finding(0, 5, message="a layer"), finding(None, 5, message="all"))
    assert (alert.layer, alert.layers, alert.message) == ("layer0", ("layer0",), "all")


def test_an_alert_that_only_a_new_layer_renews_is_as_recent_as_that_layer() -> None:
    story = Story()
    story.check(finding(1, 5))
    assert story.check(finding(3, 15)) == []
    [alert] = story.book.alerts
    assert (alert.layers, alert.last_step) == (("layer1", "layer3"), 19)


def test_layers_that_a_fault_of_the_whole_model_spreads_to_are_its_own_and_no_followers() -> None:
    story = Story()
    story.check(finding(1, 5, layers=(1, 2)))
    story.check(finding(1, 5, layers=(1, 2, 3, 4)))
    [alert] = story.book.alerts
    assert (alert.layers, alert.message) == (("layer1", "layer2", "layer3", "layer4"), "it is ill")
    story.check(finding(1, 5, layers=(0, 1, 2, 3, 4)), finding(0, 5))
    assert story.book.alerts[0].message == "it is ill"


# -- which rule explains another ---------------------------------------------------------------------------------------


def test_an_alert_explains_others_up_to_the_step_at_which_it_leaves_the_window() -> None:
    follower = Following()
    story = Story(Scripted(), follower)
    story.check(finding(1, 5))  # last seen at step 9, in a window of 64 steps
    follower.answers[:] = [finding(3, 6)]
    assert story.check(fresh=64) == []
    [opened] = story.check(fresh=1)
    assert opened.code == "XY050"


def test_a_finding_of_no_layer_that_an_alert_explains_adds_no_layer_to_it() -> None:
    follower = Following()
    story = Story(Scripted(), follower)
    story.check(finding(1, 5))
    follower.answers[:] = [finding(None, 6)]
    assert story.check(finding(1, 5)) == []
    [alert] = story.book.alerts
    assert (alert.layers, alert.message) == (("layer1",), "it is ill; with following")


def test_a_rule_of_the_whole_window_first_judges_once_so_many_steps_were_checked() -> None:
    rule = Seldom()
    _checks(AlertBook([rule]), range(40), fresh=1)
    assert rule.judged == [29]


@pytest.mark.parametrize("first", [Scripted, Returning])
def test_rules_run_after_those_that_they_follow_and_a_circle_keeps_their_order(first: type[Scripted]) -> None:
    ran: list[str] = []

    def noted(rule: type[Scripted]) -> Scripted:
        @dataclass(frozen=True, kw_only=True)
        class Noted(rule):  # type: ignore[misc, valid-type]
            def check(self, window: Any) -> list[Any]:
                ran.append(self.code)
                return []

        made: Scripted = Noted()
        return made

    given = [noted(kind) for kind in (Third, Following, first)]
    AlertBook(given).check(make_window())
    assert ran == (["XY100", "XY050", "XY040"] if first is Scripted else ["XY040", "XY050", "XY100"])


def test_a_rule_that_needs_training_is_not_asked_about_an_evaluation_without_any() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Untrained(Another):
        untrained: ClassVar[bool] = True

    window, asked = make_window(channels=(2, 2)), [Scripted(answers=[finding()]), Untrained(answers=[finding()])]
    untrained = replace(window, facts=replace(window.facts, untrained=True))
    assert [a.code for a in AlertBook(asked).check(untrained)] == ["XY300"]
    assert [a.code for a in AlertBook(asked).check(window)] == ["XY100", "XY300"]


def test_layers_with_thresholds_of_their_own_are_judged_by_them() -> None:
    usual = Scripted(answers=[finding(0, message="usual"), finding(1, message="usual")])
    other = Scripted(answers=[finding(0, message="special"), finding(1, message="special")])
    book = AlertBook([usual, Another()], {"XY100": [ForLayers("layer1", other)]})
    [alert] = book.check(make_window(channels=(2, 2)))
    assert (alert.layer, alert.message) == ("layer0", "usual; 1 more layer affected")
    usual.answers.pop(0)
    other.answers.pop(0)
    [alert] = AlertBook([usual], {"XY100": [ForLayers("layer1", other)]}).check(make_window(channels=(2, 2)))
    assert (alert.layer, alert.message) == ("layer1", "special")


# -- states that do not load -------------------------------------------------------------------------------------------


def ill() -> Story:
    story = Story()
    story.check(finding(1, 5))
    story.check(finding(1, 5), finding(3, 12))
    return story


def test_a_state_with_the_names_of_an_older_version_goes_on_with_the_same_alerts() -> None:
    story = ill()
    state = story.book.state_dict()
    state["told"] = state.pop("announced")
    state["cases"] = state.pop("candidates")
    state["stories"] = [[message, own, also] for own, message, also in state.pop("episodes")]
    older = AlertBook([Scripted()])
    older.load_state_dict(state)
    assert older.state_dict() == story.book.state_dict()
    del state["told"]
    older.load_state_dict(state)
    assert older.state_dict() == {**story.book.state_dict(), "announced": []}


def test_a_state_holds_what_was_announced_of_the_whole_model_and_of_a_layer() -> None:
    story = Story()
    story.check(finding(None, 5), finding(1, 5))
    assert sorted(story.book.state_dict()["announced"], key=str) == [["XY100", "layer1"], ["XY100", None]]
    assert resumed(story).book.state_dict() == story.book.state_dict()


def test_without_layers_none_is_held() -> None:
    held = AlertBook([Scripted()]).held(discover({"": nn.Linear(2, 2)}).table)
    assert (held.dtype, held.tolist()) == (torch.bool, [])


def _no_step(state: dict[str, Any]) -> None:
    state["candidates"][0][3] = "5"


def _no_clock(state: dict[str, Any]) -> None:
    state["clock"] = None


def _no_message(state: dict[str, Any]) -> None:
    state["episodes"][0][1] = 5


def _no_count(state: dict[str, Any]) -> None:
    state["episodes"][0][0] = "1"


def _no_episode(state: dict[str, Any]) -> None:
    state["episodes"].clear()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_no_step, "^a step of a candidate is not an int$"),
        (_no_clock, "^a step of a candidate is not an int$"),
        (_no_message, "^a message of an alert is not a string, or a count not an int$"),
        (_no_count, "^a message of an alert is not a string, or a count not an int$"),
        (_no_episode, "shorter"),
    ],
)
def test_a_damaged_state_is_refused(damage: Callable[[dict[str, Any]], None], says: str) -> None:
    state = ill().book.state_dict()
    damage(state)
    with pytest.raises((TypeError, ValueError), match=says):
        AlertBook([Scripted()]).load_state_dict(state)


def test_a_candidate_without_an_alert_is_kept_in_a_state() -> None:
    story = Story(Patient())
    story.check(finding(1, 4))
    story.check(finding(1, 9))
    [alert] = resumed(story).check(finding(1, 14))
    assert isinstance(alert, Alert)
    assert (alert.first_step, alert.last_step) == (4, 29)
