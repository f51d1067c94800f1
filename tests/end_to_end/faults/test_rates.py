"""A learning rate that is too high is the first incident and the only one; a rate that trains has none."""

import pytest

from tests.end_to_end.faults.rates import CAUSE, RateOutcome, train

CHECK = 10
"""Steps between two checks."""


def judged(outcome: RateOutcome) -> list[str]:
    return [f"{i.cause} {i.severity} {i.state} since {i.first_step}" for i in outcome.incidents]


@pytest.mark.parametrize(
    ("network", "optimizer", "rate"),
    [("mlp", "sgd", 10.0), ("chain", "sgd", 10.0), ("residual", "sgd", 10.0), ("depthwise", "sgd", 3.0),
     ("conv1d", "sgd", 10.0), ("mlp", "adam", 3.0)],
)  # fmt: skip
def test_a_rate_too_high_from_the_first_step_is_one_incident(network: str, optimizer: str, rate: float) -> None:
    outcome = train(network, optimizer, rate, steps=150)
    assert outcome.lost
    assert [i.cause for i in outcome.incidents] == [CAUSE], judged(outcome)
    [incident] = outcome.incidents
    assert incident.first_step == 0
    assert incident.state == "open"
    assert f"learning rate {rate:g} is too high" in incident.title
    assert "loss" in incident.detail
    assert outcome.left is not None
    assert outcome.error is not None
    assert outcome.error <= outcome.left + 2 * CHECK


@pytest.mark.parametrize(
    ("network", "optimizer", "rate"),
    [("mlp", "sgd", 0.1), ("chain", "sgd", 0.1), ("residual", "sgd", 0.2), ("depthwise", "adam", 0.003),
     ("conv1d", "adam", 0.01)],
)  # fmt: skip
def test_a_rate_that_trains_well_has_no_incident(network: str, optimizer: str, rate: float) -> None:
    outcome = train(network, optimizer, rate, steps=150)
    assert not outcome.lost
    assert judged(outcome) == []


def test_a_warm_up_that_ends_too_high_is_named() -> None:
    outcome = train("chain", "sgd", 10.0, schedule=lambda step: min(1.0, (step + 1) / 100))
    assert outcome.right, judged(outcome)
    assert len(outcome.incidents) == 1


def test_a_rate_that_is_raised_at_once_is_named_with_the_rate_before() -> None:
    outcome = train("chain", "sgd", 10.0, schedule=lambda step: 1.0 if step >= 100 else 0.005)
    assert outcome.right, judged(outcome)
    assert len(outcome.incidents) == 1
    assert "was 0.05" in outcome.incidents[0].title


def test_a_rate_too_high_in_one_parameter_group_names_the_group() -> None:
    outcome = train("chain", "sgd", 10.0, fast_from=3, steps=100)
    assert outcome.right, judged(outcome)
    assert "of parameter group 1" in outcome.incidents[0].title


@pytest.mark.parametrize("loss_every", [0, 7])
def test_a_rate_is_judged_without_a_loss_and_with_one_now_and_then(loss_every: int) -> None:
    high = train("mlp", "sgd", 10.0, steps=60, loss_every=loss_every)
    assert high.right, judged(high)
    assert len(high.incidents) == 1
    assert high.error is not None
    sound = train("chain", "sgd", 0.1, steps=60, loss_every=loss_every)
    assert judged(sound) == []
