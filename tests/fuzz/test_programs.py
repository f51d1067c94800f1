"""Random programs leave behind what they do without bnmonitor, and what is recorded of them is true.

The first line of a failure says how to run its program again. ``FUZZ_SEED`` chooses other programs than the seed of the
order of the tests does, ``FUZZ_PROGRAMS`` another number of them.
"""

from __future__ import annotations

import os

import pytest

from tests.fuzz.__main__ import examined
from tests.fuzz.program import compose

PARTS = 5
PROGRAMS = int(os.environ.get("FUZZ_PROGRAMS", "100"))


@pytest.mark.parametrize("part", range(PARTS))
def test_a_random_program_is_not_disturbed_and_recorded_truly(part: int, request: pytest.FixtureRequest) -> None:
    first = int(os.environ.get("FUZZ_SEED") or request.config.getoption("randomly_seed", None) or 0)
    seeds = range(first + part, first + PROGRAMS, PARTS)
    print(f"programs of the seeds {seeds.start} to {seeds.stop - 1}, every {PARTS}th")
    rows = 0
    for seed in seeds:
        result = examined(compose(seed))
        rows += result.rows
        wrong = "\n".join(result.wrong[:8])
        assert not result.wrong, f"again: python -m tests.fuzz --seed {seed}\n{result.program}\n{wrong}"
    assert rows > len(seeds), "hardly a program recorded anything"
