"""The extra forward: what it finds, and that it leaves no trace."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnmonitor import Monitor, Severity
from bnmonitor.rules.running_average.train_eval_gap import TrainEvalGap
from bnmonitor.testing import make_window
from bnmonitor.window import EvaluationGap, Window
from tests.end_to_end.test_promises import hooks, same
from tests.models import ARCHITECTURES, train
from tests.rules.test_modes import data, net
from tests.watching import EvaluationWindows


def watched(model: Any, **settings: Any) -> Monitor:
    usual: dict[str, Any] = {"probe": True, "sample_every_n_steps": 5, "select": ("all",)}
    usual["rules"] = [EvaluationWindows()]
    return Monitor(model, sinks=[], on_alert="log", **{**usual, **settings})


def trained(
    model: nn.Module, monitor: Monitor, steps: int = 60, forward: Callable[[Tensor], Tensor] | None = None
) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    for _ in range(steps):
        x, y = data(64)
        optimizer.zero_grad()
        nn.functional.cross_entropy((forward or model)(x), y).backward()
        optimizer.step()
        monitor.step()


def gaps(monitor: Monitor) -> EvaluationGap | None:
    """What the extra forward at the start of an evaluation has shown to the rules."""
    [rule] = monitor.settings.rules  # type: ignore[misc]
    with monitor.evaluation():
        pass
    window: Window = rule.seen[-1]  # type: ignore[union-attr]
    return window.facts.gaps


def state(model: nn.Module) -> list[Any]:
    return [
        copy.deepcopy(dict(model.state_dict())),
        [(name, m.training, getattr(m, "track_running_stats", None)) for name, m in model.named_modules()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [p.requires_grad for p in model.parameters()],
        [id(b) for b in model.buffers()],
        torch.get_rng_state(),
        random.getstate(),
        torch.is_grad_enabled(),
    ]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("mode", [True, False])
def test_it_leaves_no_trace(name: str, mode: bool) -> None:
    architecture = ARCHITECTURES[name]
    model = architecture.build()
    with watched(model) as monitor:
        train(model, architecture.batches(12), monitor=monitor)
        model.train(mode)
        before = state(model)
        found = gaps(monitor)
        assert same(before, state(model))
        tracking = torch.tensor(monitor.layers.tracking)
        assert hooks(model) == int((~tracking).sum())  # those of the layers that keep no statistics stay
    if tracking.any():
        assert found is not None
        assert (found.gap[tracking] > 0).all()


def test_it_leaves_no_trace_of_a_forward_that_draws_and_writes() -> None:
    class Restless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.seen += 1
            random.random()
            result: Tensor = self.body(x + torch.randn_like(x))
            return result

    model = Restless()
    with watched(model) as monitor:
        trained(model, monitor)
        before = state(model)
        assert gaps(monitor) is not None
        assert same(before, state(model))


@pytest.mark.parametrize("fails", ["always", "on the way"])
def test_a_forward_that_fails_leaves_no_trace_and_is_said(fails: str) -> None:
    model = net()
    broken = []

    def fail(*_: Any) -> None:
        if broken:
            raise ZeroDivisionError("on purpose")

    (model if fails == "always" else model[5]).register_forward_hook(fail)
    with watched(model) as monitor:
        trained(model, monitor)
        broken.append(True)
        before = state(model)
        with monitor.evaluation():
            pass
        assert same(before, state(model))
        assert "ZeroDivisionError: on purpose" in monitor.skipped["train-eval-gap"]


def test_a_training_with_the_probe_is_the_same_as_without() -> None:
    def run(probe: bool) -> list[Any]:
        torch.manual_seed(0)
        model = net()
        model.insert(8, nn.Dropout(0.3))
        monitor = watched(model, probe=probe)
        with monitor:
            for _ in range(4):
                trained(model, monitor, 10)
                with monitor.evaluation(), torch.no_grad():
                    model.eval()(data()[0])
                    model.train()
        return [part for i, part in enumerate(state(model)) if i != 4]  # the buffers are others

    assert same(run(False), run(True))


def test_bn305_stale_statistics_are_seen_in_their_layer() -> None:
    torch.manual_seed(0)
    model = net()
    with watched(model) as monitor:
        trained(model, monitor)
        with torch.no_grad():
            model[4].running_mean.add_(3 * model[4].running_var.sqrt())
        with monitor.evaluation():
            pass
        [alert] = [a for a in monitor.alerts if a.code == "BN305"]
    assert (alert.layers, alert.severity, alert.first_step) == (("4",), Severity.ERROR, 59)


@pytest.mark.parametrize(("gap", "severity"), [(0.3, None), (0.45, Severity.WARNING), (0.65, Severity.ERROR)])
def test_what_batches_differ_by_is_no_gap_of_the_modes(gap: float, severity: Severity | None) -> None:
    noise = torch.randn(64, 16, generator=torch.Generator().manual_seed(0)) / 4
    told = EvaluationGap(step=63, gap=torch.tensor([gap]), size=torch.tensor([32]))
    found = TrainEvalGap().check(make_window(channels=(16,), batch_mean=noise, facts={"gaps": told}))
    assert [f.severity for f in found] == ([] if severity is None else [severity])
    assert all(f.threshold > (0.25 if severity is Severity.WARNING else 0.5) for f in found)
    assert TrainEvalGap().check(make_window(channels=(16,), facts={"gaps": told})), "without noise it is one"


def test_a_healthy_training_has_no_gap() -> None:
    torch.manual_seed(0)
    model = net()
    model.insert(8, nn.Dropout(0.5))
    with watched(model) as monitor:
        for _ in range(3):
            trained(model, monitor)
            with monitor.evaluation():
                pass
        found = gaps(monitor)
    assert found is not None
    assert float(found.gap.max()) < 0.15
    assert "BN305" not in {a.code for a in monitor.alerts}


def test_it_works_where_the_model_is_not_called_as_a_whole() -> None:
    model = nn.ModuleDict({"body": net(), "unused": net()})
    with watched(model) as monitor:
        trained(model, monitor, forward=model["body"])
        found = gaps(monitor)
    assert found is not None
    assert dict(zip(monitor.layers.names, (~found.gap.isnan()).tolist(), strict=True)) == {
        "body.1": True,
        "body.4": True,
        "unused.1": False,
        "unused.4": False,
    }


def test_it_runs_under_the_autocast_of_the_training_and_compares_few_of_many_calls() -> None:
    torch.manual_seed(0)
    model = net()

    def demand(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert args[0].dtype == torch.bfloat16, "an error ends the extra forward"

    model[1].register_forward_pre_hook(demand)

    def forward(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return torch.stack([model(x) for _ in range(12)]).mean(0).float()

    with watched(model) as monitor:
        trained(model, monitor, 11, forward)
        before = state(model)
        found = gaps(monitor)
        assert str(before) == str(state(model))
    assert found is not None
    assert found.gap.isfinite().any()


def test_frozen_layers_are_left_alone_and_without_the_wish_nothing_runs() -> None:
    model = net()
    model[1].eval()
    with watched(model) as monitor:
        trained(model, monitor)
        found = gaps(monitor)
    assert found is not None
    assert found.gap.isnan().tolist() == [True, False]
    with watched(model, probe=False) as monitor:
        trained(model, monitor, 10)
        assert gaps(monitor) is None
        assert "probe=True" in monitor.skipped["train-eval-gap"]


def test_a_graph_of_the_training_outlives_the_extra_forward() -> None:
    class Counts(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            scale = self.running_var.detach()  # type: ignore[union-attr]
            if self.training:
                with torch.no_grad():
                    self.running_var.mul_(0.9).add_(0.1 * x.detach().var(0))  # type: ignore[union-attr,operator]
                    self.num_batches_tracked.add_(1)  # type: ignore[union-attr,operator]
            return self.weight * x / scale.sqrt()

    torch.manual_seed(0)
    norm = Counts(8)
    model = nn.Sequential(nn.Linear(4, 8), norm, nn.Linear(8, 2))
    with watched(model, sample_every_n_steps=1, probe=True) as monitor:
        for _ in range(3):
            model(torch.randn(16, 4)).square().mean().backward()
            monitor.step()
        kept = (model[0].weight.sum() * norm.running_var).sum()
        versions = [buffer._version for buffer in model.buffers()]
        with monitor.evaluation():
            model.eval()
            model(torch.randn(16, 4))
            model.train()
        assert [buffer._version for buffer in model.buffers()] == versions
        kept.backward()
        assert gaps(monitor) is not None
