"""The random states of a training, and what an import changes in the process, with each sink that is there by default.

Each training runs in a process of its own: a package is imported for the first time only once.
"""

from __future__ import annotations

import random
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from bnmonitor import Finding, Monitor, Rule, Severity
from bnmonitor._undisturbed import undisturbed
from bnmonitor.sinks import Run, Sink
from bnmonitor.summary import Summary
from bnmonitor.window import Window

TRAINING = """
import random, sys, warnings
import numpy as np, torch
from torch import nn
import bnmonitor
how, folder = sys.argv[1:]
torch.manual_seed(0); random.seed(0); np.random.seed(0)
model = nn.Sequential(nn.Linear(20, 16, bias=False), nn.BatchNorm1d(16, momentum=.99), nn.ReLU(), nn.Linear(16, 2))
optimizer = torch.optim.SGD(model.parameters(), .1)
before = list(warnings.filters)
keywords = {"console": {}, "history": {"log_dir": folder}, "black box": {"log_dir": folder, "sinks": []}}
monitor = None
if how in keywords:
    monitor = bnmonitor.Monitor(model, optimizer=optimizer, log_every_n_steps=4, **keywords[how]).start()
def step(i):
    x = torch.randn(64, 20) * random.choice([1.0, 1.1, 1.2, 1.3]) + float(np.random.rand())
    if i == 30:
        x[0] = torch.inf
    optimizer.zero_grad(); model(x).square().mean().backward(); optimizer.step()
for i in range(40):
    step(i)
    if monitor: monitor.step()
if monitor:
    monitor.end_epoch(0); monitor.close()
    assert "rich" in sys.modules or how == "black box", "nothing was printed"
digest = lambda tensors: [bytes(t.detach().contiguous().view(-1).view(torch.uint8).numpy()).hex() for t in tensors]
print("END", [digest(t) for t in (model.parameters(), model.buffers(), [torch.get_rng_state()])], random.getstate(),
      np.random.get_state()[1].tobytes().hex(), torch.get_default_dtype(), torch.get_num_threads(),
      before == list(warnings.filters))
"""


def end(how: str, folder: Path) -> str:
    command = [sys.executable, "-W", "ignore", "-c", TRAINING, how, str(folder)]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    return next(line for line in out.stdout.splitlines() if line.startswith("END"))


def test_a_training_ends_with_the_same_bits_and_random_states_under_each_default_sink(tmp_path: Path) -> None:
    alone = end("alone", tmp_path)
    assert [how for how in ("console", "history", "black box") if end(how, tmp_path) != alone] == []


def draw() -> None:
    random.random()
    np.random.rand()
    torch.rand(1)


class Draws(Sink):
    """A sink that draws random numbers whenever it is called."""

    def open(self, run: Run) -> None:
        draw()

    def frame(self, summary: Summary) -> None:
        draw()

    def close(self, summary: Summary) -> None:
        draw()


@dataclass(frozen=True, kw_only=True)
class DrawingRule(Rule):
    """A rule that draws random numbers at each check."""

    code: ClassVar[str] = "BN990"
    name: ClassVar[str] = "draws"
    severity: ClassVar[Severity] = Severity.INFO

    def check(self, window: Window) -> list[Finding]:
        draw()
        return []


@pytest.mark.parametrize("keywords", [{"sinks": [Draws()]}, {"sinks": [], "rules": [DrawingRule()]}])
def test_a_sink_and_a_rule_that_draw_take_nothing_from_the_training(keywords: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
    python, numpy, state = random.getstate(), np.random.get_state()[2], torch.get_rng_state()
    with Monitor(model, log_every_n_steps=1, check_every_n_steps=1, on_alert="log", **keywords) as monitor:
        for _ in range(3):
            model(torch.ones(4, 4))
            monitor.step()
    assert monitor.failure == ""
    assert (random.getstate(), np.random.get_state()[2]) == (python, numpy)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_an_import_changes_is_put_back_also_after_an_error() -> None:
    filters, dtype, threads = list(warnings.filters), torch.get_default_dtype(), torch.get_num_threads()

    @undisturbed(imports=True)
    def imported() -> None:
        warnings.simplefilter("ignore")
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(threads + 1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        imported()
    assert (list(warnings.filters), torch.get_default_dtype(), torch.get_num_threads()) == (filters, dtype, threads)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_default_dtype_ends_no_watch_and_stays_as_it_is(dtype: torch.dtype) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
        with Monitor(model, sinks=[], on_alert="log", check_every_n_steps=2, sample_every_n_steps=4) as monitor:
            for _ in range(12):
                model(torch.randn(16, 4)).square().mean().backward()
                monitor.step()
            with monitor.evaluation():
                model.eval()(torch.randn(16, 4))
            state = monitor.state_dict()
        assert torch.get_default_dtype() == dtype
        with Monitor(model.train(), sinks=[], on_alert="log") as second:
            second.load_state_dict(state)
            model(torch.randn(16, 4))
            second.step()
    finally:
        torch.set_default_dtype(before)
    assert (monitor.failure, second.failure, second.steps) == ("", "", tuple(range(13)))
    assert [alert for alert in monitor.alerts if alert.code in ("BN001", "BN002")] == []
