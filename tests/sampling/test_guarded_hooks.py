"""Hooks beside those that a compiled graph guards: the training is compiled as often as without bnmonitor."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bnmonitor import Monitor

dynamo = pytest.importorskip("torch._dynamo")


def a_model(hooked: str, tracks: bool) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=tracks))
    places: dict[str, nn.Module] = {"layer": model[1], "producer": model[0]}
    if hooked in places:
        places[hooked].register_forward_hook(lambda module, args, output: None)
    if hooked == "root":
        model.register_forward_pre_hook(lambda module, args: None)
    return model


def trained(model: nn.Sequential, call: Callable[[Tensor], Tensor], monitor: Monitor | None) -> int:
    """How many graphs a training of 12 steps, each followed by an evaluation, compiles."""
    dynamo.utils.counters.clear()
    torch.manual_seed(0)
    for _ in range(12):
        call(torch.randn(8, 4)).square().mean().backward()
        if monitor is not None:
            monitor.step()
            monitor.begin_evaluation()
        model.eval()
        with torch.no_grad():
            call(torch.randn(8, 4))
        model.train()
        if monitor is not None:
            monitor.end_evaluation()
    return int(dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.mark.parametrize("tracks", [True, False])
@pytest.mark.parametrize("hooked", ["nowhere", "layer", "producer", "root"])
def test_nothing_is_compiled_again_for_the_hooks_of_samples(hooked: str, tracks: bool) -> None:
    dynamo.reset()
    alone = a_model(hooked, tracks)
    wanted = trained(alone, torch.compile(alone, backend="eager"), None)
    dynamo.reset()
    model = a_model(hooked, tracks)
    with Monitor(model, sinks=[], on_alert="log", sample_every_n_steps=3) as monitor:
        assert trained(model, torch.compile(model, backend="eager"), monitor) == wanted
        assert monitor.samples == ()
        assert any("torch.compile" in reason for reason in monitor.skipped.values())


@pytest.mark.parametrize("tracks", [True, False])
def test_a_compilation_after_the_forward_ends_no_samples_of_an_eager_model(tracks: bool) -> None:
    dynamo.reset()
    model, loss = a_model("layer", tracks), torch.compile(lambda x: x.square().mean(), backend="eager")
    with Monitor(model, sinks=[], on_alert="log", sample_every_n_steps=3) as monitor:
        for _ in range(9):
            loss(model(torch.randn(8, 4))).backward()
            monitor.step()
        assert len(monitor.samples) >= 2
        assert not monitor.history("1", "batch_mean").isnan().any()


def test_a_compilation_before_the_forward_is_forgotten_where_a_hook_sees_the_layer_run() -> None:
    dynamo.reset()
    model, change = a_model("nowhere", False), torch.compile(lambda x: x * 2, backend="eager")
    with Monitor(model, sinks=[], on_alert="log", sample_every_n_steps=3) as monitor:
        for _ in range(9):
            model(change(torch.randn(8, 4))).square().mean().backward()
            monitor.step()
        assert len(monitor.samples) >= 2
        assert not monitor.history("1", "batch_mean").isnan().any()
