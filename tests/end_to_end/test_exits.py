"""Processes that exchange their statistics end as they do without a monitor, and as soon."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from tests.distributed.exits import CASES
from tests.processes import run_cases

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not dist.is_gloo_available(), reason="forks processes that talk over gloo"
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case of :mod:`tests.distributed.exits`, run once."""
    return run_cases("exits", tmp_path_factory.mktemp("exits"), CASES)


def said(runs: Path, case: str) -> list[dict[str, Any]]:
    """The report of each process, rank 0 first."""
    return [json.loads((runs / case / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_no_process_dies_of_what_they_send_each_other(runs: Path, case: str) -> None:
    """Gloo ends a process that receives more than it expects, for example of layers that it does not have."""
    assert json.loads((runs / case / "ends.json").read_text()) == [0, 0], said(runs, case)


@pytest.mark.parametrize(
    ("case", "why", "steps"),
    [
        ("different", "they watch different layers", 4),
        ("narrowed-in-one", "they watch different layers", 4),
        ("widened", "more layers or channels than at the beginning", 4),
        ("widened-in-one", "more layers or channels than at the beginning", 4),
    ],
)
def test_what_the_processes_cannot_send_each_other_is_reported(runs: Path, case: str, why: str, steps: int) -> None:
    for process in said(runs, case):
        assert why in process["skipped"]
        assert process["heard"] is None
        assert len(process["steps"]) == steps


def test_narrower_layers_are_sent_like_those_before(runs: Path) -> None:
    for process in said(runs, "narrowed"):
        assert process["skipped"] == ""
        assert process["heard"][0] > process["steps"][0]
        assert process["heard"][1] == 5


@pytest.mark.parametrize("case", ["unanswered", "failing"])
def test_a_process_does_not_wait_at_its_end_for_one_that_never_answers(runs: Path, case: str) -> None:
    _, second = said(runs, case)
    assert second == {"outlived": True}
