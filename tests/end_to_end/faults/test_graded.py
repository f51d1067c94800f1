"""Faults of graded size are what they say; benchmarks/detection.py draws the curves."""

from typing import Any

import pytest

from benchmarks.detection_power import grades, section
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


LEVELS = {"info": 10, "warning": 20, "error": 30}


def made(curve: Curve, size: float | None, seed: int, said: str, score: float) -> tuple[float | None, Outcome]:
    """An outcome in which rules spoke: ``BN601 warning 70, ...``, each with the step."""
    alerts: list[dict[str, Any]] = []
    for code, level, opened in (words.split() for words in said.split(", ") if words):
        alerts.append({"code": code, "level": LEVELS[level], "opened": int(opened), "layer": "0", "channels": []})
    training = curve.training(size)
    least, start = int(training.severity), 60
    found = Outcome(curve.name, curve.code, (), "chain", seed, 200, start, least, told=alerts, score=score)
    return size, found


@pytest.mark.parametrize(
    ("fault", "without", "found", "told"),
    [
        ("BN107 warning 70", "", 1, 1),
        ("BN601 warning 70", "", 0, 1),
        ("BN601 error 70, BN702 warning 80", "BN601 warning 70", 0, 1),
        ("BN601 warning 70", "BN601 error 90", 0, 0),
        ("BN601 warning 70", "BN601 info 90", 0, 1),
        ("BN601 warning 70", "BN601 warning 50", 0, 1),  # before the injection: another alert
        ("BN601 info 70", "", 0, 0),
        ("BN601 warning 50", "", 0, 0),
        ("BN107 info 70", "", 0, 0),
        ("BN107 warning 70", "BN107 warning 80", 1, 0),
        ("", "BN601 warning 70", 0, 0),
    ],
)
def test_told_is_what_the_training_without_the_fault_was_not_told_of(
    fault: str, without: str, found: int, told: int
) -> None:
    [curve] = [curve for curve in CURVES if curve.code == "BN107"]
    size = curve.sizes[0]
    graded = [made(curve, None, 0, without, 0.9), made(curve, size, 0, fault, 0.8)]
    [grade] = [grade for grade in grades(curve, graded) if grade.size == size]
    assert (grade.found, grade.told, grade.runs) == (found, told, 1)
    assert grade.loss == pytest.approx(10.0)


def test_a_rule_that_should_give_an_info_has_told_with_one() -> None:
    [curve] = [curve for curve in CURVES if curve.code == "BN603"]
    graded = [made(curve, None, 0, "", 0.9), made(curve, 0.5, 0, "BN603 info 70", 0.8)]
    assert [(g.found, g.told) for g in grades(curve, graded) if g.runs] == [(0, 0), (1, 1)]


def test_the_table_says_what_is_told_where_harm_begins_by_any_rule() -> None:
    [curve] = [curve for curve in CURVES if curve.code == "BN107"]
    said = ("", "BN601 warning 70", "BN107 warning 70")
    graded = [
        made(curve, size, seed, "" if size is None else said[(i + seed) % 3], 0.9 if size is None else 0.5 + seed / 100)
        for i, size in enumerate((None, *curve.sizes))
        for seed in range(3)
    ]
    text = "\n".join(section(graded))
    [row] = [line for line in text.splitlines() if line.startswith("| [BN107]")]
    assert "| chain 2 | 33 % (6–79) | 67 % (21–94) |" in row
    [first] = [line for line in text.splitlines() if line.startswith("| 2 | 3 |")]
    assert first.startswith("| 2 | 3 | 33 % (6–79) | 67 % (21–94) | +39.0")


def test_what_is_to_be_said_of_a_curve_stands_above_its_table() -> None:
    [curve] = [curve for curve in CURVES if curve.code == "BN704"]
    text = "\n".join(section([made(curve, None, 0, "", 0.9), made(curve, 2, 0, "", 0.8)]))
    assert " ".join(curve.note.split()) in " ".join(text.split())
