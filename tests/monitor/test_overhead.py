"""The time that bnmonitor may take: measured by itself, and kept by checking and sampling less often."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from bnmonitor import BatchNormMonitor, Monitor
from bnmonitor.monitor.overhead import ALLOWANCE, Overhead


class Clock:
    """Time passes only when the test says so, or by a tick at each look."""

    def __init__(self, tick: float = 0.0) -> None:
        self.now, self.tick = 100.0, tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


def test_only_the_time_inside_counts_as_the_monitors_own() -> None:
    clock, hooks = Clock(), [0.0]
    overhead = Overhead(0.01, lambda: hooks[0], clock)
    assert math.isnan(overhead.share)
    overhead.begin()
    clock.now += 80
    with overhead:
        clock.now += 10
        with overhead:  # a part calls another
            clock.now += 5
        assert overhead.own == 15
    clock.now += 5
    hooks[0] = 5.0
    assert (overhead.own, overhead.elapsed, overhead.share) == (20, 100, 0.2)
    overhead.end()
    clock.now += 900
    assert overhead.share == 0.2, "what passes after the end does not count"
    overhead.begin()
    clock.now += 100
    assert overhead.share == 0.1


def test_a_short_training_is_never_over_its_budget() -> None:
    clock = Clock()
    overhead = Overhead(0.01, lambda: 0.0, clock)
    overhead.begin()
    with overhead:
        clock.now += ALLOWANCE
    assert overhead.share == 1.0
    assert not overhead.exceeded
    with overhead:
        clock.now += 1
    assert overhead.exceeded
    clock.now += 100
    assert not overhead.exceeded
    assert not Overhead(None, lambda: 1e9, clock).exceeded


@pytest.mark.parametrize("share", [0, -0.1, 1.5, True, "1%"])
def test_a_share_that_is_none_is_refused(share: object) -> None:
    with pytest.raises(ValueError, match=r"max_overhead must be a part of the training's time, such as 0\.01"):
        BatchNormMonitor(max_overhead=share)  # type: ignore[arg-type]


class Trained:
    """A training with a fault from step 150 on, and the counts of its checks, steps judged and samples."""

    def __init__(self, *, tick: float, limit: float | None = 0.01, steps: int = 400) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        self.checks: list[int] = []
        self.judged: list[int] = []
        self.sampled: list[int] = []
        monitor = Monitor(model, optimizer=optimizer, sinks=[], max_overhead=limit, sample_every_n_steps=20)
        session = monitor._session
        session.overhead.clock = clock = Clock(tick)
        session._is_calm = lambda: False  # only the time decides
        check = session.book.check

        def counted(window, *args):  # type: ignore[no-untyped-def]
            self.checks.append(window.steps[-1])
            self.judged += window.steps[len(window) - window.fresh :]
            return check(window, *args)

        session.book.check = counted  # type: ignore[method-assign]
        with monitor:
            for step in range(steps):
                x = torch.randn(32, 4)
                if step == 150:
                    with torch.no_grad():
                        model[0].weight.mul_(300)
                optimizer.zero_grad()
                model(x).square().mean().backward()
                optimizer.step()
                monitor.step()
                clock.now += 0.01
                if monitor.samples and monitor.samples[-1].step not in self.sampled:
                    self.sampled.append(monitor.samples[-1].step)
        self.share = monitor.summary().overhead
        self.found = {(a.code, a.layer) for a in monitor.alerts if a.severity > 10}
        self.summary = monitor.summary()


@pytest.fixture(scope="module")
def free() -> Trained:
    return Trained(tick=0.0)


@pytest.fixture(scope="module")
def dear() -> Trained:
    return Trained(tick=5.0)


def test_a_monitor_that_takes_too_long_checks_less_often_but_once_a_window(free: Trained, dear: Trained) -> None:
    assert free.checks[1:40] == list(range(9, 399, 10))
    assert dear.checks[:4] == [0, 49, 99, 149]
    assert len(dear.checks) < len(free.checks) / 4


def test_every_step_is_judged_once_whatever_the_cost(free: Trained, dear: Trained) -> None:
    assert free.judged == dear.judged == list(range(400))


def test_it_samples_less_often_but_not_never(free: Trained, dear: Trained) -> None:
    assert free.sampled == list(range(0, 400, 20))
    assert dear.sampled == [0, 20, 40, 60, 160, 260, 360]


def test_what_is_found_does_not_depend_on_it(free: Trained, dear: Trained) -> None:
    assert free.found
    assert free.found == dear.found


def test_without_a_limit_nothing_is_left_out(free: Trained) -> None:
    unlimited = Trained(tick=5.0, limit=None, steps=60)
    assert unlimited.checks == [*free.checks[: len(unlimited.checks) - 1], 59]
    assert unlimited.sampled == [0, 20, 40]


def test_the_summary_says_how_much_it_took(free: Trained, dear: Trained) -> None:
    assert free.share < 0.5 < dear.share
    assert replace(dear.summary, overhead=0.00312).cost == "bnmonitor took 0.31 % of the time"
    assert replace(dear.summary, overhead=0.5).cost == "bnmonitor took 50 % of the time"
    assert replace(dear.summary, overhead=math.nan).cost == ""
    assert dear.summary.to_dict()["overhead"] == dear.summary.overhead
