"""An error at some lines of bnmonitor, chosen by the seed of the order of the tests; ``make inject`` tries all."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

LINES = 40


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_an_error_at_any_line_is_kept_from_the_training_and_ctrl_c_arrives(request: pytest.FixtureRequest) -> None:
    seed = int(request.config.getoption("randomly_seed", None) or random.randrange(10**6))
    # A process of its own: a fork of one with threads may hang, and other tests leave threads.
    command = [sys.executable, "-m", "tests.inject", f"--sample={LINES}", f"--seed={seed}"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False, env={**os.environ}
    )
    last = done.stdout.splitlines()[-1] if done.stdout else ""
    assert done.returncode == 0, f"again: {' '.join(command[1:])}\n{done.stdout}\n{done.stderr[-2000:]}"
    assert last.startswith(f"{2 * LINES} injected, ")
    held = int(last.split(", ")[1].split()[0])
    assert held >= LINES
