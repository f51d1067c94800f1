"""One training of an experiment, watched by a Monitor with its history and flight record, and what was read from it."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

import bnmonitor
from bnmonitor import Monitor
from bnmonitor.runs import Run

from .data import Data


@dataclass
class Trained:
    """What is left of a training.

    Attributes:
        model: The network, in evaluation mode.
        data: What it was trained on.
        monitor: What watched it: its window has the last 64 steps.
        run: The recorded run, as :func:`bnmonitor.open` gives it; its files are there until :func:`training` ends.
        loss: The loss of each step.
        seen: What was measured on the way, by name: step and value.
    """

    model: nn.Module
    data: Data
    monitor: Monitor
    run: Run
    loss: list[float]
    seen: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    @property
    def causes(self) -> list[str]:
        """The causes of its incidents of severity warning or error."""
        return [i.cause for i in self.run.incidents if str(i.severity) in ("warning", "error")]

    @property
    def final_loss(self) -> float:
        """The mean loss of the last ten steps."""
        return sum(self.loss[-10:]) / len(self.loss[-10:])

    @property
    def accuracy(self) -> float:
        """Share of the held-out samples that are right, in percent."""
        return accuracy(self.model, self.data.held_x, self.data.held_y)

    @property
    def train_accuracy(self) -> float:
        """Share of the training samples that are right, in percent, in evaluation mode."""
        return accuracy(self.model, self.data.x, self.data.y)


def steps_to(loss: list[float], below: float) -> int:
    """Steps until the loss, averaged over ten steps, is below a value; all of them if it never is."""
    for step in range(10, len(loss) + 1):
        if sum(loss[step - 10 : step]) / 10 < below:
            return step
    return len(loss)


@torch.no_grad()
def predicted(model: nn.Module, x: Tensor) -> Tensor:
    """The outputs in evaluation mode; the mode is put back."""
    was = model.training
    model.eval()
    out = torch.cat([model(part) for part in x.split(512)])
    model.train(was)
    return out


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share that is right, in percent, in evaluation mode."""
    return 100 * (predicted(model, x).argmax(1) == y).float().mean().item()


def loss_of(data: Data) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss that fits the targets."""
    if data.classes:
        return functional.cross_entropy
    return lambda out, y: functional.mse_loss(out.squeeze(1), y)


def batches(samples: int, size: int, steps: int, seed: int) -> Iterator[Tensor]:
    """Indices of batches, shuffled anew each epoch; a rest is left out.

    Args:
        samples: How many there are.
        size: Samples of a batch.
        steps: How many batches.
        seed: Of the order.
    """
    draw, given = torch.Generator().manual_seed(seed), 0
    while given < steps:
        for part in torch.randperm(samples, generator=draw).split(size):
            if len(part) == size and given < steps:
                given += 1
                yield part


@contextlib.contextmanager
def training(
    make: Callable[[], nn.Module],
    data: Data,
    *,
    seed: int,
    steps: int,
    lr: float = 0.1,
    batch: int = 64,
    before: Callable[[nn.Module], object] = lambda model: None,
    at_step: Callable[[nn.Module, int], object] = lambda model, step: None,
    every: int = 0,
    measure: Callable[[nn.Module], dict[str, float]] = lambda model: {},
) -> Iterator[Trained]:
    """Train with SGD and momentum .9, watched; the files of the run are there within the ``with``.

    Args:
        make: Makes the network, when the seed is set.
        data: What to train on.
        seed: Of weights and order.
        steps: How many.
        lr: The learning rate.
        batch: Samples of a batch.
        before: Called with the network before the first step.
        at_step: Called before each step.
        every: Steps between two measurements; 0: none.
        measure: What to measure then.
    """
    torch.manual_seed(seed)
    model = make()
    before(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr, momentum=0.9)
    criterion, losses, seen = loss_of(data), [], {}  # type: ignore[var-annotated]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        watched = Monitor(
            model,
            optimizer=optimizer,
            log_dir=folder,
            check_every_n_steps=20,
            log_every_n_steps=1 if steps < 40 else 10,
            on_alert="log",
        )
        with contextlib.redirect_stdout(None), watched as monitor:
            model.train()
            for step, chosen in enumerate(batches(len(data.x), batch, steps, seed)):
                at_step(model, step)
                loss = criterion(model(data.x[chosen]), data.y[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                monitor.step(loss=loss)
                losses.append(float(loss.detach()))
                if every and (step + 1) % every == 0:
                    with monitor.evaluation():
                        found = measure(model)
                    for name, value in found.items():
                        seen.setdefault(name, []).append((step + 1, value))
        model.eval()
        yield Trained(model, data, watched, bnmonitor.open(folder).only, losses, seen)
