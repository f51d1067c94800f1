"""What all tests run under, on any machine, and what a run of them says at its end."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

# Threads that share busy cores wait for each other, so that one is the default here; OMP_NUM_THREADS=2 tries two.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

# What torch.compile keeps for one processor does not compile for another, such as under ATEN_CPU_CAPABILITY=default.
_KEPT = f"bnmonitor-tests-{os.getuid() if hasattr(os, 'getuid') else 0}-{torch.backends.cpu.get_cpu_capability()}"
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir()) / _KEPT))

# How long an example takes depends on what else the machine does.
settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-machine")

MARGIN = "margin"
"""The property under which a test records how far a value is beyond its threshold."""


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Begin each test at the same random numbers of PyTorch, which pytest-randomly does not seed."""
    torch.manual_seed(0)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, ())]
    lines = sorted(text for r in reports for name, text in getattr(r, "user_properties", ()) if name == MARGIN)
    if lines:
        terminalreporter.section("margins of the injected faults")
        for line in lines:
            terminalreporter.write_line(line)
