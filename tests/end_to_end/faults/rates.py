"""Trainings at one learning rate, from too low to far too high, as incidents tell of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset

from bnmonitor import Incident, Monitor, Severity
from tests.end_to_end.faults.networks import NETWORKS
from tests.end_to_end.faults.recipes import Recipe

LEFT = 1.25
"""The loss has left its start once the median of five is so many times the first loss."""

CAUSE = "learning-rate-too-high"


@dataclass(frozen=True)
class RateOutcome:
    """What came of one training.

    Attributes:
        losses: The loss of each step.
        accuracy: On the validation data, in evaluation mode.
        incidents: Every incident.
        error: The first step after which an incident was an error; None if none was.
    """

    losses: tuple[float, ...]
    accuracy: float
    incidents: tuple[Incident, ...]
    error: int | None

    @property
    def lost(self) -> bool:
        """Whether the loss ended no better than it began."""
        return not median(loss if loss == loss else math.inf for loss in self.losses[-20:]) < 0.95 * self.losses[0]

    @property
    def left(self) -> int | None:
        """The step at which the loss left its start; None if it never did."""
        finite = [loss if loss == loss else math.inf for loss in self.losses]
        windows = ((i, finite[max(0, i - 4) : i + 1]) for i in range(2, len(finite)))
        return next((i for i, newest in windows if median(newest) > LEFT * finite[0]), None)

    @property
    def right(self) -> bool:
        """Whether the first incident names the rate."""
        return bool(self.incidents) and self.incidents[0].cause == CAUSE


def train(
    network: str,
    optimizer: str,
    rate: float,
    seed: int = 0,
    *,
    steps: int = 200,
    schedule: Callable[[int], float] | None = None,
    fast_from: int | None = None,
    loss_every: int = 1,
) -> RateOutcome:
    """Train a network of the suite on its own data.

    Args:
        network: Its name.
        optimizer: ``"sgd"`` with momentum .9, or ``"adam"``.
        rate: The learning rate.
        seed: Of weights and batches.
        steps: How many.
        schedule: Factor of the rate at each step.
        loss_every: Every which step the monitor gets the loss; 0: never.
        fast_from: Only the units from this one on train at the rate, the others at a hundredth of it.
    """
    net = NETWORKS[network]
    model, data = net.build(seed), net.data()
    torch.manual_seed(seed)
    minimizer = Recipe(optimizer=optimizer, lr=rate).minimizer(model)
    if fast_from is not None:
        parts = list(model.children())
        slow = [p for part in parts[:fast_from] for p in part.parameters()]
        fast = [p for part in parts[fast_from:] for p in part.parameters()]
        minimizer = torch.optim.SGD([{"params": slow, "lr": rate / 100}, {"params": fast}], rate, momentum=0.9)
    scheduler = LambdaLR(minimizer, schedule or (lambda step: 1.0))
    loader = DataLoader(TensorDataset(data.x, data.y), 32, shuffle=True, drop_last=True)
    losses: list[float] = []
    error = None
    with Monitor(model, optimizer=minimizer, sinks=[]) as monitor:
        while len(losses) < steps:
            for x, y in loader:
                model.train()
                for _, loss in net.losses(model, x, y):
                    minimizer.zero_grad()
                    loss.backward()
                    minimizer.step()
                scheduler.step()
                losses.append(float(loss.detach()))
                passed = bool(loss_every) and (len(losses) - 1) % loss_every == 0
                monitor.step(loss=loss if passed else None)
                if error is None and any(i.severity is Severity.ERROR for i in monitor.incidents):
                    error = len(losses) - 1
                if len(losses) == steps:
                    break
    model.eval()
    with torch.no_grad():
        accuracy = float((model(data.x_val).argmax(1) == data.y_val).float().mean())
    return RateOutcome(tuple(losses), accuracy, monitor.incidents, error)
