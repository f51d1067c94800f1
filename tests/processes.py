"""Trainings in several processes: run once for a module of tests, and what each process saw of them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from bnmonitor import Monitor

GUARD = 600.0
"""Seconds after which a test that hangs is given up; nothing is judged by how long it takes."""


def run_cases(script: str, directory: Path, cases: Iterable[str], *, timeout: float = GUARD) -> Path:
    """Run cases of a script of :mod:`tests.distributed`, each of which writes into a directory of its own."""
    command = [sys.executable, "-m", f"tests.distributed.{script}", str(directory), *cases]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return directory


def seen(runs: Path, case: str) -> list[dict[str, Any]]:
    """What each process of a case saw, the first one first."""
    error = runs / case / "error.txt"
    assert not error.exists(), error.read_text()
    return [torch.load(p, weights_only=False) for p in sorted((runs / case).glob("*.pt"))]


def arrived(monitor: Monitor) -> None:
    """Wait until the exchange between the processes is complete, or has failed."""
    until = time.monotonic() + GUARD
    while monitor.exchanging:
        assert time.monotonic() < until, "an exchange between the processes has not arrived"
        time.sleep(0.001)


def assert_exact(process: dict[str, Any], least: int) -> None:
    """Compare the batch statistics that a process recorded with what its layers were given, at so many steps."""
    assert process["failed"] == ""
    compared = 0
    for layer, history in process["history"].items():
        for row, step in enumerate(process["steps"]):
            x = process["inputs"].get(step, {}).get(layer.removeprefix("net."))
            if x is not None:
                compared += 1
                assert float(((history["batch_mean"][row] - x.mean(0)) / x.std(0)).abs().max()) < 2e-5
                assert float((history["batch_var"][row] / x.var(0) - 1).abs().max()) < 2e-5
    assert compared >= least
