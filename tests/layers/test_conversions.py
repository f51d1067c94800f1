"""What PyTorch makes of a watched model: at any moment it is what it makes of an unwatched one, without a hook."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import fuse_modules, fuse_modules_qat, get_default_qat_qconfig
from torch.ao.quantization.quantize import prepare_qat
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.optim.swa_utils import AveragedModel

from bnmonitor import Monitor


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.bn(self.conv(x)))
        return out


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Block(), nn.Flatten(), nn.Linear(144, 2))


def data(seed: int = 0) -> Tensor:
    return torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def hooks(module: nn.Module) -> list[Any]:
    """Every entry in the registries of hooks of a model's modules."""
    names = ("_forward_hooks", "_forward_pre_hooks")
    flags = ("_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")
    return [item for m in module.modules() for name in names + flags for item in vars(m).get(name, {}).items()]


FUSED = ["0.conv", "0.bn", "0.relu"]


def fuse_in_place(model: nn.Module) -> Any:
    return fuse_modules(model.eval(), FUSED, inplace=True)


def qat(model: nn.Module) -> Any:
    fused = fuse_modules_qat(model.train(), FUSED)
    for module in fused.modules():
        module.qconfig = get_default_qat_qconfig("x86")  # type: ignore[assignment]
    return prepare_qat(fused)


def traced_by_hand(model: nn.Module) -> Any:
    return make_fx(model)(data())


def aot(model: nn.Module) -> Any:
    return torch.export.export(model, (data(),)).module()


CONVERSIONS: dict[str, Callable[[nn.Module], Any]] = {
    "fuse_modules": lambda model: fuse_modules(model.eval(), FUSED),
    "fuse_modules in place": fuse_in_place,
    "fuse_modules_qat": qat,
    "fuse_conv_bn_eval": lambda model: fuse_conv_bn_eval(model.eval()[0].conv, model[0].bn),  # type: ignore[index]
    "symbolic_trace": torch.fx.symbolic_trace,
    "make_fx": traced_by_hand,
    "make_fx symbolic": lambda model: make_fx(model.eval(), tracing_mode="symbolic", _allow_non_fake_inputs=True)(
        data()
    ),
    "export": aot,
    "export strict": lambda model: torch.export.export(model, (data(),), strict=True).module(),
    "deepcopy": copy.deepcopy,
    "deepcopy of a part": lambda model: copy.deepcopy(model[0].bn),  # type: ignore[index]
    "AveragedModel": AveragedModel,
    "script": torch.jit.script,
    "trace": lambda model: torch.jit.trace(model.eval(), data()),
    "pickle": lambda model: pickle.loads(pickle.dumps(model.state_dict())),
}

SHARED = {"symbolic_trace", "fuse_modules in place", "script", "trace"}
"""What holds modules of the watched model itself, and their hooks with them; or takes no hooks."""


def start(model: nn.Module) -> Monitor:
    return Monitor(model, sinks=[], on_alert="log", probe=True, sample_every_n_steps=1).start()


def step(model: nn.Module, monitor: Monitor | None, seed: int) -> None:
    model.train()
    model(data(seed)).square().mean().backward()
    if monitor is not None:
        monitor.step()


@contextmanager
def moment(name: str, model: nn.Module, monitor: Monitor | None) -> Iterator[None]:
    if name == "between steps":
        step(model, monitor, 1)
    if name != "in an evaluation":
        yield
        return
    step(model, monitor, 1)
    if monitor is not None:
        monitor.begin_evaluation()
    yield
    if monitor is not None:
        monitor.end_evaluation()


def picture(result: Any) -> str:
    """The code of a graph, or the structure of a module."""
    graph = getattr(result, "graph", None)
    return str(graph) if isinstance(graph, torch.fx.Graph) else str(result)


@pytest.mark.parametrize("when", ["at the start", "between steps", "in an evaluation"])
@pytest.mark.parametrize("conversion", CONVERSIONS)
def test_a_conversion_of_a_watched_model_gives_what_it_gives_unwatched(conversion: str, when: str) -> None:
    def run(*, watch: bool) -> tuple[Any, ...]:
        model = net()
        monitor = start(model) if watch else None
        with moment(when, model, monitor):
            torch.manual_seed(2)
            made = CONVERSIONS[conversion](model)
        left = hooks(made) if isinstance(made, nn.Module) and conversion not in SHARED else []
        model.train()
        if conversion != "fuse_modules in place":
            for seed in range(3):
                step(model, monitor, seed)
        if monitor is not None:
            monitor.close()
            assert (monitor.failure, hooks(model)) == ("", [])
            # What was not observed because of the conversion is observed again afterwards.
            assert conversion == "fuse_modules in place" or monitor.samples[-1].step == len(monitor.steps) - 1
        outputs = made(data()) if isinstance(made, nn.Module) and conversion != "deepcopy of a part" else None
        if conversion == "fuse_conv_bn_eval":
            outputs = made(data())
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        return left, picture(made), outputs, state, torch.get_rng_state()

    left, text, outputs, state, drawn = run(watch=True)
    usual_left, usual_text, usual_outputs, usual_state, usual_drawn = run(watch=False)
    assert len(left) == len(usual_left)
    assert text == usual_text
    assert (outputs is None) == (usual_outputs is None)
    assert outputs is None or torch.equal(outputs, usual_outputs)
    assert list(state) == list(usual_state)
    assert all(torch.equal(state[name], usual_state[name]) for name in state)
    assert torch.equal(drawn, usual_drawn)


def test_hooks_of_the_user_are_moved_and_copied_as_ever() -> None:
    calls: list[str] = []
    model = net()
    model[0].relu.register_forward_hook(lambda module, args, out: calls.append(type(module).__name__))
    monitor = start(model)
    assert len(hooks(copy.deepcopy(model))) == 1
    fused = fuse_modules(model.eval(), FUSED)
    fused(data())
    monitor.close()
    assert calls == ["ConvReLU2d"]


def test_a_memo_that_lives_on_keeps_inert_hooks_until_it_ends() -> None:
    model = net()
    with start(model):
        memo: dict[int, Any] = {}
        twin = copy.deepcopy(model, memo)
        twin(data())
        del memo
        assert hooks(twin) == []
