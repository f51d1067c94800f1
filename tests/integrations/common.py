"""What the tests of all adapters share: a small network, data, faults, and a float64 reference of each batch."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bnmonitor import Monitor

torch.set_num_threads(1)

FEATURES, CLASSES, SAMPLES, BATCH = 12, 4, 1280, 32

EPOCHS = 2

STEPS = SAMPLES // BATCH * EPOCHS

RATE, TOO_HIGH = 0.05, 30.0


def seed(value: int = 0) -> None:
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


def network(*, momentum: float = 0.1, value: int = 0) -> nn.Sequential:
    seed(value)
    return nn.Sequential(
        nn.Linear(FEATURES, 24, bias=False),
        nn.BatchNorm1d(24, momentum=momentum),
        nn.ReLU(),
        nn.Linear(24, 16, bias=False),
        nn.BatchNorm1d(16, momentum=momentum),
        nn.ReLU(),
        nn.Linear(16, CLASSES),
    )


def data(samples: int = SAMPLES, value: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(value)
    x = torch.randn(samples, FEATURES, generator=generator) * torch.linspace(0.5, 2.0, FEATURES) + 0.3
    return x, x[:, :CLASSES].argmax(1)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def randoms() -> tuple[Any, ...]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Truth:
    """Mean and unbiased variance of each training batch of a layer in float64, by a hook of the test's own."""

    def __init__(self, layer: nn.Module) -> None:
        self.rows: list[tuple[Tensor, Tensor]] = []
        layer.register_forward_hook(self._called)

    def _called(self, module: nn.Module, args: Any, output: Any) -> None:
        if module.training:
            x = args[0].detach().double()
            dims = [0, *range(2, x.dim())]
            self.rows.append((x.mean(dims), x.var(dims, unbiased=True)))

    def error(self, monitor: Monitor, layer: str) -> float:
        """Largest error of the history: of means in standard deviations, of variances relative."""
        mean, var = (monitor.history(layer, name).double() for name in ("batch_mean", "batch_var"))
        rows = self.rows[-len(mean) :]
        assert len(rows) == len(mean) > 4
        known = ~mean.isnan() & ~var.isnan()
        assert known.double().mean() > 0.9
        true_mean, true_var = (torch.stack(each) for each in zip(*rows, strict=True))
        off = torch.maximum((mean - true_mean).abs() / true_var.sqrt(), (var / true_var - 1).abs())
        return float(off[known].max())


def gradients_seen(monitor: Monitor, layer: str) -> float:
    """Share of the steps of which the gradient of gamma is known."""
    return float((~monitor.history(layer, "gamma_grad").isnan()).all(1).double().mean())


def evaluated(monitor: Monitor, layer: str) -> bool:
    """Whether a validation or a test has been seen of a layer."""
    window = monitor.window()
    assert window is not None
    at = window.layers.names.index(layer)
    return bool(window.ledger.evaluated[1:, at].any())


def serious(incidents: Any) -> list[str]:
    return [f"{i.code} {i.title}" for i in incidents if i.severity.name in ("WARNING", "ERROR")]


def without_and_with(train: Callable[[bool], tuple[dict[str, Tensor], Any]]) -> Any:
    """Train without and with the adapter; the weights and the random numbers are the same. Return what watched."""
    plain, _ = train(False)
    before = randoms()
    watched, watching = train(True)
    assert randoms() == before
    assert same(plain, watched)
    return watching
