"""Faults of graded size are what they say; benchmarks/detection.py draws the curves."""

import pytest

from bnmonitor.rules import find
from tests.end_to_end.faults.graded import CURVES, Curve
from tests.end_to_end.faults.networks import NETWORKS
from tests.end_to_end.faults.trial import Outcome, Trial


def run(curve: Curve, size: float | None) -> Outcome:
    outcome = Trial(NETWORKS[curve.networks[0]], injection=curve.training(size)).run()
    outcome.code = curve.code
    return outcome


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.name)
def test_a_curve_is_of_one_rule_and_is_scored(curve: Curve) -> None:
    assert find(curve.code).code == curve.code
    assert list(curve.sizes) in (sorted(curve.sizes), sorted(curve.sizes, reverse=True))
    for size in (None, *curve.sizes):
        training = curve.training(size)
        assert training.scored
        assert training.name == curve.name
        assert training.severity is curve.least
        assert training.onset < training.evaluate_every * (training.steps // training.evaluate_every)
        assert size is None or training.code == curve.code
    fault, without = curve.training(curve.sizes[-1]), curve.training(None)
    assert fault.onset == without.onset
    assert all(fault.fits(NETWORKS[network]) for network in curve.networks)


def test_the_names_of_curves_are_unique() -> None:
    assert len({curve.name for curve in CURVES}) == len(CURVES)


def test_a_strong_fault_is_found_and_costs_accuracy_and_none_does_neither() -> None:
    [curve] = [curve for curve in CURVES if curve.code == "BN701"]
    strong, without = run(curve, curve.sizes[-1]), run(curve, None)
    assert strong.detected
    assert not without.detected
    assert strong.score is not None
    assert without.score is not None
    assert without.score > 0.9
    assert strong.score < 0.5
