"""The monitor computes on the thread that calls it, and leaves PyTorch's number of threads as it was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from torch import nn

from bnmonitor import Alert, Monitor, Severity
from bnmonitor.monitor.single_threaded import SingleThreaded
from bnmonitor.rules import Finding, Rule
from bnmonitor.window import Window

THREADS = 3


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """PyTorch has several threads, as in most trainings."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


def test_there_is_one_thread_inside_and_as_many_as_before_after_it() -> None:
    alone = SingleThreaded()
    with alone:
        assert torch.get_num_threads() == 1
        with alone:
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == THREADS


def test_the_threads_come_back_after_an_error() -> None:
    with pytest.raises(KeyboardInterrupt), SingleThreaded():
        raise KeyboardInterrupt
    assert torch.get_num_threads() == THREADS


@dataclass(frozen=True, kw_only=True)
class Counts(Rule):
    """Notes how many threads there are while rules judge, and finds something."""

    code: ClassVar[str] = "XX101"
    name: ClassVar[str] = "counts-threads"
    severity: ClassVar[Severity] = Severity.WARNING
    seen: list[int] = field(default_factory=list)

    def check(self, window: Window) -> list[Finding]:
        self.seen.append(torch.get_num_threads())
        about = {"first_step": 0, "value": 1.0, "threshold": 0.0, "message": "found", "advice": "none"}
        return [Finding(severity=Severity.WARNING, layer=0, **about)]  # type: ignore[arg-type]


def test_rules_judge_on_one_thread_and_what_is_the_users_runs_on_all() -> None:
    model, rule, told = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)), Counts(), list[int]()

    def on_alert(alert: Alert) -> None:
        told.append(torch.get_num_threads())

    with Monitor(model, rules=[rule], on_alert=on_alert, sinks=[]) as monitor:
        for _ in range(20):
            model(torch.randn(16, 4)).sum().backward()
            monitor.step()
            assert torch.get_num_threads() == THREADS
        monitor.summary()
    assert set(rule.seen) == {1}
    assert set(told) == {THREADS}
    assert torch.get_num_threads() == THREADS
