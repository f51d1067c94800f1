"""Every kind of layer against the truth in float64, in a training that stays unchanged."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils import parametrize, prune

from bnmonitor import Monitor
from bnmonitor.layers import discover
from bnmonitor.recording import bufferless as observer
from bnmonitor.recording.bufferless import Observer
from bnmonitor.sampling import autograd
from bnmonitor.window import Recovery
from tests.end_to_end.kinds import CHANNELS, KINDS, Around, Kind, untracked
from tests.models import train

STEPS = 8
WATCHED = [kind for kind in KINDS if kind.layers]
KNOWN = [kind for kind in WATCHED if kind.status in ("exact", "fallback")]
UNKNOWN = [kind for kind in WATCHED if kind not in KNOWN]


def by_name(kinds: list[Kind]) -> Any:
    return pytest.mark.parametrize("kind", kinds, ids=lambda kind: kind.name)


class Truth:
    """Mean and unbiased variance of each layer's input, in float64, averaged over the calls of a step."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        self.layers = {name: model.get_submodule(name) for name in names}
        self.calls: dict[str, list[tuple[int, Tensor, Tensor]]] = {name: [] for name in names}
        self.rows: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}
        for name, layer in self.layers.items():
            layer.register_forward_pre_hook(self._hook(name))

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if torch._C._current_graph_task_id() != -1:
                return  # a checkpoint
            x = args[0].detach().double()
            if isinstance(module, _InstanceNorm):
                mean, var = x.flatten(2).mean(2).mean(0), x.flatten(2).var(2).mean(0)
            else:
                x = x.transpose(0, 1).flatten(1)
                mean, var = x.mean(1), x.var(1)
            self.calls[name].append((args[0].numel() // args[0].shape[1], mean, var))

        return hook

    def end_step(self, _: int = 0) -> None:
        for name, calls in self.calls.items():
            layer = self.layers[name]
            if layer.running_mean is None:
                weights = [float(values) for values, _, _ in calls]
            else:
                keep = 1 - (layer.momentum or 0.0)
                weights = [keep**later for later in reversed(range(len(calls)))]
            total = sum(weights)
            pairs = [(w / total, mean, var) for w, (_, mean, var) in zip(weights, calls, strict=True)]
            self.rows[name].append((sum(w * mean for w, mean, _ in pairs), sum(w * var for w, _, var in pairs)))
            calls.clear()


def recorded(kind: Kind) -> tuple[Monitor, Truth]:
    model = kind.build()
    truth = Truth(model, kind.layers)
    monitor = Monitor(model, sinks=[], on_alert="log", check_every_n_steps=3)
    with monitor:
        train(model, kind.batches(STEPS), monitor=monitor, after_step=truth.end_step)
    return monitor, truth


def states(monitor: Monitor, layer: str) -> set[Recovery]:
    window = monitor.window()
    assert window is not None
    return {Recovery(value) for value in window.recovery[:, window.layers.index(layer)].tolist()}


def errors(kind: Kind) -> tuple[float, float]:
    """Largest error of the means in standard deviations, and of the variances relative to the true one."""
    monitor, truth = recorded(kind)
    worst_mean = worst_var = 0.0
    for name in kind.layers:
        got_mean, got_var = (monitor.history(name, f"batch_{which}").double() for which in ("mean", "var"))
        # A lazy layer is real after its first forward, and recorded from then on.
        rows = truth.rows[name][STEPS - len(got_mean) :]
        assert len(got_mean) >= STEPS - 1
        mean, var = (torch.stack(column) for column in zip(*rows, strict=True))
        # What would be mostly the rounding of half precision is withheld; elsewhere all is known.
        least = 0.2 if kind.rounded else 1.0
        assert got_mean.isfinite().double().mean() >= least
        assert got_var.isfinite().double().mean() >= least
        worst_mean = max(worst_mean, float(((got_mean - mean).abs() / var.sqrt()).nan_to_num().max()))
        worst_var = max(worst_var, float(((got_var - var).abs() / var).nan_to_num().max()))
        assert states(monitor, name) == {kind.recovery}
        assert {row.recovery for row in monitor.summary()} == {""}
    return worst_mean, worst_var


@by_name(KNOWN)
def test_what_is_recorded_is_the_truth(kind: Kind) -> None:
    mean, var = errors(kind)
    assert mean <= kind.mean
    assert var <= kind.var


@by_name(UNKNOWN)
def test_what_cannot_be_known_is_missing_with_the_reason(kind: Kind) -> None:
    monitor = Monitor(model := kind.build(), sinks=[], on_alert="log")
    with monitor:
        train(model, kind.batches(STEPS), monitor=monitor)
    assert len(monitor.steps) == STEPS
    for name in kind.layers:
        assert monitor.history(name, "batch_mean").isnan().all()
        assert monitor.history(name, "batch_var").isnan().all()
        assert states(monitor, name) == {kind.recovery}
    assert {row.recovery for row in monitor.summary()} == {kind.recovery.reason}


@by_name(list(KINDS))
def test_every_layer_is_found_once(kind: Kind) -> None:
    table = discover({"": kind.build()}).table
    assert table.names == (() if kind.make is nn.LazyBatchNorm2d else kind.layers)
    assert set(table.channels) <= {CHANNELS}


@by_name([kind for kind in WATCHED if "compile" not in kind.name])
def test_training_is_bit_identical_and_no_hook_is_left(kind: Kind) -> None:
    def state(watch: bool) -> tuple[dict[str, Tensor], list[set[str]]]:
        model = kind.build()
        monitor = Monitor(model, sinks=[], on_alert="log", sample_every_n_steps=2) if watch else None
        if monitor is not None:
            monitor.start()
        train(model, kind.batches(STEPS), monitor=monitor, evaluate_every=3)
        if monitor is not None:
            monitor.close()
        assert not any(module._forward_hooks for module in model.modules())
        return {**model.state_dict(), "random": torch.get_rng_state()}, [set(vars(m)) for m in model.modules()]

    (alone, attributes), (watched, found) = state(False), state(True)
    assert attributes == found
    assert alone.keys() == watched.keys()
    assert all(torch.equal(alone[key], watched[key]) for key in alone)


# -- the kinds one by one ----------------------------------------------------------------------------------------------


def kind_named(part: str) -> Kind:
    return next(kind for kind in KINDS if part in kind.name)


def test_gamma_is_1_and_beta_0_where_there_are_none() -> None:
    monitor, _ = recorded(kind_named("affine=False"))
    assert set(monitor.history("layer", "gamma").flatten().tolist()) == {1.0}
    assert set(monitor.history("layer", "beta").flatten().tolist()) == {0.0}
    monitor, _ = recorded(kind_named("bias=False"))
    assert len(monitor.history("layer", "gamma").unique()) > 1
    assert set(monitor.history("layer", "beta").flatten().tolist()) == {0.0}


class Counted(nn.Module):
    """A parametrization that counts how often it was evaluated."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def forward(self, gamma: Tensor) -> Tensor:
        self.asked += 1
        return gamma.exp()


@pytest.mark.parametrize("how", ["pruned", "pruned later", "computed"])
def test_a_gamma_that_is_not_a_parameter_does_not_count_as_1(how: str) -> None:
    layer, later = nn.BatchNorm1d(4), how == "pruned later"
    counted = Counted()
    if how == "computed":
        parametrize.register_parametrization(layer, "weight", counted)
    elif not later:
        prune.l1_unstructured(layer, "weight", 0.5)
    model = nn.Sequential(nn.Linear(4, 4), layer)
    before = counted.asked
    with Monitor(model, sinks=[], on_alert="raise") as monitor:
        for step in range(4):
            if later and step == 2:
                prune.l1_unstructured(layer, "weight", 0.5)
            model(torch.randn(32, 4)).square().mean().backward()
            monitor.step()
        gamma = monitor.history("1", "gamma")
        assert str(monitor.summary())
    assert gamma.isnan().all(1).tolist() == [not later, not later, True, True]
    assert counted.asked - before == (4 if how == "computed" else 0), "no other code asked"


@pytest.mark.parametrize("seen_as", ["training", "evaluation"])
def test_a_frozen_look_alike_shows_its_buffers_and_is_not_a_fault(seen_as: str) -> None:
    model = kind_named("FrozenBatchNorm2d").build().train(seen_as == "training")
    kind = kind_named("FrozenBatchNorm2d")
    monitor = Monitor(model, sinks=[], on_alert="log", select=("all",), sample_every_n_steps=2)
    with monitor:
        train(model, kind.batches(20), monitor=monitor)
    assert monitor.layers.family == ("frozen",)
    for statistic, buffer in (("gamma", "weight"), ("beta", "bias"), ("running_mean",) * 2, ("running_var",) * 2):
        assert torch.equal(monitor.history("layer", statistic)[-1], getattr(model.layer, buffer))
    assert [row.training for row in monitor.summary()] == [False]
    assert monitor.alerts == ()


def test_a_module_with_the_names_but_not_the_shapes_of_a_frozen_layer_does_not_count_as_one() -> None:
    odd = nn.Module()
    for name in ("weight", "bias", "running_mean", "running_var"):
        odd.register_buffer(name, torch.zeros(2, 3))
    assert len(discover({"": odd}).table) == 0


def test_a_fused_activation_is_the_consumer_and_in_the_sampled_output() -> None:
    monitor, _ = recorded(kind_named("fused"))
    window = monitor.window()
    assert window is not None
    assert window.sample is not None
    assert window.facts.structure is not None
    assert window.facts.structure.consumers == (("relu",),)
    assert float(window.sample.output.min.min()) == 0.0


def test_the_layer_before_a_frozen_one_is_not_mistaken_for_it() -> None:
    model = nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 6, 1), kind_named("FrozenBatchNorm2d").make(), nn.ReLU())
    with Monitor(model, sinks=[], on_alert="log") as monitor:
        model(torch.randn(8, 6, 4, 4)).sum().backward()
        monitor.step()
        window = monitor.window()
    assert window is not None
    assert window.facts.structure is not None
    assert window.facts.structure.consumers == (("convolution",), ("relu",))


def test_an_instance_norm_is_not_warned_of_its_small_batch() -> None:
    torch.manual_seed(0)
    model = Around(nn.InstanceNorm2d(CHANNELS, track_running_stats=True), (3, 6, 6))
    with Monitor(model, sinks=[], on_alert="log") as monitor:
        train(model, [torch.randn(1, 3, 6, 6) for _ in range(60)], monitor=monitor)
    assert monitor.layers.family == ("instance",)
    assert [a for a in monitor.alerts if a.severity > 10] == []


def test_an_instance_norm_without_momentum_keeps_nothing_of_the_batch() -> None:
    kind = Kind(name="", make=lambda: nn.InstanceNorm2d(CHANNELS, momentum=None, track_running_stats=True))
    monitor = Monitor(model := kind.build(), sinks=[], on_alert="log")
    with monitor:
        train(model, kind.batches(3), monitor=monitor)
    assert states(monitor, "layer") == {Recovery.NO_MOMENTUM}


def test_an_instance_norm_with_replaced_buffers_is_still_read() -> None:
    kind = kind_named("InstanceNorm2d")
    model = kind.build()
    truth = Truth(model, kind.layers)

    def replace(step: int) -> None:
        truth.end_step()
        if step == 3:
            model.load_state_dict({k: v.detach().clone() for k, v in model.state_dict().items()}, assign=True)

    with Monitor(model, sinks=[], on_alert="log") as monitor:
        train(model, kind.batches(6), monitor=monitor, after_step=replace)
    assert states(monitor, "layer") == {Recovery.EXACT}
    mean = torch.stack([row[0] for row in truth.rows["layer"]])
    torch.testing.assert_close(monitor.history("layer", "batch_mean").double(), mean, rtol=0, atol=1e-5)


# -- the hook on layers without running statistics ---------------------------------------------------------------------


@pytest.fixture
def plain() -> Iterator[tuple[nn.Module, Monitor]]:
    torch.manual_seed(0)
    model = Around(untracked(), (3, 6, 6))
    with Monitor(model, sinks=[], on_alert="log", sample_every_n_steps=100) as monitor:
        train(model, [torch.randn(4, 3, 6, 6)], monitor=monitor)
        yield model, monitor


def test_an_evaluation_is_not_observed_and_the_hook_is_there_after_it(plain: tuple[nn.Module, Monitor]) -> None:
    model, monitor = plain
    assert len(model.layer._forward_hooks) == 1
    with monitor.evaluation():
        model(torch.randn(4, 3, 6, 6) * 9)
    monitor.step()
    assert len(model.layer._forward_hooks) == 1
    assert monitor.history("layer", "batch_mean").isnan().all(1).tolist() == [False, True]


@pytest.mark.parametrize("how", [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_records_nothing(how: Callable[[nn.Module], nn.Module], plain: tuple[nn.Module, Monitor]) -> None:
    model, monitor = plain
    assert b"bnmonitor" not in pickle.dumps(model.layer)
    how(model.layer)(torch.randn(4, CHANNELS, 3, 3, requires_grad=True))
    monitor.step()
    assert monitor.history("layer", "batch_mean")[-1].isnan().all()


def test_no_graph_is_kept_alive() -> None:
    model, observer = Around(untracked(), (3, 6, 6)), Observer()
    observer.attach([model.layer])
    model(torch.randn(4, 3, 6, 6))
    [seen] = (observer.collect() or {}).values()
    observer.detach()
    assert seen.mean.grad_fn is None
    assert seen.var.grad_fn is None
    assert seen.mean.untyped_storage().nbytes() == CHANNELS * 4


def test_a_forward_outside_training_does_not_count_as_training(plain: tuple[nn.Module, Monitor]) -> None:
    model, monitor = plain
    model.eval()
    with torch.no_grad():
        model(torch.randn(4, 3, 6, 6))
    monitor.step()
    assert monitor.history("layer", "batch_mean")[-1].isnan().all()


def test_unexpected_channels_and_a_missing_tensor_do_no_harm() -> None:
    class Odd(nn.BatchNorm2d):
        def forward(self, x: Any) -> Any:
            return x if isinstance(x, str) else super().forward(x)

    layer = Odd(4, affine=False, track_running_stats=False)
    with Monitor(nn.Sequential(layer), sinks=[], on_alert="log", sample_every_n_steps=1) as monitor:
        for value in ("text", torch.randn(4, 7, 2, 2), torch.full((4, 4, 2, 2), math.nan)):
            layer(value)
            monitor.step()
    window = monitor.window()
    assert window is not None
    assert window.recovery.flatten().tolist() == [Recovery.NO_BUFFERS, Recovery.NO_BUFFERS, Recovery.NON_FINITE]


def test_a_reduction_is_used_where_no_gradient_is_needed() -> None:
    layer = untracked(affine=False)
    x = torch.randn(8, CHANNELS, 5, 5) * 3 + 40
    with Monitor(nn.Sequential(layer), sinks=[], on_alert="log") as monitor:
        layer(x)
        monitor.step()
    true = x.double().transpose(0, 1).flatten(1).var(1)
    torch.testing.assert_close(monitor.history("0", "batch_var")[0].double(), true, rtol=1e-5, atol=0)


@pytest.mark.parametrize("packer", [None, lambda: None, lambda tracing: "something packs"])
def test_a_reduction_is_used_where_the_input_may_be_packed(packer: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autograd, "_packer", packer)
    mean, var = errors(kind_named("`track_running_stats=False`"))
    assert mean <= 1e-6
    assert var <= 1e-6


def test_an_input_that_cannot_be_reduced_does_not_stop_training(
    plain: tuple[nn.Module, Monitor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise torch.OutOfMemoryError("on purpose")

    monkeypatch.setattr(observer, "_from_graph", fails)
    model, monitor = plain
    model(torch.randn(4, 3, 6, 6)).sum().backward()
    monitor.step()
    assert states(monitor, "layer") == {Recovery.OBSERVED, Recovery.NO_BUFFERS}


def test_without_samples_there_are_no_hooks_at_all() -> None:
    model = Around(untracked(), (3, 6, 6))
    with Monitor(model, sinks=[], on_alert="log", sample_every_n_steps=0) as monitor:
        assert not model.layer._forward_hooks
        train(model, [torch.randn(4, 3, 6, 6)], monitor=monitor)
    assert monitor.summary().rows[0].recovery == Recovery.NO_BUFFERS.reason


def report() -> str:
    """Errors by kind, as a table."""
    rows = [(kind.name, *errors(kind)) for kind in KNOWN]
    return "\n".join(f"{mean:8.1e} {var:8.1e}  {name}" for name, mean, var in rows)


if __name__ == "__main__":
    print(report())
