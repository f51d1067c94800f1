"""The random states of a training, and what an import changes in the process, with each sink that is there by default.

Each training runs in a process of its own: a package is imported for the first time only once.
"""

from __future__ import annotations

import gc
import io
import locale
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from bnmonitor import Finding, Monitor, Rule, Severity
from bnmonitor._settings import settings
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
from bnmonitor._settings import settings
before = [value for _, _, value in settings()]
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
      [str(now) for (_, _, now), then in zip(settings(), before) if now != then])
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


def nothing(*_: Any) -> None:
    pass


CHANGES: dict[str, Callable[[], object]] = {
    "warning filters": lambda: warnings.simplefilter("ignore"),
    "a warning filter": lambda: warnings.filterwarnings("error", "text"),
    "how warnings are shown": lambda: setattr(warnings, "showwarning", nothing),
    "a signal handler": lambda: signal.signal(signal.SIGTERM, nothing),
    "Ctrl-C": lambda: signal.signal(signal.SIGINT, nothing),
    "the locale": lambda: locale.setlocale(locale.LC_ALL, "C" if locale.setlocale(locale.LC_ALL) != "C" else "C.UTF-8"),
    "the default dtype": lambda: torch.set_default_dtype(torch.float64),
    "the number of threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "the grad mode": lambda: torch.set_grad_enabled(not torch.is_grad_enabled()),
    "anomaly detection": lambda: torch.set_anomaly_enabled(True),
    "deterministic algorithms": lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    "the precision of products": lambda: torch.set_float32_matmul_precision("medium"),
    "cuDNN's benchmark": lambda: setattr(torch.backends.cudnn, "benchmark", not torch.backends.cudnn.benchmark),
    "NumPy's errors": lambda: np.seterr(all="raise"),
    "the directory": lambda: os.chdir("/"),
    "garbage collection": gc.disable,
    "the thresholds of garbage collection": lambda: gc.set_threshold(7),
    "a handler of the root logger": lambda: logging.getLogger().addHandler(logging.StreamHandler()),
    "the level of the root logger": lambda: logging.getLogger().setLevel(7),
    "logging": lambda: logging.disable(logging.CRITICAL),
    "the recursion limit": lambda: sys.setrecursionlimit(5000),
    "the switch interval": lambda: sys.setswitchinterval(0.5),
    "the timeout of sockets": lambda: socket.setdefaulttimeout(3),
    "the exception hook": lambda: setattr(sys, "excepthook", nothing),
    "the exception hook of threads": lambda: setattr(threading, "excepthook", nothing),
    "standard output": lambda: setattr(sys, "stdout", io.StringIO()),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_other_packages_change_in_the_process_is_put_back_also_after_an_error(what: str) -> None:
    before = [value for _, _, value in settings()]

    @undisturbed()
    def changed() -> None:
        CHANGES[what]()
        assert [value for _, _, value in settings()] != before, "nothing was changed"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        changed()
    assert [value for _, _, value in settings()] == before


@pytest.mark.parametrize("what", CHANGES)
def test_a_sink_and_a_rule_that_change_the_process_change_nothing_for_the_training(what: str) -> None:
    class Changes(Draws):
        def open(self, run: Run) -> None:
            CHANGES[what]()

    @dataclass(frozen=True, kw_only=True)
    class ChangingRule(DrawingRule):
        def check(self, window: Window) -> list[Finding]:
            CHANGES[what]()
            return []

    model, before = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)), [value for _, _, value in settings()]
    for keywords in ({"sinks": [Changes()]}, {"sinks": [], "rules": [ChangingRule()]}):
        with Monitor(model, check_every_n_steps=1, on_alert="log", **keywords) as monitor:  # type: ignore[arg-type]
            model(torch.ones(4, 4))
            monitor.step()
            assert [value for _, _, value in settings()] == before
        assert monitor.failure == ""
    assert [value for _, _, value in settings()] == before


def test_nothing_is_written_where_nothing_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[object] = []
    monkeypatch.setattr(signal, "signal", lambda *args: written.append(args))
    monkeypatch.setattr(warnings, "_filters_mutated", lambda: written.append("filters"), raising=False)
    monkeypatch.setattr(torch, "set_num_threads", written.append)
    with undisturbed():
        random.random()
    assert written == []


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
