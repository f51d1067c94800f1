from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from bnmonitor import Monitor
from bnmonitor.monitor import running


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def train(net: nn.Module, optimizer: torch.optim.Optimizer, monitor: Monitor, steps: int) -> None:
    for _ in range(steps):
        x = torch.randn(32, 6)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), (x[:, 0] > 0).long()).backward()
        optimizer.step()
        monitor.step()


def test_a_model_that_is_made_later_is_watched_and_what_is_known_stays() -> None:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    with Monitor(net, optimizer=optimizer, sinks=[]) as monitor:
        train(net, optimizer, monitor, 40)
        average = AveragedModel(net, use_buffers=True)
        monitor.watch_model("ema", average)
        assert monitor.layers.names == ("1", "ema.module.1")
        train(net, optimizer, monitor, 20)
        average.update_parameters(net)
        with monitor.evaluation(), torch.no_grad():
            average.eval()
            average(torch.randn(16, 6))
        window = monitor.window()
        assert window is not None
        assert window.ledger.evaluated[1:].any(0).tolist() == [False, True]
        assert monitor.steps == tuple(range(40, 60))
        assert monitor.failure == ""
        assert monitor.incidents == ()
    assert all(not m._forward_hooks for each in (net, average) for m in each.modules())


def test_a_name_that_is_taken_changes_nothing() -> None:
    net = network()
    with Monitor({"net": net}, sinks=[]) as monitor:
        monitor.watch_model("net", network())
        assert monitor.modules[0] is net[1]


def test_the_mapping_of_the_user_stays_as_it_is() -> None:
    models = {"net": network()}
    monitor = Monitor(models, sinks=[])
    monitor.watch_model("other", network())
    assert list(models) == ["net"]


def test_monitors_that_run_are_known() -> None:
    before = running.started
    with Monitor(network(), sinks=[]) as monitor:
        assert any(each is monitor for each in running)
        assert running.started == before + 1
    assert all(each is not monitor for each in running)
