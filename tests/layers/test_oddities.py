"""A layer that cannot be recorded is left out with a reason, and the others are watched."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from bnmonitor import Monitor


class Skipped(nn.BatchNorm1d):
    """A layer that passes its input on, whatever it holds."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def network(odd: nn.Module, name: str = "odd") -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
    model._modules[name] = odd
    return model


def train(model: nn.Module, steps: int = 12, meddle: Callable[[int], None] = lambda step: None) -> Monitor:
    monitor = Monitor(model, sinks=[], on_alert="log", check_every_n_steps=4, sample_every_n_steps=4).start()
    for step in range(steps):
        meddle(step)
        model(torch.randn(16, 4)).square().mean().backward()
        monitor.step()
    monitor.close()
    return monitor


def with_statistics(make: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    odd = Skipped(8)
    odd.running_mean = make(torch.zeros(8))
    return odd


def with_attribute(name: str, value: object) -> nn.Module:
    odd = Skipped(8)
    setattr(odd, name, value)
    return odd


def with_half_of_the_statistics() -> nn.Module:
    odd = Skipped(8)
    odd.running_mean = None
    return odd


ODD = {
    "it has one of running_mean and running_var only": with_half_of_the_statistics,
    "its running_mean has the shape [1, 8]": lambda: with_statistics(lambda t: t[None]),
    "its running_mean has the shape [2, 4]": lambda: with_statistics(lambda t: t.view(2, 4)),
    "its running_mean has the dtype int64": lambda: with_statistics(torch.Tensor.long),
    "its running_mean has the layout sparse_coo": lambda: with_statistics(torch.Tensor.to_sparse),
    "its running_mean is on the meta device, without values": lambda: with_statistics(lambda t: t.to("meta")),
    "its momentum is inf": lambda: with_attribute("momentum", float("inf")),
    "its eps is nan": lambda: with_attribute("eps", float("nan")),
    "it cannot be read: ValueError: could not convert string to float: 'much'": lambda: with_attribute("eps", "much"),
    "TorchScript has compiled it": lambda: torch.jit.script(nn.BatchNorm1d(8)),
}


@pytest.mark.parametrize("reason", ODD)
def test_an_odd_layer_is_left_out_with_a_reason_that_is_logged_once(
    reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "bnmonitor"):
        monitor = train(network(ODD[reason]()))
    assert (monitor.failure, monitor.left_out) == ("", {"odd": reason})
    assert [r.message for r in caplog.records if "not watch" in r.message] == [
        f"bnmonitor does not watch odd: {reason}"
    ]
    assert monitor.layers.names == ("1",)
    assert monitor.history("1", "batch_mean").isfinite().all()
    assert len(monitor.steps) == 12


@pytest.mark.parametrize("reason", [r for r in ODD if "running" in r and "int64" not in r])
def test_a_layer_that_becomes_odd_in_the_training_is_left_out_from_then_on(reason: str) -> None:
    model, odd = network(Skipped(8)), ODD[reason]()

    def meddle(step: int) -> None:
        if step == 5:
            model.odd._buffers["running_mean"] = odd._buffers["running_mean"]

    monitor = train(model, 16, meddle)
    assert (monitor.failure, monitor.left_out) == ("", {"odd": reason})
    assert monitor.steps[-1] == 15


def test_statistics_that_become_integers_in_the_training_end_no_watch() -> None:
    model = network(Skipped(8))

    def meddle(step: int) -> None:
        if step == 5:
            model.odd._buffers["running_mean"] = torch.zeros(8, dtype=torch.int64)

    monitor = train(model, 16, meddle)
    assert monitor.failure == ""
    assert monitor.history("1", "batch_mean").isfinite().all()


def test_a_layer_that_is_mended_is_watched_from_the_next_check_on() -> None:
    model = network(ODD["its running_mean is on the meta device, without values"]())

    def meddle(step: int) -> None:
        if step == 5:
            model.odd._buffers["running_mean"] = torch.zeros(8)

    monitor = train(model, 16, meddle)
    assert (monitor.failure, monitor.left_out, monitor.layers.names) == ("", {}, ("1", "odd"))


def test_names_of_any_characters_are_watched_and_can_be_written() -> None:
    model = network(nn.BatchNorm1d(8), "a\udc80")
    model._modules["b"] = nn.Sequential(nn.BatchNorm1d(8))
    model._modules["b.0"] = nn.BatchNorm1d(8)
    monitor = train(model)
    assert monitor.failure == ""
    assert monitor.layers.names == ("1", "a\\udc80", "b.0", "b.0'")
    assert monitor.history("b.0'", "batch_mean").isfinite().all()


def test_a_training_mode_that_is_no_bool_of_python_is_read_all_the_same() -> None:
    model = network(nn.BatchNorm1d(8))

    def meddle(step: int) -> None:
        model.odd.training = np.bool_(step != 3)

    monitor = train(model, meddle=meddle)
    window = monitor.window()
    assert monitor.failure == ""
    assert window is not None
    assert window.training[:, 1].tolist() == [step != 3 for step in range(12)]


@pytest.mark.parametrize("momentum", [float("inf"), "much"])
def test_an_odd_momentum_in_the_training_ends_no_watch_and_nothing_is_recovered(momentum: object) -> None:
    model = network(Skipped(8))

    def meddle(step: int) -> None:
        if step == 2:
            model.odd.momentum = momentum

    monitor = train(model, meddle=meddle)
    assert monitor.failure == ""
    assert monitor.history("1", "batch_mean").isfinite().all()
