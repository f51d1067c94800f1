"""Every injection once, each on one network; benchmarks/detection.py runs them on all."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.conftest import MARGIN
from tests.end_to_end.faults.catalogue import INJECTIONS, TRIED, example
from tests.end_to_end.faults.injection import Injection
from tests.end_to_end.faults.networks import ALL, NETWORKS, Network
from tests.end_to_end.faults.power import least_found
from tests.end_to_end.faults.ranks import tried
from tests.end_to_end.faults.trial import Outcome, Trial

SEEDS = 3
"""Trainings of a fault whose rule judges a value with noise."""

SURE = 6.0
"""Times its noise beyond the threshold from which on one training is enough: one in 10^9 is missed."""


def margin(outcome: Outcome) -> str:
    """How far the value that was told of is from its threshold, as a text."""
    alert = outcome.alert()
    if alert is None:
        return "not found"
    value, threshold = alert["value"], alert["threshold"]
    ratio = f" = {value / threshold:.2f}" if threshold else ""
    return f"{value:.3g} / {threshold:.3g}{ratio}"


@pytest.mark.parametrize("fault", [pytest.param(f, id=f.name) for f in TRIED])
def test_a_fault_is_found_in_its_layer(fault: Injection, record_property: Callable[[str, object], None]) -> None:
    """In each training if it has no noise, else in as many as its strength promises (see ``power``)."""
    outcomes = [tried(example(fault), fault)]
    if outcomes[0].sigmas < SURE:
        outcomes += [tried(example(fault), fault, seed) for seed in range(1, SEEDS)]
    sigmas = [outcome.sigmas for outcome in outcomes]
    right = [outcome for outcome in outcomes if outcome.right_layer and outcome.right_channels]
    least = least_found(sigmas)
    noise = f", {', '.join(f'{z:+.1f}' for z in sigmas)} times the noise" if fault.noisy else ""
    shares = "; ".join(margin(outcome) for outcome in outcomes)
    record_property(
        MARGIN,
        f"{fault.code} {fault.name} on {outcomes[0].network}: {len(right)} of {len(outcomes)} found, "
        f"{least} must be{noise}; value / threshold: {shares}",
    )
    assert all(outcome.took_place for outcome in outcomes), "the injection itself did not work"
    assert not any(outcome.skipped for outcome in outcomes)
    assert least >= 1, f"too weak to be tested: {sigmas}"
    assert len(right) >= least, [(o.sigmas, o.blamed, o.channels, *map(described, o.told)) for o in outcomes]


def described(alert: dict[str, Any]) -> str:
    """An alert in one line."""
    return f"{alert['code']} {alert['severity']} {alert['layer']} {alert['channels']} at {alert['opened']}"


def test_one_layer_of_two_that_jumps_is_not_taken_for_a_learning_rate() -> None:
    outcome = Trial(NETWORKS["wine"], injection=INJECTIONS["weights-x30"]).run()
    assert outcome.right_layer
    assert "BN704" not in outcome.others()


@pytest.mark.parametrize(("network", "seed"), [("conv1d", 2), ("mlp", 0), ("chain", 2)])
def test_a_rate_raised_a_thousandfold_is_named_whatever_it_breaks_first(network: str, seed: int) -> None:
    fault = replace(INJECTIONS["rate-x100"], factor=1000.0)
    outcome = Trial(NETWORKS[network], injection=fault, seed=seed).run()
    told = [a for a in outcome.told if a["level"] > 10 and a["opened"] >= fault.onset]
    assert told
    first = min(a["opened"] for a in told)
    at_once = [a for a in told if a["opened"] == first]
    assert all("50" in a["message"] and "0.05" in a["message"] for a in at_once), at_once
    assert all("go back to a learning rate of 0.05" in a["advice"] for a in at_once), at_once


def test_the_same_seed_gives_the_same_outcome() -> None:
    first, second = (Trial(example(f), injection=f).run() for f in [INJECTIONS["weights-x30"]] * 2)
    assert first == second
    assert Outcome.from_dict(first.to_dict()) == first


@pytest.mark.parametrize("network", ALL, ids=lambda n: n.name)
def test_a_network_learns(network: Network) -> None:
    """A suite of networks that do not train would prove nothing."""
    losses = []

    class Listening(Injection):
        def backward(self, trial, loss):
            losses.append(float(loss.detach()))
            loss.backward()

    outcome = Trial(network, injection=Listening(steps=60)).run()
    assert outcome.steps == 60
    if network.name != "gan":
        assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
