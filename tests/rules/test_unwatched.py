"""What bnmonitor does not see, and that it says so: BN510 and the headline."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from bnmonitor import BatchNormWarning, Monitor, Severity


class OwnNorm(nn.Module):
    """A batch normalization that does not derive from PyTorch's."""

    def __init__(self, channels: int, *, statistics: bool = True) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        if statistics:
            self.register_buffer("running_mean", torch.zeros(channels))
            self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        kept = dict(self.named_buffers())
        given = kept.get("running_mean"), kept.get("running_var"), self.weight, self.bias
        return F.batch_norm(x, *given, training=self.training or not kept)


def train(model: Any, **options: Any) -> Monitor:
    monitor = Monitor(model, sinks=[], on_alert="log", **options)
    with monitor:
        for _ in range(12):
            model(torch.randn(16, 1, 8, 8)).square().mean().backward()
            monitor.step()
    return monitor


def unwatched(monitor: Monitor) -> tuple[str, ...]:
    found = [alert for alert in monitor.alerts if alert.code == "BN510"]
    assert all(alert.severity is Severity.INFO for alert in found)
    return tuple(name for alert in found for name in alert.layers)


@pytest.mark.parametrize("statistics", [True, False])
def test_a_class_of_its_own_is_named(statistics: bool) -> None:
    own = OwnNorm(4, statistics=statistics)
    monitor = train(nn.Sequential(nn.Conv2d(1, 4, 3), own, nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))
    assert unwatched(monitor) == ("1",)
    assert monitor.summary().headline().startswith("BatchNorm ✓ 1 of 2 layers healthy, 1 not seen: 1")


@pytest.mark.filterwarnings("ignore")
def test_a_model_of_nothing_else_is_not_called_healthy() -> None:
    monitor = train(nn.Sequential(nn.Conv2d(1, 4, 3), OwnNorm(4)))
    assert unwatched(monitor) == ("1",)
    assert monitor.summary().headline() == "BatchNorm · no layer is watched; 1 normalization not seen: 1"
    assert not [a for a in monitor.alerts if a.code == "BN001"]


def test_the_warning_about_a_model_without_layers_names_them() -> None:
    with pytest.warns(BatchNormWarning, match="1 is a class of its own, OwnNorm"):
        Monitor(nn.Sequential(nn.Conv2d(1, 4, 3), OwnNorm(4)), sinks=[])


@pytest.mark.filterwarnings("ignore")
def test_scripted_and_exported_parts_are_named() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)))
    assert unwatched(train(nn.Sequential(scripted, nn.BatchNorm2d(4)))) == ("0.1",)


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d(4), nn.InstanceNorm2d(4, affine=True), nn.GroupNorm(2, 4), nn.BatchNorm2d(4, affine=False)]
)
def test_other_normalizations_are_not(norm: nn.Module) -> None:
    assert not unwatched(train(nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))))


def test_what_is_excluded_on_purpose_is_not() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4), OwnNorm(4))
    assert not unwatched(train(model, exclude=("[23]",)))


def evaluated(what: str) -> tuple[set[str], str]:
    """The codes and the headline after a training whose evaluations run something."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    copied = copy.deepcopy(model)
    watched: Any = {"model": model, "average": copied} if what == "watched copy" else model
    sampled = 0 if what == "no hooks" else 100
    monitor = Monitor(watched, sinks=[], on_alert="log", sample_every_n_steps=sampled)
    phase: Any = "sanity" if what == "sanity" else "validation"
    with monitor, torch.no_grad():
        for _ in range(3):
            for _ in range(20):
                model.train()(torch.randn(16, 1, 8, 8))
                copied.load_state_dict(model.state_dict())
                monitor.step()
            with monitor.evaluation(phase):
                (model if what == "itself" else copied).eval()(torch.randn(16, 1, 8, 8))
    return {alert.code for alert in monitor.alerts}, monitor.summary().headline()


@pytest.mark.parametrize("what", ["copy", "watched copy", "itself", "no hooks", "sanity"])
def test_an_evaluation_of_something_else_is_said(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnmonitor.recording.updates.graphs_compiled", lambda: 0)  # by other tests
    codes, headline = evaluated(what)
    assert ("BN512" in codes) == (what == "copy")
    assert ("in training, validation not seen" in headline) == (what == "copy")


@dataclass(frozen=True)
class Freezing:
    """How a model is compiled, and whether its evaluations are frozen by that."""

    frozen: bool
    setting: bool = False
    options: dict[str, Any] | None = None
    prepared: bool = False


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(Freezing(False), id="plain"),
        pytest.param(Freezing(True, setting=True), id="setting"),
        pytest.param(Freezing(False, options={"freezing": True}), id="option"),
        pytest.param(Freezing(True, options={"freezing": True}, prepared=True), id="prepared-option"),
    ],
)
def test_a_frozen_evaluation_of_a_network_that_learns_is_an_error(how: Freezing) -> None:
    config: Any = pytest.importorskip("torch._inductor.config")
    tracing: Any = pytest.importorskip("torch._dynamo.config")
    if how.prepared and not hasattr(tracing, "prepare_freezing"):
        pytest.skip("this PyTorch has no such setting")
    torch._dynamo.reset()
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    compiled: Any = torch.compile(model, options=how.options)
    settings = tracing.patch(prepare_freezing=True) if how.prepared else nullcontext()
    x, gaps = torch.randn(16, 1, 8, 8), []
    watched = Monitor(compiled, optimizer=optimizer, sinks=[], on_alert="log")
    with settings, config.patch(freezing=how.setting), watched as monitor:
        for _ in range(3):
            model.train()
            for _ in range(15):
                optimizer.zero_grad()
                (compiled(torch.randn(16, 1, 8, 8)) - 2).square().mean().backward()
                optimizer.step()
                monitor.step()
            with monitor.evaluation(), torch.no_grad():
                model.eval()
                answer = compiled(x)
            with torch.no_grad():
                gaps.append(float((answer - model(x)).abs().max()))
    torch._dynamo.reset()
    found = [(a.severity, a.first_step) for a in monitor.alerts if a.code == "BN511"]
    assert (gaps[-1] > 0.01) == how.frozen, "the fault itself"
    assert found == ([(Severity.ERROR, 29)] if how.frozen else [])


class Taught(nn.Module):
    """Averages of any shape, by other names, that are no buffers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma, self.beta = (nn.Parameter(torch.ones(1, channels, 1, 1) * v) for v in (1, 0))
        self.moving_mean, self.moving_var = torch.zeros(1, channels, 1, 1), torch.ones(1, channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True)
        self.moving_mean, self.moving_var = (
            0.9 * old + 0.1 * new.detach() for old, new in ((self.moving_mean, mean), (self.moving_var, var))
        )
        return self.gamma * (x - mean) / (var + 1e-5).sqrt() + self.beta


class Observations(nn.Module):
    """Standardizes by all samples so far, as reinforcement learning does."""

    def __init__(self, channels: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels, dtype=dtype))
        self.register_buffer("running_var", torch.ones(channels, dtype=dtype))
        self.register_buffer("count", torch.ones((), dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        mean, var = (getattr(self, n)[:, None, None].float() for n in ("running_mean", "running_var"))
        return (x - mean) / (var + 1e-5).sqrt()


def test_a_norm_written_by_hand_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), Taught(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    assert unwatched(train(model)) == ("1",)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_standardization_of_observations_is_not(dtype: torch.dtype) -> None:
    assert not unwatched(train(nn.Sequential(Observations(1, dtype), nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))))


def test_following_the_advice_has_it_watched() -> None:
    class Derived(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            given = self.running_mean, self.running_var, self.weight, self.bias
            return F.batch_norm(x, *given, training=self.training)

    monitor = train(nn.Sequential(nn.Conv2d(1, 4, 3), Derived(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))
    assert not unwatched(monitor)
    assert [row.name for row in monitor.summary()] == ["1", "3"]
