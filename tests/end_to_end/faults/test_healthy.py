"""A part of the healthy suite, a run of each kind; benchmarks/detection.py runs all of it."""

import pytest

from tests.end_to_end.faults.fits import FITS
from tests.end_to_end.faults.healthy import HEALTHY, Case

_KINDS = {case.name: [other for other in HEALTHY if other.name == case.name] for case in HEALTHY}
CHOSEN = [cases[i % len(cases)] for i, cases in enumerate(_KINDS.values()) if cases[0].injection.steps < 300][::2]


@pytest.mark.parametrize("case", CHOSEN, ids=lambda case: case.key)
def test_it_does_not_cry_wolf_over_a_sound_training(case: Case) -> None:
    outcome = case.run()
    assert not [f"{a['code']} {a['severity']} {a['layer']}: {a['message']}" for a in outcome.alarms()]


def test_the_healthy_suite_is_as_long_as_it_says() -> None:
    assert sum(case.injection.steps for case in HEALTHY) >= 20_000
    assert len({case.key for case in HEALTHY}) == len(HEALTHY)


@pytest.mark.parametrize("name", ["rate-finder", "finetuning", "weights-averaged-late"])
def test_it_does_not_cry_wolf_over_a_sound_fit(name: str) -> None:
    assert not [f"{a['code']} {a['severity']} {a['layer']}: {a['message']}" for a in FITS[name]().alarms()]
