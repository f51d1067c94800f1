"""A training with and without the monitor, and its true statistics."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bnmonitor import Monitor
from bnmonitor.window import Recovery
from tests.end_to_end.test_promises import same
from tests.models import ARCHITECTURES
from tests.recording.test_recovery import Truth, quiet, states

STEPS = 10
DATA = ARCHITECTURES["residual"]


def loss_of(out: Tensor) -> Tensor:
    return nn.functional.cross_entropy(out.float(), torch.arange(len(out)) % out.shape[1])


class Run:
    """One training, monitored or not; ``end_step`` belongs after every batch."""

    def __init__(self, models: dict[str, nn.Module], monitor: Monitor | None) -> None:
        self.models, self.monitor = models, monitor
        self.model = models.get("", next(iter(models.values())))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.batches = DATA.batches(STEPS)
        named = {".".join(p for p in (k, n) if p): m for k, v in models.items() for n, m in v.named_modules()}
        self.truth = None if monitor is None else Truth(monitor, named, 0.1)
        self.optimizers: list[Optimizer] = [self.optimizer]

    def end_step(self, number: int | None = None) -> None:
        if self.monitor is not None and self.truth is not None:
            self.monitor.step(number)
            self.truth.end_step()

    @contextlib.contextmanager
    def evaluating(self) -> Any:
        modes = [(m, m.training) for model in self.models.values() for m in model.modules()]
        with self.monitor.evaluation() if self.monitor else contextlib.nullcontext(), torch.no_grad():
            self.model.eval()
            yield
        for module, mode in modes:
            module.training = mode

    @contextlib.contextmanager
    def unheard(self) -> Any:
        """The truth's hooks are copied with the model: what copies do is not for it."""
        if self.truth is not None:
            self.truth.on = False
        yield
        if self.truth is not None:
            self.truth.on = True

    def step(self, loss: Tensor, number: int | None = None) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.end_step(number)


def trained(
    way: Callable[[Run], None], build: Callable[[], nn.Module | dict[str, nn.Module]] = DATA.build
) -> tuple[Monitor, Truth]:
    """Train twice, once monitored, and compare all that is left behind."""
    left = []
    for watch in (False, True):
        built = build()
        monitor = quiet(built, sample_every_n_steps=2) if watch else None  # type: ignore[arg-type]
        run = Run(built if isinstance(built, dict) else {"": built}, monitor)
        torch.manual_seed(3)
        with monitor or contextlib.nullcontext():
            way(run)
        states = [dict(m.state_dict()) for m in run.models.values()]
        left.append([states, [o.state_dict() for o in run.optimizers], torch.get_rng_state()])
    assert same(*left)
    assert monitor is not None
    assert run.truth is not None
    return monitor, run.truth


def assert_true(monitor: Monitor, truth: Truth, state: Recovery = Recovery.EXACT, mean: float = 1e-5) -> None:
    worst_mean, worst_var = truth.errors(monitor)
    assert worst_mean <= mean
    assert worst_var <= 100 * mean
    for name in monitor.layers.names:
        assert set(states(monitor, name)) == {state}
