"""TorchScript and fusing at any moment of a watched training: as without the monitor."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from bnmonitor import Monitor


def network() -> nn.Sequential:
    torch.manual_seed(0)
    free = nn.BatchNorm1d(8, track_running_stats=False)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), free)


def hooks(model: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(kept) for m in model.modules() for kept in (m._forward_hooks, m._forward_pre_hooks)]


def export(how: str, model: nn.Module) -> Any:
    model.eval()
    try:
        if how == "trace":
            return torch.jit.trace(model, torch.ones(2, 4))
        return torch.jit.script(copy.deepcopy(model) if how == "script a copy" else model)
    finally:
        model.train()


def operations(exported: Any) -> list[str]:
    return [node.kind() for node in exported.inlined_graph.nodes()]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("how", ["script", "script a copy", "trace"])
def test_a_watched_model_is_exported_as_it_is_without_the_monitor_and_stays_watched(how: str) -> None:
    alone, model = network(), network()
    want = export(how, alone)
    with Monitor(model, sinks=[], on_alert="log", sample_every_n_steps=1) as monitor:
        placed = hooks(model)
        assert any(placed), "a sampled step has hooks"
        got = export(how, model)
        assert hooks(model) == placed
        assert operations(got) == operations(want)
        x = torch.arange(8.0).view(2, 4)
        assert torch.equal(got(x), want(x))
        model(torch.randn(16, 4)).square().mean().backward()
        monitor.step()
        assert (len(monitor.samples), monitor.failure) == (1, "")
    assert not any(hooks(model))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_hooks_of_other_code_are_compiled_as_ever() -> None:
    model = network()
    model[2].register_forward_hook(lambda *_: None)
    with (
        Monitor(model, sinks=[], on_alert="log"),
        pytest.raises(Exception, match="Expected a single top-level function"),
    ):
        torch.jit.script(model)
    assert len(model[2]._forward_hooks) == 1
