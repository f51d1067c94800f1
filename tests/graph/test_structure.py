from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

from bnmonitor import Monitor
from bnmonitor.window import Place, Structure
from tests.models import ARCHITECTURES, FrozenBatchNorm2d, residual, train


def traced(model: nn.Module, *inputs: Tensor, loss: Callable[[Any], Tensor] | None = None) -> Structure:
    """The structure after one training step."""
    with Monitor(model, sinks=[], on_alert="log") as monitor:
        out = model(*inputs)
        (loss(out) if loss else out.sum()).backward()
        monitor.step()
        return monitor.structure()


def place(model: nn.Module, *inputs: Tensor, layer: str | None = None) -> Place:
    told = traced(model, *inputs)
    return told.places[told.names.index(layer) if layer else -1]


def kinds(operations: tuple[Any, ...]) -> list[str]:
    return [operation.kind for operation in operations]


IMAGE = (4, 3, 8, 8)


def image() -> Tensor:
    return torch.randn(IMAGE)


class Plain(nn.Module):
    """A convolution, something between, and a BatchNorm."""

    def __init__(self, between: Callable[[Tensor], Tensor] | nn.Module, conv: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = conv or nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.between(self.conv(x))))


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.sigmoid()


BETWEEN: dict[str, tuple[Callable[[Tensor], Tensor] | nn.Module, list[str], list[str]]] = {
    "nothing": (nn.Identity(), [], []),
    "relu": (nn.ReLU(), ["relu"], ["nonlinearity"]),
    "in-place relu": (nn.ReLU(inplace=True), ["relu"], ["nonlinearity"]),
    "functional in-place relu": (lambda x: F.relu_(x), ["relu"], ["nonlinearity"]),
    "functional silu": (F.silu, ["silu"], ["nonlinearity"]),
    "prelu": (nn.PReLU(), ["prelukernel"], ["nonlinearity"]),
    "a module's own activation": (Swish(), ["swish"], ["nonlinearity"]),
    "an activation written out": (lambda x: x * torch.tanh(F.softplus(x)), ["mul"], ["nonlinearity"]),
    "dropout, in place": (nn.Dropout(inplace=True), ["dropout"], ["dropout"]),
    "dropout of channels": (nn.Dropout2d(), ["dropout2d"], ["dropout"]),
    "relu and pooling": (nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), ["relu", "maxpool2d"], ["nonlinearity", "pooling"]),
    "a view": (lambda x: x.flatten(2).unflatten(2, (6, 6)), ["view", "view"], ["shape", "shape"]),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_what_lies_between_producer_and_layer(name: str) -> None:
    between, expected, roles = BETWEEN[name]
    found = place(Plain(between), image())
    assert kinds(found.between) == expected
    assert [op.role for op in found.between] == roles
    assert kinds(found.producers) == ["convolution"]
    assert found.producers[0].name == "conv"
    assert kinds(found.readers) == ["relu"]


def test_modules_between_are_named() -> None:
    assert place(Plain(nn.Dropout()), image()).between[0].name == "between"


def test_dropout_in_evaluation_mode_is_not_there() -> None:
    assert place(Plain(nn.Dropout().eval()), image()).between == ()


PRODUCERS: dict[str, tuple[Callable[[], nn.Module], str, str, bool]] = {
    "conv": (lambda: nn.Conv2d(3, 4, 3), "convolution", "0", True),
    "conv without bias": (lambda: nn.Conv2d(3, 4, 3, bias=False), "convolution", "0", False),
    "frozen conv": (lambda: nn.Conv2d(3, 4, 3).requires_grad_(False), "convolution", "0", False),
    "padded around": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), "convolution", "0", True),
    "transposed": (lambda: nn.ConvTranspose2d(3, 4, 3), "convolution", "0", True),
    "weight norm": (lambda: weight_norm(nn.Conv2d(3, 4, 3)), "convolution", "0", True),
    "spectral norm": (lambda: spectral_norm(nn.Conv2d(3, 4, 3, bias=False)), "convolution", "0", False),
    "nested": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3)), "convolution", "0.0", True),
}


@pytest.mark.parametrize("leaf", [False, True])
@pytest.mark.parametrize("name", PRODUCERS)
def test_the_producer_is_known_by_name(name: str, leaf: bool) -> None:
    make, kind, path, bias = PRODUCERS[name]
    model = nn.Sequential(make(), nn.BatchNorm2d(4), nn.ReLU())
    [producer] = place(model, image().requires_grad_(leaf)).producers
    if name == "frozen conv" and not leaf:  # nothing that has a graph is there
        assert (producer.kind, producer.role) == ("frozen", "input")
        return
    assert (producer.kind, producer.name, producer.bias, producer.features) == (kind, path, bias, 4)
    assert not producer.shared


def test_a_convolution_without_a_module_is_known_by_its_parameters() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
            self.bias = nn.Parameter(torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            return F.leaky_relu(F.conv2d(x, self.weight, self.bias))

    found = place(nn.Sequential(Functional(), nn.BatchNorm2d(4)), image())
    assert (kinds(found.producers), found.producers[0].name, found.producers[0].bias) == (["convolution"], "0", True)
    assert kinds(found.between) == ["leakyrelu"]


def test_autocast_hides_nothing() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        [producer] = place(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), image()).producers
    assert (producer.kind, producer.name, producer.bias) == ("convolution", "0", True)


def test_a_bias_that_another_reader_needs_is_shared() -> None:
    class Branching(Plain):
        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.bn(y) + y

    class Reused(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.conv(x)) + self.conv(x).relu()

    class Siamese(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.conv(x)) + self.bn(self.conv(x.flip(0)))

    assert place(Branching(nn.Identity()), image()).producers[0].shared
    assert place(Reused(nn.Identity()), image()).producers[0].shared
    assert not place(Siamese(nn.Identity()), image()).producers[0].shared


def test_residual_network_has_roots_depths_and_chains() -> None:
    told = traced(residual(), image())
    assert told.names == ("1", "3.bn1", "3.bn2", "4.bn1", "4.bn2")
    assert told.roots().tolist() == [True] + [False] * 4
    assert [p.depth for p in told.places] == [0, 1, 2, 3, 4]
    assert [p.order for p in told.places] == [0, 1, 2, 3, 4]
    assert [p.distance for p in told.places] == [1, 2, 3, 2, 3]
    assert [p.follows for p in told.places] == [None, 0, 1, None, 3]
    assert [p.predecessors for p in told.places] == [(), (0,), (1,), (0, 2), (3,)]
    assert [p.joins for p in told.places] == [0, 0, 0, 1, 0]
    assert told.chains == ((0, 1, 2), (3, 4))
    assert [kinds(p.readers) for p in told.places] == [["relu"], ["relu"], ["add"], ["relu"], ["add"]]


def test_a_gate_breaks_no_chain() -> None:
    class SqueezeExcite(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sigmoid(self.second(F.relu(self.first(F.adaptive_avg_pool2d(x, 1)))))

    def block() -> list[nn.Module]:
        return [nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.SiLU(), SqueezeExcite()]

    told = traced(nn.Sequential(nn.Conv2d(3, 4, 1), *block(), *block(), *block()), image())
    assert told.chains == ((0, 1, 2),)
    assert told.bare == ()
    assert told.normalized == 3


def test_a_layer_called_at_several_places_has_all_their_producers() -> None:
    told = traced(ARCHITECTURES["shared"].build(), torch.randn(4, 3, 6, 6))
    assert [p.name for p in told.places[0].producers] == ["first", "second"]
    assert told.places[0].calls == 2
    assert told.places[0].root  # its first call has no other layer upstream


def test_what_reads_a_layer_is_seen_through_what_joins_its_calls() -> None:
    class Ghost(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(torch.cat([self.norm(part) for part in self.linear(x).chunk(2)]))

    structure = traced(Ghost(), torch.randn(16, 4))
    assert structure.consumers == (("relu",),)
    assert structure.relu_only().tolist() == [True]


def test_several_outputs_are_all_walked() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"a": self.a(x).relu(), "b": [self.b(x).tanh(), None]}

    told = traced(Two(), image(), loss=lambda out: out["a"].sum() + out["b"][0].sum())
    assert told.consumers == (("relu",), ("tanh",))
    assert told.roots().tolist() == [True, True]
    assert [p.distance for p in told.places] == [0, 0]
    assert kinds(told.places[0].producers) == ["input"]


def test_non_reentrant_checkpoint_hides_nothing_and_a_reentrant_one_says_so() -> None:
    class Checkpointed(nn.Module):
        def __init__(self, reentrant: bool) -> None:
            super().__init__()
            self.stem, self.reentrant = nn.Conv2d(3, 4, 3), reentrant
            self.block = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
            self.after = nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.after(checkpoint(self.block, self.stem(x), use_reentrant=self.reentrant))

    seen, blind = (traced(Checkpointed(reentrant), image()) for reentrant in (False, True))
    assert [p.blind for p in seen.places] == ["", ""]
    assert seen.places[0].producers[0].name == "block.0"
    assert seen.places[1].follows == 0
    assert "checkpoint" in blind.places[0].blind
    assert blind.producer_trains[0] is None
    assert not blind.places[1].root, "a layer that nothing is known of lies before it"
    assert blind.places[1].distance == -1
    assert "?  block.1: called without a graph" in str(blind)


def test_a_checkpoint_is_not_run_once_more_to_look_into_it() -> None:
    block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.ReLU6())
    ran: list[int] = []
    block[0].register_forward_hook(lambda *_: ran.append(1))
    with Monitor(block, sinks=[], on_alert="log", sample_every_n_steps=1) as monitor:
        out = checkpoint(block, image(), use_reentrant=False)
        assert isinstance(out, Tensor)
        monitor.saw_loss(out.sum())
        monitor.step()
    assert ran == [1]


def test_layer_that_is_not_called_or_has_no_graph_says_why() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused, self.frozen = (nn.BatchNorm2d(3) for _ in range(3))
            self.frozen.eval().requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(self.frozen(x))

    told = traced(Parts(), image())
    blind = dict(zip(told.names, (p.blind for p in told.places), strict=True))
    assert blind["used"] == ""
    assert "not called" in blind["unused"]
    assert "evaluation mode" in blind["frozen"]


def test_frozen_backbone_is_no_input() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).requires_grad_(False).eval()
    model = nn.Sequential(nn.Identity(), backbone, nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    head = place(model, image(), layer="3")
    assert head.distance == -1
    assert head.root, "nothing before it normalizes by the batch"
    backbone.train()
    assert not place(model, image(), layer="3").root


@pytest.mark.parametrize("before", ["nothing", "trained", "frozen"])
def test_what_is_before_a_normalization_without_parameters_is_frozen_or_not(before: str) -> None:
    norm = nn.BatchNorm2d(3, affine=False)
    head = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    first = [] if before == "nothing" else [nn.Conv2d(3, 3, 1).requires_grad_(before == "trained")]
    told = traced(nn.Sequential(*first, norm, *head), torch.randn(IMAGE))
    assert told.producer_trains[0] is {"nothing": None, "trained": True, "frozen": False}[before]


def test_structure_is_traced_once_and_anew_when_something_is_frozen() -> None:
    model = residual()
    batches = ARCHITECTURES["residual"].batches(1)
    with Monitor(model, sinks=[], on_alert="log", sample_every_n_steps=1) as monitor:
        train(model, batches, monitor=monitor)
        first = monitor.structure()
        train(model, batches, monitor=monitor)
        assert monitor.structure() is first
        model[3].conv1.requires_grad_(False)
        train(model, batches * 2, monitor=monitor)
        assert first.producer_trains == (True,) * 5
        assert monitor.structure().producer_trains == (True, False, True, True, True)


def test_before_a_step_and_without_samples_the_reason_is_said() -> None:
    model = residual()
    with Monitor(model, sinks=[], on_alert="log", sample_every_n_steps=0) as monitor:
        train(model, ARCHITECTURES["residual"].batches(2), monitor=monitor)
        assert all("sample_every_n_steps is 0" in place.blind for place in monitor.structure().places)


def test_network_that_trains_on_other_steps_is_kept() -> None:
    pair = nn.ModuleDict({"a": nn.BatchNorm1d(3), "b": nn.BatchNorm1d(3)})
    with Monitor(pair, sinks=[], on_alert="log", sample_every_n_steps=1) as monitor:
        for name in ("a", "b"):
            pair[name](torch.randn(8, 3)).relu().sum().backward()
            monitor.step()
        told = monitor.structure()
    assert [p.blind for p in told.places] == ["", ""]


def test_instance_norm_frozen_norm_and_synchronized_names() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        FrozenBatchNorm2d(4),
        nn.ReLU(),
    )
    told = traced(model, image())
    assert [p.producers[0].name for p in told.places] == ["0", "3"]
    assert [kinds(p.readers) for p in told.places] == [["relu"], ["relu"]]
    assert told.places[1].follows == 0
    assert told.bare == ()


def test_dropout_is_found_through_linear_operations_only() -> None:
    def mlp(*between: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Linear(6, 6), *between, nn.Linear(6, 4), nn.BatchNorm1d(4))

    x = torch.randn(8, 6)
    found = place(mlp(nn.ReLU(), nn.Dropout(0.3)), x)
    assert ([op.name for op in found.dropouts], found.dropout) == (["2"], 0.3)
    assert place(mlp(nn.Dropout(0.3), nn.ReLU()), x).dropouts == ()
    assert place(mlp(nn.Dropout(0.3), nn.BatchNorm1d(6)), x).dropouts == ()


WRONG: dict[str, tuple[list[nn.Module], tuple[int, ...], bool]] = {
    "linear on the last axis": ([nn.Linear(5, 6), nn.ReLU(), nn.BatchNorm1d(7)], (4, 7, 5), True),
    "as many positions as features": ([nn.Linear(5, 7), nn.BatchNorm1d(7)], (4, 7, 5), True),
    "layer norm": ([nn.LayerNorm(5), nn.BatchNorm1d(7)], (4, 7, 5), True),
    "convolution": ([nn.Conv1d(7, 7, 1), nn.BatchNorm1d(7)], (4, 7, 7), False),
    "flat": ([nn.Linear(5, 6), nn.BatchNorm1d(6)], (4, 5), False),
}


@pytest.mark.parametrize("name", WRONG)
def test_features_on_the_last_axis_are_noticed(name: str) -> None:
    modules, shape, wrong = WRONG[name]
    assert place(nn.Sequential(*modules), torch.randn(shape)).producers[0].features_last is wrong


def test_a_transposition_puts_features_where_they_belong() -> None:
    class Right(nn.Module):
        def __init__(self, inside: bool) -> None:
            super().__init__()
            self.linear, self.bn, self.inside = nn.Linear(7, 7), nn.BatchNorm1d(7), inside

        def forward(self, x: Tensor) -> Tensor:
            x = x * self.bn.weight
            if self.inside:  # a map over positions: the features were normalized's axis all along
                return self.bn(self.linear(x.transpose(1, 2)))
            return self.bn(self.linear(x).transpose(1, 2))

    assert not place(Right(inside=False), torch.randn(4, 7, 7)).producers[0].features_last
    assert not place(Right(inside=True), torch.randn(4, 7, 7)).producers[0].features_last


def test_gradient_penalty_is_seen_and_an_adversarial_gradient_is_none() -> None:
    critic = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.LeakyReLU(), nn.Flatten(), nn.Linear(144, 1))
    for create_graph in (True, False):
        with Monitor(critic, sinks=[], on_alert="log") as monitor:
            x = image().requires_grad_()
            out = critic(x)
            (slope,) = torch.autograd.grad(out.sum(), x, create_graph=create_graph, retain_graph=True)
            (out.mean() + (slope.norm() if create_graph else 0)).backward()
            monitor.step()
            assert monitor.structure().places[0].per_sample is create_graph


def test_second_derivatives_by_parameters_couple_no_samples() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 1))
    with Monitor(model, sinks=[], on_alert="log") as monitor:
        grads = torch.autograd.grad(model(image()).pow(2).sum(), list(model.parameters()), create_graph=True)
        torch.stack([g.pow(2).sum() for g in grads]).sum().backward()
        monitor.step()
        assert not monitor.structure().places[0].per_sample


def test_convolutions_without_a_norm_are_listed() -> None:
    def block(*norm: nn.Module) -> list[nn.Module]:
        return [nn.Conv2d(4, 4, 3, padding=1), *norm, nn.ReLU()]

    model = nn.Sequential(nn.Conv2d(3, 4, 1), *block(nn.BatchNorm2d(4)), *block(nn.BatchNorm2d(4)), *block())
    told = traced(model, image())
    assert [(b.name, b.nonlinearity, b.first, b.near) for b in told.bare] == [("7", "relu", False, 1)]
    assert told.normalized == 2
    head = nn.Sequential(*block(nn.BatchNorm2d(4))[0:3], nn.Conv2d(4, 1, 1), nn.Tanh())
    assert traced(nn.Sequential(nn.Conv2d(3, 4, 1), *head), image()).bare == ()


def test_tree_is_one_line_a_layer() -> None:
    told = traced(ARCHITECTURES["depthwise"].build(), image())
    assert str(told).splitlines() == [
        "●  0 (convolution) → [1] → 2 (relu6)",
        "│  3 (convolution) → [4] → 5 (silu)",
        "│  6 (convolution) → [7] → 8 (mean)",
    ]
    assert [place.producers[0].depthwise for place in told.places] == [False, True, False]


def test_nothing_of_the_graph_is_kept_once_the_step_is_over() -> None:
    class Token:
        """Lives as long as the graph of the forward that made it."""

    alive: weakref.WeakSet[Token] = weakref.WeakSet()

    class Marked(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.token = Token()
            alive.add(ctx.token)
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
            return gradient

    class Marking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            marked: Tensor = Marked.apply(x)
            return marked

    model = nn.Sequential(residual(), Marking())
    with Monitor(model, sinks=[], on_alert="log", sample_every_n_steps=1) as monitor:
        out = model(ARCHITECTURES["residual"].batches(1)[0])
        assert len(alive) == 1
        out.sum().backward()
        monitor.step()
        del out
        gc.collect()
        assert not alive
        assert monitor.structure().places[0].order == 0


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("compiled", [torch.jit.script, lambda m: torch.jit.trace(m, torch.ones(2, 3))])
def test_a_producer_that_torchscript_has_compiled_is_read(compiled: Callable[[nn.Module], Any], bias: bool) -> None:
    model = nn.Sequential(compiled(nn.Linear(3, 4, bias=bias)), nn.BatchNorm1d(4))
    [producer] = place(model, torch.randn(5, 3)).producers
    assert (producer.kind, producer.name, producer.bias) == ("linear", "0", bias)
