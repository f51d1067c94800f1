"""A learning rate for the next training, from records made to order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bnmonitor import Monitor
from bnmonitor import open as open_runs
from bnmonitor.results import Incident, RateSuggestion, advised_rate, suggest_rate
from bnmonitor.rules.advice import slower
from tests.histories import an_alert, an_incident, write

STEPS = [*range(0, 200, 10)]
BACK = "go back to a learning rate of 0.1, or clip gradients: Trainer(gradient_clip_val=1.0)"


def incident(first: int, advice: str, last: int | None = None) -> Incident:
    state = {"state": "open" if last is None else "cleared", "last_step": last or 190}
    return Incident.from_dict(an_incident(an_alert("a.bn", first, **state), advice=advice))


@pytest.mark.parametrize(
    ("rates", "incidents", "expected"),
    [
        pytest.param([0.1] * 20, [], (None, 0.1), id="calm to the end"),
        pytest.param([0.1] * 10 + [10.0] * 10, [incident(100, BACK)], (0.1, 0.1), id="raised"),
        pytest.param(
            [3.0] * 20, [incident(0, "lower the learning rate to about 0.05, or")], (0.05, None), id="at once"
        ),
        pytest.param([3.0] * 20, [incident(0, "lower the learning rate to a third, or")], (1.0, None), id="a third"),
        pytest.param([3.0] * 20, [incident(0, "use a larger batch")], None, id="of something else"),
        pytest.param([0.2] * 8 + [0.1] * 12, [incident(20, "x", last=79)], (None, 0.1), id="calm after it was over"),
        pytest.param([float("nan")] * 20, [], None, id="unknown"),
        pytest.param([0.1] * 17 + [0.9] * 3, [], (None, 0.1), id="too new to be calm"),
        pytest.param([0.1, 0.5] + [0.1] * 18, [], (None, 0.1), id="one step says little"),
    ],
)
def test_what_is_known_is_suggested(rates: list[float], incidents: list[Incident], expected: Any) -> None:
    found = suggest_rate(STEPS, rates, incidents)
    assert (None if found is None else (found.advised, found.calm)) == expected


def test_the_smaller_rate_counts_and_the_sentence_names_both() -> None:
    both = RateSuggestion(advised=0.3, calm=0.6, steps=40)
    assert both.rate == 0.3
    assert (
        str(both) == "learning rate 0.3: the incident derived 0.3; statistics stayed calm up to 0.6 (40 recorded steps)"
    )
    assert str(RateSuggestion(advised=0.3, calm=None, steps=0)).endswith(
        "the incident derived 0.3; no calm rate is known"
    )


@pytest.mark.parametrize("rate", [7.3e-5, 0.02, 3.0, 450.0])
@pytest.mark.parametrize("before", [0.0, 1.3e-6])
def test_every_rate_that_the_rule_derives_is_read_back(rate: float, before: float) -> None:
    advice = slower(rate, 9.0, before)
    read = advised_rate(advice, rate)
    assert read is not None
    assert 0 < read < rate
    assert f"{read:.3g}" in advice


def test_an_advice_to_raise_the_rate_is_none() -> None:
    assert advised_rate("raise the learning rate to 0.1 and check whether the loss moves", 0.01) is None
    assert advised_rate("go back to a learning rate of 0.1", 0.05) is None


def test_a_recorded_run_and_a_monitor_suggest_and_say_when_nothing_is_known(tmp_path: Path) -> None:
    write(tmp_path, ("a.bn",), range(60))
    assert str(open_runs(tmp_path)["."].suggest_lr()).startswith("learning rate 0.1: statistics stayed calm up to 0.1")
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with Monitor(model, optimizer=optimizer, sinks=[]) as monitor:
        assert monitor.suggest_lr() is None
        for _ in range(40):
            optimizer.zero_grad()
            model(torch.randn(32, 4)).square().mean().backward()
            optimizer.step()
            monitor.step()
    found = monitor.suggest_lr()
    assert found is not None
    assert (found.rate, found.calm, found.advised) == (0.05, 0.05, None)
