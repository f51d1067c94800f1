"""A training on an accelerator: nothing waits for it, few operations are started, and what is recorded is the same.

The accelerator is the one of :mod:`tests.device`, in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.end_to_end.on_device import CHECKS, SAMPLES
from tests.processes import GUARD

MOST_LAUNCHES = 12
"""Operations that a step may start, however many layers there are."""

HARMLESS = {"norm", "where", "slice", "device"}

SOUND = ("every kind", "made", "residual", "half")


@pytest.fixture(scope="module")
def cases() -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.end_to_end.on_device"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=GUARD, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_device_of_the_tests_notices_each_way_to_wait_for_it(cases: dict[str, Any]) -> None:
    assert {name for name, waits in cases["noticed"].items() if not waits} == HARMLESS


@pytest.mark.parametrize("name", [*SOUND, "begun", "diverging"])
def test_no_step_no_check_and_no_sampled_step_waits(cases: dict[str, Any], name: str) -> None:
    *steps, end = cases[name]["steps"]
    assert end["failure"] == ""
    assert {i: step["waits"] for i, step in enumerate(steps) if step["waits"]} == {}


@pytest.mark.parametrize("name", SOUND)
def test_what_is_recorded_is_the_same_bit_for_bit(cases: dict[str, Any], name: str) -> None:
    assert cases[name]["apart"] == []
    there, here = cases[name]["alerts"]
    assert there == here
    there, here = cases[name]["losses"]
    assert there == here


def test_a_model_that_is_moved_before_the_first_step_loses_the_batch_of_that_step_only(cases: dict[str, Any]) -> None:
    """Nobody knows what its new tensors held before the forward: only the batch statistics are missing."""
    assert {at.split()[-1] for at in cases["begun"]["apart"]} == {"batch_mean", "batch_var"}
    assert cases["begun"]["missing"] == 1


@pytest.mark.parametrize("name", SOUND)
def test_a_step_starts_few_operations_however_many_layers_there_are(cases: dict[str, Any], name: str) -> None:
    usual = [s["launches"] for i, s in enumerate(cases[name]["steps"][:-1]) if (i + 1) % CHECKS and i % SAMPLES]
    assert max(usual) == min(usual) <= MOST_LAUNCHES


def test_a_sample_comes_by_one_copy(cases: dict[str, Any]) -> None:
    sampled = [s["copies"] for i, s in enumerate(cases["every kind"]["steps"][:-1]) if i and i % SAMPLES == 0]
    assert sampled
    assert set(sampled) == {1}


def test_the_trainings_sample_all_that_a_device_reduces(cases: dict[str, Any]) -> None:
    """Else the tests above would show less than they say."""
    assert max(cases["every kind"]["stirred"]) > 0
    assert any(rate < 1024.0 for rate in cases["every kind"]["scales"])


def test_the_verdict_on_a_training_that_diverges_comes_one_check_late(cases: dict[str, Any]) -> None:
    there, here = cases["diverging"]["stopped"]
    assert here < there <= here + CHECKS
    first, *_ = (alerts[0] for alerts in cases["diverging"]["alerts"])
    assert first == cases["diverging"]["alerts"][1][0]
