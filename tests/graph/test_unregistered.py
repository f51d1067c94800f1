"""Layers that no autograd graph shows, as nothing in them or before them is trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bnmonitor import Alert, Monitor
from tests.rules.test_modes import data, net


def trained(model: nn.Sequential, *, training: bool = True, graph: bool = True) -> tuple[Monitor, list[Alert]]:
    """Train what is not frozen, and return what is said of leaking freezes."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    model.train(training)
    with Monitor(model, optimizer=optimizer, sinks=[], on_alert="log", sample_every_n_steps=10) as monitor:
        for _ in range(30):
            x, y = data()
            optimizer.zero_grad()
            with torch.set_grad_enabled(graph):
                features = model[:-1](x)
            nn.functional.cross_entropy(model[-1](features), y).backward()
            optimizer.step()
            monitor.step()
    return monitor, [a for a in monitor.alerts if a.code == "BN402"]


@pytest.mark.parametrize(("frozen", "layers"), [((0,), ("1",)), ((0, 3), ("1", "4"))], ids=["the first", "all"])
def test_without_gamma_and_beta_a_frozen_producer_makes_a_leaking_freeze(
    frozen: tuple[int, ...], layers: tuple[str, ...]
) -> None:
    model = net(affine=False)
    for i in frozen:
        model[i].requires_grad_(False)
    monitor, [alert] = trained(model)
    assert (alert.layer, alert.layers, alert.first_step) == ("1", layers, 0)
    assert "the operation before it is frozen" in alert.message
    assert "nothing in it or before it is trained" in monitor.structure().places[0].blind


@pytest.mark.parametrize("given", [{"training": False}, {"graph": False}], ids=str)
def test_frozen_in_evaluation_mode_or_of_an_unknown_producer_is_left_in_peace(given: dict[str, bool]) -> None:
    model = net(affine=False)
    if "training" in given:
        model[:-1].requires_grad_(False)
    assert trained(model, **given)[1] == []


def test_a_producer_that_is_frozen_later_is_known_to_be() -> None:
    model = net(affine=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with Monitor(model, optimizer=optimizer, sinks=[], on_alert="log", sample_every_n_steps=10) as monitor:
        for step in range(60):
            if step == 30:
                model[0].requires_grad_(False)
            x, y = data()
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            monitor.step()
    [alert] = [a for a in monitor.alerts if a.code == "BN402"]
    assert alert.layers == ("1",)
