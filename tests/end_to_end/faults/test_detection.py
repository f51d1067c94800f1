"""Every injection once, each on one network; benchmarks/detection.py runs them on all."""

from dataclasses import replace

import pytest

from tests.end_to_end.faults.catalogue import INJECTIONS, example
from tests.end_to_end.faults.injection import Injection
from tests.end_to_end.faults.networks import ALL, NETWORKS, Network
from tests.end_to_end.faults.ranks import tried
from tests.end_to_end.faults.trial import Outcome, Trial


@pytest.mark.parametrize("fault", [pytest.param(f, id=n) for n, f in INJECTIONS.items()])
def test_a_fault_is_found_in_its_layer(fault: Injection) -> None:
    outcome = tried(example(fault), fault)
    told = [f"{a['code']} {a['severity']} {a['layer']} {a['channels']} at {a['opened']}" for a in outcome.told]
    assert outcome.took_place, "the injection itself did not work"
    assert not outcome.skipped
    assert outcome.detected, told
    assert outcome.right_layer, (outcome.blamed, told)
    assert outcome.right_channels, (outcome.channels, told)


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
