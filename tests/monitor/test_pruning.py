"""Channels that somebody has pruned are not told of as collapsed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from bnmonitor import Monitor


def convolution() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(576, 2)
    )


def transposed() -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(1600, 2)
    )


def separable() -> nn.Module:
    """A convolution whose channels are read one by one, and normalized again."""
    first = nn.Sequential(nn.Conv2d(3, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
    depthwise = nn.Sequential(nn.Conv2d(16, 16, 3, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
    return nn.Sequential(*first, *depthwise, nn.Flatten(), nn.Linear(576, 2))


def by_mask(module: nn.Module, features: int) -> None:
    prune.random_structured(module, "weight", amount=6, dim=features)


def by_hand(module: nn.Module, features: int) -> None:
    weight = module.weight
    assert isinstance(weight, Tensor)
    with torch.no_grad():
        weight.transpose(0, features)[:6] = 0.0
    weight.requires_grad_(False)


@pytest.mark.parametrize(("make", "features"), [(convolution, 0), (transposed, 1), (separable, 0)])
@pytest.mark.parametrize(("how", "codes"), [(by_mask, set()), (by_hand, {"BN105"})])
def test_channels_that_were_pruned_with_a_mask_are_no_fault(
    make: Callable[[], nn.Module], features: int, how: Callable[[nn.Module, int], None], codes: set[str]
) -> None:
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Monitor(model, optimizer=optimizer, sinks=[]) as monitor:
        for step in range(160):
            optimizer.zero_grad()
            model(torch.randn(32, 3, 8, 8)).square().mean().backward()
            optimizer.step()
            monitor.step()
            if step == 30:
                how(next(model.children()), features)
    assert {alert.code for alert in monitor.alerts if alert.severity.name != "INFO"} == codes
