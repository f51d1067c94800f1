"""Thresholds of a rule, and of a rule in some layers only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bnmonitor import Monitor
from bnmonitor.rules import by_layer, choose, find, judge
from bnmonitor.testing import make_window

torch.set_num_threads(1)
DEAD = [1.0] * 8 + [5e-5] * 2
"""A fifth of the channels below ten eps, none below eps."""


def found(rules: Any, code: str, **window: Any) -> list[int | None]:
    """The layers in which a rule finds something under these thresholds."""
    [rule] = choose(select=(code,), rules=rules)
    return [f.layer for f in judge(rule, by_layer(rules).get(code, ()), make_window(**window))]


def test_thresholds_of_some_layers_apply_only_there() -> None:
    window = {"channels": (10, 10), "batch_var": DEAD * 2, "running_var": DEAD * 2}
    quiet = {"warn_share": 0.5}
    assert found({}, "BN105", **window) == [0, 1]
    both = {"variance-collapse": {**quiet, "eps_factor": 1}}
    assert found(both, "BN105", **window) == []
    only = {"variance-collapse": {"layers": {"layer1": {"eps_factor": 1}}}}
    assert found(only, "BN105", **window) == [0]
    other = {"variance-collapse": {"eps_factor": 1, "layers": {"layer1": {"eps_factor": 10}}}}
    assert found(other, "BN105", **window) == [1]


def test_first_matching_pattern_counts_and_the_other_thresholds_are_those_of_the_rule() -> None:
    rules = {"small-batch": {"warn_below": 40, "layers": {"layer1": {"error_below": 20}, "layer*": {"warn_below": 2}}}}
    [first, second] = by_layer(rules)["BN201"]
    assert (first.pattern, second.pattern) == ("layer1", "layer*")
    assert vars(first.rule)["warn_below"] == 40
    assert vars(second.rule) == {**vars(find("BN201")), "warn_below": 2}
    [finding] = judge(
        choose(("BN201",), rules=rules)[0], by_layer(rules)["BN201"], make_window(channels=(2, 2), sizes=8)
    )
    assert (finding.layer, finding.layers, str(finding.severity)) == (1, (1,), "error")


def test_fault_of_the_whole_model_names_the_layers_with_a_broken_threshold() -> None:
    rules = {"small-batch": {"layers": {"layer0": {"warn_below": 4, "error_below": 2}}}}
    [finding] = judge(
        choose(("BN201",), rules=rules)[0], by_layer(rules)["BN201"], make_window(channels=(2, 2, 2), sizes=8)
    )
    assert (finding.layer, finding.layers) == (1, (1, 2))


def a_model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2), nn.BatchNorm1d(2))


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ({"small-batch": {"layers": 4}}, r"must map 'layers' of 'small-batch' to thresholds by pattern .*, got 4$"),
        ({"small-batch": {"layers": {4: {}}}}, r"to thresholds by pattern of layer names, .*, got \{4: \{\}\}$"),
        ({"small-batch": {"layers": {"1": 4}}}, "must map the pattern '1' of 'small-batch' to .*warn_below.*, got 4$"),
        (
            {"small-batch": {"layers": {"1": {"warn_bellow": 4}}}},
            "no threshold 'warn_bellow'; did you mean 'warn_below'",
        ),
        ({"small-batch": {"layers": {"1": {"warn_below": "4"}}}}, "must be a number, got '4'"),
        ({"small-batch": {"layers": {"11": {"warn_below": 4}}}}, "'11' of 'small-batch' matches no BatchNorm layer"),
    ],
)
def test_invalid_settings_are_refused_at_construction(rules: Any, says: str) -> None:
    with pytest.raises((TypeError, ValueError), match=says):
        Monitor(a_model(), rules=rules, sinks=[])


def test_monitor_judges_each_layer_by_its_own_thresholds() -> None:
    model = a_model()
    rules = {"small-batch": {"layers": {"1": {"warn_below": 4}}}}
    with Monitor(model, rules=rules, select=("BN201",), on_alert="log", sinks=[]) as monitor:
        model(torch.randn(8, 3)).square().mean().backward()
        monitor.step()
    assert [(a.layer, a.layers) for a in monitor.alerts] == [("4", ("4",))]
