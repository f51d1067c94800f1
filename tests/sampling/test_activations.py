from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.parametrizations import weight_norm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from bnmonitor import Monitor
from bnmonitor.layers import as_normalized, discover
from bnmonitor.measures import finish, reduce
from bnmonitor.sampling.activations import Sampler
from bnmonitor.window import Moments, Sample, Structure
from tests.models import ARCHITECTURES, train


def hooks(model: nn.Module) -> int:
    """Hooks of every kind on every module."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def sampled(model: nn.Module, step: Callable[[], Any]) -> Sample:
    """Run one step with the hooks in place."""
    found, sampler = discover({"": model}), Sampler()
    sampler.attach(found.modules, {"": model})
    step()
    assert sampler.collect(3, found.table, found.modules)
    [sample] = sampler.underway.receive(wait=False)
    assert hooks(model) == 0
    return sample


@pytest.mark.parametrize(("updated", "again", "apart"), [(True, True, False), (True, False, True), (False, True, True)])
def test_the_same_tensor_behind_an_update_is_no_other_input(updated: bool, again: bool, apart: bool) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)), torch.randn(256, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)

    def step() -> None:
        model(x).pow(3).mean().backward()
        if updated:
            optimizer.step()
        model(x if again else x.clone()).mean().backward()

    distance = sampled(model, step).distance
    assert bool(distance[2].isfinite().all()) is apart


def structure(model: nn.Module, *inputs: Tensor) -> Structure:
    found, sampler = discover({"": model}), Sampler()
    sampler.attach(found.modules, {"": model})
    model(*inputs)
    sampler.collect(0, found.table, found.modules)
    told = sampler.structure
    assert told is not None
    return told


def naive(calls: list[Tensor]) -> dict[str, list[float]]:
    """Moments by channel in float64, one value after the other."""
    channels = calls[0].shape[1]
    values = [[v for x in calls for v in x.double().transpose(0, 1)[c].flatten().tolist()] for c in range(channels)]
    means = [sum(v) / len(v) for v in values]

    def power(k: int) -> list[float]:
        return [sum((u - m) ** k for u in v) / len(v) for v, m in zip(values, means, strict=True)]

    return {
        "mean": means,
        "var": power(2),
        "skewness": [m3 / m2**1.5 for m2, m3 in zip(power(2), power(3), strict=True)],
        "kurtosis": [m4 / m2**2 for m2, m4 in zip(power(2), power(4), strict=True)],
        "min": [min(v) for v in values],
        "max": [max(v) for v in values],
        "nonpositive": [sum(u <= 0 for u in v) / len(v) for v in values],
        "saturation": [(v.count(min(v)) + v.count(max(v)) - 2) / len(v) for v in values],
        "nonfinite": [0.0] * channels,
    }


def assert_moments(moments: Moments, calls: list[Tensor]) -> None:
    for name, expected in naive(calls).items():
        assert getattr(moments, name).tolist() == pytest.approx(expected, rel=2e-5, abs=2e-6), name


def naive_between(calls: list[Tensor]) -> Tensor:
    """Unbiased variance of the samples' own means, in float64."""
    return torch.cat([x.double().flatten(2).mean(2) if x.dim() > 2 else x.double() for x in calls]).var(0)


@pytest.mark.parametrize("shape", [(7, 3), (7, 3, 5), (4, 3, 2, 3), (3, 3, 2, 2, 2), (2, 3, 1)])
def test_a_sample_is_what_a_naive_count_gives(shape: tuple[int, ...]) -> None:
    bn: nn.Module = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(shape)](3)
    model = nn.Sequential(bn)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 2 + 0.5
    x.view(-1)[0] = 0.0
    out: list[Tensor] = []
    sample = sampled(model, lambda: out.append(model(x).detach()))
    assert_moments(sample.input, [x])
    assert_moments(sample.output, out)
    torch.testing.assert_close(sample.between.double(), naive_between([x]), rtol=1e-5, atol=1e-6)
    assert sample.step == 3
    assert sample.calls.tolist() == [1]
    assert sample.eval_calls.tolist() == [0]
    assert sample.size.tolist() == [shape[0]]
    assert sample.values.tolist() == [x.numel() // 3]


class Turned(nn.Module):
    """Swaps height and width, as a view."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(2, 3)


def test_images_that_are_no_rows_are_sampled_as_they_are_and_not_copied() -> None:
    model, x = nn.Sequential(Turned(), nn.BatchNorm2d(3)), torch.randn(64, 3, 40, 50)
    out: list[Tensor] = []
    copied = [0]

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.clone.default:
                copied[0] = max(copied[0], made.numel())
            return made

    with Copies():
        sample = sampled(model, lambda: out.append(model(x).detach()))
    assert copied[0] < x.numel()
    for side, whole in ((sample.input, x.transpose(2, 3).contiguous()), (sample.output, out[0].contiguous())):
        for name, expected in finish(reduce(whole)).items():
            torch.testing.assert_close(getattr(side, name), expected, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("eps", [torch.tensor(1e-5), np.float64(1e-5)])
def test_an_eps_of_another_type_than_a_float_is_a_number(eps: Any) -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    model[0].eps = eps
    out: list[Tensor] = []
    sample = sampled(model, lambda: out.append(model(torch.randn(32, 3))))
    assert sample.calls.tolist() == [1, 1]
    assert sample.output.var.isfinite().all()


class TimeFirst(nn.BatchNorm2d):
    """Takes ``[T, N, C, H, W]``, as the layers of spiking networks do."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class ChannelsLast(nn.BatchNorm2d):
    """Takes ``[N, H, W, C]``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(-1, 1)).movedim(1, -1)


@pytest.mark.parametrize(
    ("norm", "shape"),
    [(TimeFirst(3), (2, 8, 3, 4, 4)), (TimeFirst(3), (2, 3, 3, 4, 4)), (ChannelsLast(3), (8, 5, 4, 3))],
)
def test_a_layer_of_another_layout_is_sampled_as_it_normalizes(norm: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape)
    sample = sampled(norm, lambda: norm(x))
    batch = x.flatten(0, 1) if isinstance(norm, TimeFirst) else x.movedim(-1, 1)
    assert_moments(sample.input, [batch])
    assert_moments(sample.output, [as_normalized(norm, norm(x)).detach()])
    assert sample.size.tolist() == [len(batch)]
    assert sample.values.tolist() == [x.numel() // 3]


def test_calls_of_different_size_in_one_step_are_merged() -> None:
    torch.manual_seed(0)  # two samples that are nearly alike are rounded by more in the output than in its moments
    bn = nn.BatchNorm1d(4)
    model = nn.Sequential(bn)
    batches = [torch.randn(n, 4) * n + n for n in (2, 9, 5)]
    outs: list[Tensor] = []
    sample = sampled(model, lambda: outs.extend(model(x).detach() for x in batches))
    assert_moments(sample.input, batches)
    assert_moments(sample.output, outs)
    torch.testing.assert_close(sample.between.double(), naive_between(batches), rtol=1e-5, atol=1e-6)
    assert (sample.calls.tolist(), sample.size.tolist(), sample.values.tolist()) == ([3], [5], [5])


def test_an_in_place_relu_does_not_change_what_was_seen_of_the_output() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.ReLU(inplace=True))
    x = torch.randn(50, 3)
    sample = sampled(model, lambda: model(x))
    assert sample.output.min.max() < 0
    assert 0.2 < float(sample.output.nonpositive.mean()) < 0.8


def test_a_layer_that_was_not_called_is_unknown() -> None:
    model = nn.ModuleDict({"used": nn.BatchNorm1d(2), "unused": nn.BatchNorm1d(3)})
    sample = sampled(model, lambda: model["used"](torch.randn(4, 2)))
    assert sample.calls.tolist() == [1, 0]
    assert sample.input.mean.isnan().tolist() == [False] * 2 + [True] * 3
    assert sample.output.nonpositive.isnan().tolist() == [False] * 2 + [True] * 3
    assert sample.between.isnan().tolist() == [False] * 2 + [True] * 3


def test_a_step_without_any_call_gives_no_sample() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2))
    found, sampler = discover({"": model}), Sampler()
    sampler.attach(found.modules, {"": model})
    assert not sampler.collect(0, found.table, found.modules)
    assert sampler.underway.receive(wait=True) == []
    assert hooks(model) == 0


def test_an_empty_batch_is_called_but_has_no_moments() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2))
    model.eval()
    sample = sampled(model, lambda: model(torch.empty(0, 2)))
    assert (sample.calls.tolist(), sample.eval_calls.tolist(), sample.size.tolist()) == ([1], [1], [0])
    assert sample.input.mean.isnan().all()


def test_a_layer_whose_num_features_is_only_decoration_does_not_shift_the_others() -> None:
    model = nn.Sequential(nn.BatchNorm1d(1, affine=False, track_running_stats=False), nn.BatchNorm1d(4))
    x = torch.randn(30, 4)
    out: list[Tensor] = []
    sample = sampled(model, lambda: out.append(model(x).detach()))
    assert sample.output.mean.shape == (5,)
    assert sample.output.mean[0].isnan()
    torch.testing.assert_close(sample.output.max[1:], out[0].amax(0))


def test_calls_in_evaluation_mode_are_told_apart_and_those_without_a_graph_left_out() -> None:
    bn = nn.BatchNorm1d(2)
    model = nn.Sequential(bn)
    x = torch.randn(8, 2)

    def step() -> None:
        model(x)
        model.eval()
        model(x)
        with torch.no_grad():
            model(x)
        model.train()

    sample = sampled(model, step)
    assert (sample.calls.tolist(), sample.eval_calls.tolist()) == ([2], [1])


@pytest.mark.parametrize("reentrant", [True, False])
def test_recompute_under_checkpoint_is_not_counted(reentrant: bool) -> None:
    block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    x = torch.randn(4, 3, 6, 6, requires_grad=True)
    ran = []
    block[0].register_forward_hook(lambda *_: ran.append(1))

    def step() -> None:
        checkpoint(block, x, use_reentrant=reentrant).sum().backward()

    found, sampler = discover({"": block}), Sampler()
    sampler.attach(found.modules, {"": block})
    step()
    assert sampler.collect(0, found.table, found.modules)
    [sample] = sampler.underway.receive(wait=False)
    assert len(ran) == 2
    assert sample.calls.tolist() == [1]


@pytest.mark.parametrize("every", [1, 3, 4])
def test_hooks_are_there_on_sampled_steps_only(every: int) -> None:
    architecture = ARCHITECTURES["residual"]
    model = architecture.build()
    during: list[int] = []
    evaluating: list[int] = []

    def look(*_: object) -> None:
        (during if model.training else evaluating).append(hooks(model) - 1)

    own = model.register_forward_pre_hook(look)
    with Monitor(model, sinks=[], on_alert="log", sample_every_n_steps=every) as monitor:
        train(model, architecture.batches(10), monitor=monitor, evaluate_every=2)
    own.remove()
    assert [bool(count) for count in during] == [step == 0 or step % every == 0 for step in range(10)]
    assert evaluating == [len(monitor.layers) + 1] * 5  # one more on the layer that sees the data
    assert hooks(model) == 0


def test_hooks_of_an_evaluation_go_with_the_first_call_of_each_layer() -> None:
    architecture = ARCHITECTURES["residual"]
    model = architecture.build()
    with Monitor(model, sinks=[], on_alert="log", sample_every_n_steps=3) as monitor:
        train(model, architecture.batches(2), monitor=monitor)
        with monitor.evaluation():
            assert hooks(model) == len(monitor.layers) + 1
            model.eval()(architecture.batches(1)[0])
            assert hooks(model) == 1, "that of the layer that sees the data stays to the end"
        monitor.close()
        assert hooks(model) == 0


def test_no_step_is_sampled_when_sampling_is_off() -> None:
    architecture = ARCHITECTURES["mlp"]
    model = architecture.build()
    seen: list[int] = []
    with Monitor(model, sinks=[], on_alert="log", sample_every_n_steps=0) as monitor:
        seen.append(hooks(model))
        train(
            model,
            architecture.batches(4),
            monitor=monitor,
            evaluate_every=1,
            after_step=lambda _: seen.append(hooks(model)),
        )
    assert seen == [0] * 5


def test_an_evaluation_has_one_hook_a_layer_nested_or_not() -> None:
    model = ARCHITECTURES["mlp"].build()
    with Monitor(model, sinks=[], on_alert="log", sample_every_n_steps=1) as monitor:
        sampling = hooks(model)
        with monitor.evaluation():
            assert hooks(model) == len(monitor.layers)
            with monitor.evaluation("test"):
                assert hooks(model) == len(monitor.layers)
            assert hooks(model) == len(monitor.layers)
        assert hooks(model) == sampling


def test_an_evaluation_that_was_never_left_does_not_end_sampling_for_good() -> None:
    architecture = ARCHITECTURES["mlp"]
    model = architecture.build()
    with Monitor(model, sinks=[], on_alert="log", sample_every_n_steps=1) as monitor:
        monitor.begin_evaluation()
        train(model, architecture.batches(2), monitor=monitor)
        with monitor.evaluation("predict"):
            assert hooks(model) == len(monitor.layers), "those of the evaluation, and none of a sample"
        train(model, architecture.batches(1), monitor=monitor)
        assert monitor.samples[-1].step == 2


class Reader(nn.Module):
    """A convolution, a BatchNorm, and one way to read its output."""

    def __init__(self, read: Callable[[nn.Module, Tensor, Tensor], Tensor], conv: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = conv or nn.Conv2d(3, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3)
        self.next = nn.Conv2d(3, 3, 1)
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self, x, self.bn(self.conv(x))).sum()


READERS: dict[str, tuple[Callable[[Any, Tensor, Tensor], Tensor], tuple[str, ...]]] = {
    "functional relu": (lambda m, x, y: F.relu(y), ("relu",)),
    "in-place relu": (lambda m, x, y: F.relu(y, inplace=True), ("relu",)),
    "add": (lambda m, x, y: x + y, ("add",)),
    "in-place add": (lambda m, x, y: y.add_(x), ("add",)),
    "conv": (lambda m, x, y: m.next(y), ("convolution",)),
    "relu behind a reshape": (lambda m, x, y: F.relu(y.flatten(1)), ("relu",)),
    "relu behind a permutation": (lambda m, x, y: F.relu(y.permute(0, 2, 3, 1).contiguous()), ("relu",)),
    "relu and add": (lambda m, x, y: F.relu(y) + (y + x), ("add", "relu")),
}


@pytest.mark.parametrize("name", READERS)
def test_the_graph_tells_who_reads_the_output(name: str) -> None:
    read, expected = READERS[name]
    told = structure(Reader(read), torch.randn(4, 3, 5, 5))
    assert told.consumers == (expected,)
    assert told.relu_only().tolist() == [expected == ("relu",)]


def test_an_output_that_nothing_reads_is_unknown() -> None:
    found, sampler = discover({"": nn.Sequential(nn.BatchNorm1d(2))}), Sampler()
    model = found.modules[0]
    sampler.attach(found.modules, {"": model})
    model(torch.randn(4, 2))
    sampler.collect(0, found.table, found.modules)
    assert sampler.structure is not None
    assert sampler.structure.consumers == (None,)


def frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False)


PRODUCERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], bool]] = {
    "conv": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), (3, 6, 6), True),
    "frozen conv": (lambda: nn.Sequential(frozen(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)), (3, 6, 6), False),
    "frozen conv behind a trained one": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), frozen(nn.Conv2d(4, 4, 3)), nn.BatchNorm2d(4)),
        (3, 6, 6),
        False,
    ),
    "conv with only a bias that trains": (
        lambda: nn.Sequential(nn.Conv2d(3, 3, 3), only_bias(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)),
        (3, 6, 6),
        True,
    ),
    "conv with weight_norm and no bias": (
        lambda: nn.Sequential(weight_norm(nn.Conv2d(3, 4, 3, bias=False)), nn.BatchNorm2d(4)),
        (3, 6, 6),
        True,
    ),
    "linear": (lambda: nn.Sequential(nn.Linear(6, 4, bias=False), nn.BatchNorm1d(4)), (6,), True),
    "frozen linear": (
        lambda: nn.Sequential(nn.Linear(6, 6), frozen(nn.Linear(6, 4)), nn.BatchNorm1d(4)),
        (6,),
        False,
    ),
    "frozen linear behind a flattened conv": (
        lambda: nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), frozen(nn.Linear(32, 4)), nn.BatchNorm1d(4)),
        (3, 6, 6),
        False,
    ),
    "frozen linear without bias behind a flattened conv": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 2, 3), nn.Flatten(), frozen(nn.Linear(32, 4, bias=False)), nn.BatchNorm1d(4)
        ),
        (3, 6, 6),
        False,
    ),
    "conv behind a relu": (
        lambda: nn.Sequential(frozen(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3)),
        (3, 6, 6),
        False,
    ),
}


def only_bias(conv: nn.Conv2d) -> nn.Module:
    conv.weight.requires_grad_(False)
    return conv


@pytest.mark.parametrize("name", PRODUCERS)
@pytest.mark.parametrize("leaf", [False, True])
def test_the_graph_tells_whether_the_producer_trains(name: str, leaf: bool) -> None:
    make, shape, trains = PRODUCERS[name]
    model = nn.Sequential(make(), nn.ReLU())
    assert structure(model, torch.randn(4, *shape, requires_grad=leaf)).producer_trains == (trains,)


def test_the_monitor_hands_the_structure_of_the_first_step_to_the_rules() -> None:
    architecture = ARCHITECTURES["residual"]
    model = architecture.build()
    with Monitor(model, sinks=[], on_alert="log") as monitor:
        train(model, architecture.batches(3), monitor=monitor)
    window = monitor.window()
    assert window is not None
    assert window.facts.structure is not None
    assert dict(zip(window.layers.names, window.facts.structure.consumers, strict=True)) == {
        "1": ("relu",),
        "3.bn1": ("relu",),
        "3.bn2": ("add",),
        "4.bn1": ("relu",),
        "4.bn2": ("add",),
    }


def test_a_layer_that_cannot_be_looked_at_costs_the_samples_of_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(x: Tensor) -> Tensor:
        if x.shape[1] == 5:
            raise RuntimeError("no such kernel\nand more")
        return reduce(x)

    monkeypatch.setattr("bnmonitor.sampling.activations.reduce", fails)
    model = nn.Sequential(
        nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5)
    )
    with Monitor(model, sinks=[], sample_every_n_steps=2) as monitor:
        for _ in range(40):
            model(torch.randn(16, 3)).square().sum().backward()
            monitor.step()
        sampled = monitor.history("1", "output_mean")
        missing = monitor.history("3", "output_mean")
    assert sampled.isfinite().all(1).sum() >= 5  # as many as are kept
    assert missing.isnan().all()
    said = [record.message for record in caplog.records]
    assert said.count("bnmonitor takes no samples of 3: RuntimeError: no such kernel") == 1
    assert monitor.alerts == ()
    assert monitor.history("3", "batch_mean").isfinite().all()


def test_layers_that_cannot_be_looked_at_end_the_samples_and_not_the_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(x: Tensor) -> Tensor:
        raise RuntimeError("no such kernel\nand more")

    monkeypatch.setattr("bnmonitor.sampling.activations.reduce", fails)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with Monitor(model, sinks=[], sample_every_n_steps=2) as monitor:
        for _ in range(12):
            model(torch.randn(16, 3)).square().sum().backward()
            monitor.step()
        assert hooks(model) == 0
        skipped = monitor.summary().skipped
        assert len(monitor.history("1", "batch_mean")) == 12
    assert any("taking one raised RuntimeError: no such kernel" in why for why in skipped.values())
    assert not [alert for alert in monitor.alerts if alert.code == "BN001"]
