"""Every kind of layer against the truth in float64, and what is left of the training: nothing changed."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from bnmonitor import Monitor
from bnmonitor.layers import discover
from bnmonitor.recording import bufferless as observer
from bnmonitor.recording.bufferless import Observer
from bnmonitor.sampling import autograd
from bnmonitor.testing.contracts import LayerCase, LayerKindContract
from bnmonitor.testing.contracts.layer_case import Around, Reference
from bnmonitor.testing.contracts.layers import KNOWN, errors, recorded
from bnmonitor.window import Recovery
from tests.end_to_end.kinds import CHANNELS, KINDS, Kind, untracked
from tests.models import train


def states(monitor: Monitor, layer: str) -> set[Recovery]:
    window = monitor.window()
    assert window is not None
    return {Recovery(value) for value in window.recovery[:, window.layers.index(layer)].tolist()}


@pytest.mark.filterwarnings("ignore:Lazy modules")
class TestKinds(LayerKindContract):
    @pytest.fixture(params=[kind for kind in KINDS if kind.layers], ids=lambda kind: kind.name)
    def case(self, request: pytest.FixtureRequest) -> Kind:
        kind: Kind = request.param
        return kind

    def test_it_trains_as_without_the_monitor(self, case: LayerCase) -> None:
        if "compile" in case.name:  # type: ignore[attr-defined]
            pytest.skip("see test_ways_compile.py")
        super().test_it_trains_as_without_the_monitor(case)

    def test_every_step_is_marked_with_how_it_was_recovered(self, case: Kind) -> None:
        monitor, _ = recorded(case)
        # In half precision the first steps may hide every channel: the running variance begins far above the batch's.
        hidden = {Recovery.PRECISION} if case.rounded else set()
        for name in case.layers:
            assert case.recovery in states(monitor, name) <= {case.recovery} | hidden

    def test_the_page_says_how_good_the_statistics_are(self, case: Kind) -> None:
        assert (case.recovery in KNOWN) == (case.status in ("exact", "fallback"))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.layers], ids=lambda kind: kind.name)
def test_a_kind_that_is_not_watched_is_not_listed(kind: Kind) -> None:
    assert kind.status == "not watched"
    assert discover({"": kind.build()}).table.names == ()


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
    """A parametrization that keeps count of how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def forward(self, gamma: Tensor) -> Tensor:
        self.asked += 1
        return gamma.exp()


@pytest.mark.parametrize("how", ["pruned", "pruned later", "computed"])
def test_a_gamma_that_is_no_parameter_is_not_taken_for_1(how: str) -> None:
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
    assert counted.asked - before == (4 if how == "computed" else 0), "nobody else asked"


@pytest.mark.parametrize("seen_as", ["training", "evaluation"])
def test_a_frozen_look_alike_shows_its_buffers_and_is_no_fault(seen_as: str) -> None:
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


def test_what_has_the_names_but_not_the_shapes_of_a_frozen_layer_is_none() -> None:
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


def test_the_layer_before_a_frozen_one_is_not_taken_for_it() -> None:
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
    model = Around(nn.InstanceNorm2d(CHANNELS, track_running_stats=True), (3, 6, 6), CHANNELS)
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


def test_an_instance_norm_whose_buffers_are_replaced_is_read_on() -> None:
    kind = kind_named("InstanceNorm2d")
    model = kind.build()
    truth = Reference(model, kind.layers)

    def replace(step: int) -> None:
        truth.end_step()
        if step == 3:
            model.load_state_dict({k: v.detach().clone() for k, v in model.state_dict().items()}, assign=True)

    with Monitor(model, sinks=[], on_alert="log") as monitor:
        train(model, kind.batches(6), monitor=monitor, after_step=replace)
    assert states(monitor, "layer") == {Recovery.EXACT, Recovery.FOREIGN}
    mean = torch.stack([row[0] for row in truth.rows["layer"]])
    found = monitor.history("layer", "batch_mean").double()
    withheld = found.isnan().any(1)
    assert withheld.sum() == 1, "only of the step after the load nobody knows where it began"
    torch.testing.assert_close(found[~withheld], mean[~withheld], rtol=0, atol=1e-5)


# -- the hook on layers without running statistics ---------------------------------------------------------------------


@pytest.fixture
def plain() -> Iterator[tuple[nn.Module, Monitor]]:
    torch.manual_seed(0)
    model = Around(untracked(), (3, 6, 6), CHANNELS)
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
def test_a_copy_tells_nothing(how: Callable[[nn.Module], nn.Module], plain: tuple[nn.Module, Monitor]) -> None:
    model, monitor = plain
    assert b"bnmonitor" not in pickle.dumps(model.layer)
    how(model.layer)(torch.randn(4, CHANNELS, 3, 3, requires_grad=True))
    monitor.step()
    assert monitor.history("layer", "batch_mean")[-1].isnan().all()


def test_no_graph_is_kept_alive() -> None:
    model, observer = Around(untracked(), (3, 6, 6), CHANNELS), Observer()
    observer.attach([model.layer])
    model(torch.randn(4, 3, 6, 6))
    [seen] = (observer.collect() or {}).values()
    observer.detach()
    assert seen.mean.grad_fn is None
    assert seen.var.grad_fn is None
    assert seen.mean.untyped_storage().nbytes() == CHANNELS * 4


def test_a_forward_that_is_no_training_is_not_taken_for_one(plain: tuple[nn.Module, Monitor]) -> None:
    model, monitor = plain
    model.eval()
    with torch.no_grad():
        model(torch.randn(4, 3, 6, 6))
    monitor.step()
    assert monitor.history("layer", "batch_mean")[-1].isnan().all()


def test_other_channels_than_promised_and_no_tensor_at_all_do_no_harm() -> None:
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


def test_a_reduction_stands_in_where_no_gradient_is_needed() -> None:
    layer = untracked(affine=False)
    x = torch.randn(8, CHANNELS, 5, 5) * 3 + 40
    with Monitor(nn.Sequential(layer), sinks=[], on_alert="log") as monitor:
        layer(x)
        monitor.step()
    true = x.double().transpose(0, 1).flatten(1).var(1)
    torch.testing.assert_close(monitor.history("0", "batch_var")[0].double(), true, rtol=1e-5, atol=0)


@pytest.mark.parametrize("packer", [None, lambda: None, lambda tracing: "something packs"])
def test_a_reduction_stands_in_where_it_is_not_known_that_nothing_is_packed(
    packer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autograd, "_packer", packer)
    mean, var = errors(kind_named("`track_running_stats=False`"))
    assert mean <= 1e-6
    assert var <= 1e-6


def test_what_cannot_be_reduced_stops_no_training(
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
    model = Around(untracked(), (3, 6, 6), CHANNELS)
    with Monitor(model, sinks=[], on_alert="log", sample_every_n_steps=0) as monitor:
        assert not model.layer._forward_hooks
        train(model, [torch.randn(4, 3, 6, 6)], monitor=monitor)
    assert monitor.summary().rows[0].recovery == Recovery.NO_BUFFERS.reason


def report() -> str:
    """Errors by kind, as a table."""
    rows = [(kind.name, *errors(kind)) for kind in KINDS if kind.recovery in KNOWN and kind.layers]
    return "\n".join(f"{mean:8.1e} {var:8.1e}  {name}" for name, mean, var in rows)


if __name__ == "__main__":
    print(report())
