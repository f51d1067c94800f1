"""The rules judge one check of five while nothing is new, and every step once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from bnmonitor import Monitor, Severity
from bnmonitor.rules import Finding, Rule
from bnmonitor.window import Window

Change = Callable[[nn.Sequential, torch.optim.Optimizer], object]


class Trained:
    """A training in which something may change before one step: after which counts of steps rules judged, and which."""

    def __init__(self, steps: int = 400, at: int = 283, change: Change | None = None, **settings: Any) -> None:
        torch.manual_seed(1)
        model = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU()
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        self.counts: list[int] = []
        self.judged: list[int] = []
        monitor = Monitor(model, optimizer=optimizer, sinks=[], max_overhead=None, **settings)
        book = monitor._session.book
        check = book.check

        def noted(window: Window, *args: Any) -> Any:
            if window.fresh:
                self.counts.append(monitor._recorder.count)
                self.judged += window.steps[len(window) - window.fresh :]
            return check(window, *args)

        book.check = noted  # type: ignore[method-assign]
        with monitor:
            for step in range(steps):
                if step == at and change is not None:
                    change(model, optimizer)
                optimizer.zero_grad()
                model(torch.randn(64, 8)).square().mean().backward()
                optimizer.step()
                monitor.step()
        self.alerts = [alert for alert in monitor.alerts if alert.severity > Severity.INFO]


@pytest.fixture(scope="module")
def sound() -> Trained:
    return Trained()


def test_a_sound_training_is_judged_at_every_check_until_the_window_is_full_and_then_every_fifty_steps(
    sound: Trained,
) -> None:
    assert not sound.alerts
    assert sound.counts[:7] == [1, 10, 20, 30, 40, 50, 60]
    later = sound.counts[7:]
    assert set(range(110, 400, 50)) <= set(later)
    assert max(b - a for a, b in pairwise(later)) <= 50
    assert len(later) <= 16, "of 34 checks"


def test_every_step_is_judged_once(sound: Trained) -> None:
    assert sound.judged == list(range(400))


def scale_weights(model: nn.Sequential, _: object) -> None:
    with torch.no_grad():
        model[0].weight.mul_(10)


def shift_input(model: nn.Sequential, _: object) -> None:
    with torch.no_grad():
        model[0].bias.add_(3)


def lose_a_weight(model: nn.Sequential, _: object) -> None:
    with torch.no_grad():
        model[3].weight[0, 0] = torch.nan


def freeze_statistics(model: nn.Sequential, _: object) -> None:
    model[1].eval()


def change_momentum(model: nn.Sequential, _: object) -> None:
    model[4].momentum = 0.5


def raise_rate(_: object, optimizer: torch.optim.Optimizer) -> None:
    optimizer.param_groups[0]["lr"] = 0.05


def lose_gamma(model: nn.Sequential, _: object) -> None:
    with torch.no_grad():
        model[4].weight[3] = 0


@pytest.mark.parametrize(
    "change",
    [scale_weights, shift_input, lose_a_weight, freeze_statistics, change_momentum, raise_rate, lose_gamma],
    ids=lambda change: change.__name__,
)
def test_what_is_new_is_judged_at_the_next_check_and_the_one_after(change: Change) -> None:
    counts = Trained(steps=310, change=change).counts
    assert {290, 300} <= set(counts)


def test_a_layer_that_stays_frozen_is_nothing_new() -> None:
    def freeze(model: nn.Sequential, _: object) -> None:
        with torch.no_grad():
            model[1].running_mean.copy_(model[0].bias)
            model[1].running_var.copy_(model[0].weight.square().sum(1))
        for part in (model[0], model[1]):
            part.eval().requires_grad_(False)

    trained = Trained(at=0, change=freeze)
    assert not trained.alerts
    assert len([count for count in trained.counts if count > 110]) <= 16, "of 29 checks"


def test_while_an_alert_is_open_each_check_is_judged() -> None:
    trained = Trained(change=scale_weights)
    assert trained.alerts
    opened = min(alert.first_step for alert in trained.alerts)
    assert set(range(300, 330, 10)) <= set(trained.counts)
    assert opened >= 280


@pytest.mark.parametrize(("each", "gap"), [(1, 5), (5, 25), (20, 40), (50, 50)], ids=lambda number: str(number))
def test_another_cadence_leaves_out_no_more_than_four_checks_in_a_row(each: int, gap: int) -> None:
    counts = Trained(check_every_n_steps=each).counts
    later = [count for count in counts if count > 110]
    assert max(b - a for a, b in pairwise(later)) == gap


@dataclass(frozen=True, kw_only=True)
class Nothing(Rule):
    """A rule of a user, which finds nothing."""

    code: ClassVar[str] = "XX102"
    name: ClassVar[str] = "finds-nothing"
    severity: ClassVar[Severity] = Severity.WARNING

    def check(self, window: Window) -> list[Finding]:
        return []


def test_a_rule_of_the_user_judges_at_every_check() -> None:
    assert Trained(rules=[Nothing()]).counts[1:] == list(range(10, 401, 10))
