"""Layers without a counter, and layers of other classes: a write of other code is not taken for a batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from bnmonitor import Monitor
from bnmonitor.window import Recovery
from tests.recording.test_recovery import states

STEPS, AT = 9, 4


def loaded(norm: nn.InstanceNorm1d) -> None:
    norm.load_state_dict({name: value * 0.5 + 0.1 for name, value in norm.state_dict().items()})


def copied(norm: nn.InstanceNorm1d) -> None:
    with torch.no_grad():
        norm.running_mean.copy_(norm.running_mean * 0.5 + 0.1)  # type: ignore[union-attr,operator]
        norm.running_var.copy_(norm.running_var * 0.5 + 0.1)  # type: ignore[union-attr,operator]


def reset(norm: nn.InstanceNorm1d) -> None:
    norm.reset_running_stats()


def recorded(
    model: nn.Module, event: Callable[[int], object], train: Callable[[int], object] = lambda step: None
) -> tuple[Monitor, Tensor]:
    """A watched training in which something happens after each backward, and the true batch means."""
    torch.manual_seed(0)
    true = []
    with Monitor(model, sinks=[], on_alert="log", sample_every_n_steps=0) as monitor:
        for step in range(STEPS):
            train(step)
            x = torch.randn(6, 3, 16, requires_grad=True)
            true.append(x.detach().double().mean((0, 2)))
            model(x).square().mean().backward()
            event(step)
            monitor.step()
    return monitor, torch.stack(true)


@pytest.mark.parametrize("write", [loaded, copied, reset])
@pytest.mark.parametrize("fixed", [True, False])
def test_a_write_to_an_instance_norm_in_evaluation_mode_is_no_batch(
    write: Callable[[nn.InstanceNorm1d], object], fixed: bool
) -> None:
    norm = nn.InstanceNorm1d(3, affine=True, track_running_stats=True)
    model = nn.Sequential(norm)
    norm.eval().requires_grad_(not fixed)
    norm.running_mean.fill_(0.3)  # type: ignore[union-attr,operator]
    monitor, _ = recorded(model, lambda step: write(norm) if step == AT else None)
    assert monitor.history("0", "batch_mean").isnan().all()
    assert states(monitor, "0")[AT] in (Recovery.DOUBTFUL, Recovery.FOREIGN)


def test_an_instance_norm_that_trains_after_an_evaluation_is_recorded() -> None:
    norm = nn.InstanceNorm1d(3, track_running_stats=True)
    monitor, true = recorded(norm, lambda step: None)
    torch.testing.assert_close(monitor.history("(root)", "batch_mean").double(), true, rtol=0, atol=1e-5)


@pytest.mark.parametrize("momentum", [None, 0.0])
def test_an_instance_norm_that_loses_its_momentum_took_in_no_batch(momentum: float | None) -> None:
    norm = nn.InstanceNorm1d(3, momentum=0.9, track_running_stats=True)

    def lose(step: int) -> None:
        if step == AT:
            norm.momentum = momentum

    monitor, true = recorded(norm, lambda step: None, lose)
    found = monitor.history("(root)", "batch_mean").double()
    torch.testing.assert_close(found[:AT], true[:AT], rtol=0, atol=1e-5)
    assert found[AT:].isnan().all()


class Activated(nn.BatchNorm1d):
    """Normalizes with PyTorch's function, and applies an activation."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class ByHand(nn.BatchNorm1d):
    """Writes its running statistics itself."""

    def forward(self, x: Tensor) -> Tensor:
        mean, var = x.detach().mean((0, 2)), x.detach().var((0, 2))
        with torch.no_grad():
            self.running_mean.lerp_(mean, 0.1)  # type: ignore[union-attr,operator]
            self.running_var.lerp_(var, 0.1)  # type: ignore[union-attr,operator]
            self.num_batches_tracked += 1  # type: ignore[operator]
        return F.batch_norm(x, None, None, self.weight, self.bias, True)


@pytest.mark.parametrize("which", ["running_mean", "running_var"])
def test_a_write_beside_the_forward_of_a_subclass_is_no_batch(which: str) -> None:
    norm = Activated(3)

    def write(step: int) -> None:
        if step == AT:
            getattr(norm, which).mul_(0.5).add_(0.3)

    monitor, true = recorded(norm, write)
    found = monitor.history("(root)", "batch_mean").double()
    assert found.isnan().all(1).nonzero().flatten().tolist() == [AT]
    rest = [step for step in range(STEPS) if step != AT]
    torch.testing.assert_close(found[rest], true[rest], rtol=0, atol=1e-5)


def test_a_subclass_that_writes_by_hand_is_recorded() -> None:
    monitor, true = recorded(ByHand(3), lambda step: None)
    torch.testing.assert_close(monitor.history("(root)", "batch_mean").double(), true, rtol=0, atol=1e-5)
