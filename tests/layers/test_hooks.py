"""Hooks: that none is left behind, that none ends a forward, and that a probe silences only its own forward."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import pytest
import torch
from torch import nn

from bnmonitor import Monitor
from bnmonitor.layers import Hooks
from tests.end_to_end.test_promises import hooks

dynamo = pytest.importorskip("torch._dynamo")


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.BatchNorm1d(4))


class Calls:
    """Records what hooks are called with."""

    def __init__(self) -> None:
        self.all: list[tuple[nn.Module, Any, Any]] = []

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.all.append((module, args, output))


def placed(model: nn.Module, *, outlast: bool = False) -> tuple[Hooks, Calls]:
    """Hooks of each sort on every module."""
    ours, calls = Hooks(outlast_compilation=outlast), Calls()
    for module in model.modules():
        ours.on_call(module, calls)
        ours.on_forward(module, calls)
        ours.on_forward(module, calls, always=True)
    return ours, calls


def compile_something(dtype: torch.dtype) -> None:
    """Compile a function; for another type it is compiled again."""
    torch.compile(lambda x: x * 2, backend="eager")(torch.ones(2, dtype=dtype))


def test_removing_leaves_no_hook_behind() -> None:
    model = net()
    ours, calls = placed(model)
    assert ours.placed
    assert hooks(model) == 3 * len(list(model.modules()))
    ours.remove()
    assert not ours.placed
    assert hooks(model) == 0
    model(torch.randn(8, 3))
    assert calls.all == []
    ours.remove()


def test_the_hooks_of_one_module_are_removed_alone() -> None:
    model = net()
    ours, calls = placed(model)
    ours.remove_from(model[1])
    ours.remove_from(model[1])
    assert not model[1]._forward_hooks
    assert not model[1]._forward_pre_hooks
    model(torch.randn(8, 3))
    assert {id(module) for module, _, _ in calls.all} == {id(m) for m in model.modules() if m is not model[1]}
    ours.remove()
    assert hooks(model) == 0


def test_a_compilation_removes_the_hooks_unless_they_outlast_it() -> None:
    dynamo.reset()  # which ends every subscription
    first, second, third = net(), net(), net()
    before = list(dynamo.callback.callback_handler.start_callbacks)
    removed: list[str] = []
    ours = Hooks(on_compilation=lambda: removed.append("first"))
    ours.on_forward(first[1], Calls())
    others, _ = placed(second)
    lasting, _ = placed(third, outlast=True)
    compile_something(torch.float32)
    assert (hooks(first), hooks(second)) == (0, 0), "one that is removed must not keep the next one from it"
    assert removed == ["first"]
    assert hooks(third) > 0
    assert dynamo.callback.callback_handler.start_callbacks == before
    for each in (ours, others, lasting):
        each.remove()
    compile_something(torch.float64)
    assert removed == ["first"]
    assert hooks(third) == 0


@pytest.mark.parametrize("place", ["register_forward_hook", "register_forward_pre_hook"])
def test_ctrl_c_between_placing_a_hook_and_noting_it_leaves_none_behind(place: str) -> None:
    class Interrupted(nn.ReLU):
        def __getattribute__(self, name: str) -> Any:
            found = super().__getattribute__(name)
            if name != place:
                return found

            def register(*args: Any, **how: Any) -> None:
                found(*args, **how)
                raise KeyboardInterrupt

            return register

    model, theirs = Interrupted(), Calls()
    nn.Module.register_forward_hook(model, theirs)
    ours = Hooks()
    with pytest.raises(KeyboardInterrupt):
        (ours.on_forward if place == "register_forward_hook" else ours.on_call)(model, Calls())
    ours.remove()
    assert list(model._forward_hooks.values()) == [theirs]
    assert not model._forward_pre_hooks
    assert not any(vars(model)[name] for name in vars(model) if name.endswith(("with_kwargs", "always_called")))


def test_a_scripted_module_takes_no_hook() -> None:
    scripted, ours = torch.jit.script(net()), Hooks()
    ours.on_call(scripted, Calls())
    ours.on_forward(scripted, Calls())
    assert not ours.placed


def test_a_hook_alone_is_copied_as_an_inert_one() -> None:
    model = net()
    placed(model)
    [hook, *_] = model[1]._forward_hooks.values()
    assert copy.deepcopy(hook)(model[1], (), None) is None


def test_a_hook_gets_the_call_and_changes_nothing() -> None:
    layer, calls, ours = nn.BatchNorm1d(2), Calls(), Hooks()
    ours.on_call(layer, calls)
    ours.on_forward(layer, calls)
    x = torch.randn(4, 2)
    out = layer(input=x)
    assert [(module is layer, args) for module, args, _ in calls.all] == [(True, ())] * 2
    assert calls.all[0][2] == {"input": x}
    assert calls.all[1][2] is out


def test_a_hook_that_always_comes_sees_the_end_of_a_forward_that_fails() -> None:
    layer, calls, ours = nn.BatchNorm1d(2), Calls(), Hooks()
    ours.on_forward(layer, calls, always=True)
    with pytest.raises(ValueError, match="expected 2D"):
        layer(torch.ones(2))
    assert len(calls.all) == 1


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_of_a_module_gets_an_inert_hook(how: Any) -> None:
    model = net()
    ours, calls = placed(model)
    other = how(model)
    ours.remove()
    assert hooks(model) == 0
    for layer in other:
        layer(torch.randn(8, 3 if isinstance(layer, nn.Linear) else 4))
    assert calls.all == []


def test_a_hook_that_fails_is_logged_once_and_ends_no_forward(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[int] = []

    def fails(module: nn.Module, args: Any, output: Any) -> None:
        calls.append(1)
        raise ValueError("not this one")

    layer, ours = nn.BatchNorm1d(2), Hooks()
    ours.on_forward(layer, fails)
    with caplog.at_level("WARNING", "bnmonitor"):
        assert [layer(torch.randn(4, 2)).shape for _ in range(3)] == [(4, 2)] * 3
    assert calls == [1]
    assert [record.getMessage() for record in caplog.records] == [
        "bnmonitor stopped observing BatchNorm1d after an error: ValueError: not this one"
    ]


def test_in_a_forward_of_its_own_only_its_own_hooks_are_called_and_may_fail() -> None:
    def fails(module: nn.Module, args: Any, output: Any) -> None:
        raise ValueError("not this one")

    layer, calls, others, mine = nn.BatchNorm1d(2), Calls(), Hooks(), Hooks()
    others.on_forward(layer, calls)
    mine.on_forward(layer, fails)
    with mine.only_mine(), pytest.raises(ValueError, match="not this one"):
        layer(torch.randn(4, 2))
    assert calls.all == []
    layer(torch.randn(4, 2))
    assert len(calls.all) == 1


def test_a_probe_in_one_thread_silences_no_monitor_in_another() -> None:
    """While one monitor is within its extra forward, another one loses none of its calls."""
    within, go_on = threading.Event(), threading.Event()

    class Waits(nn.Module):
        waiting = False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.waiting:
                within.set()
                assert go_on.wait(60)
            return x

    waits = Waits()
    probed = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), waits)
    found: list[Any] = []

    def probe() -> None:
        with Monitor(probed, sinks=[], on_alert="log", probe=True, sample_every_n_steps=1) as monitor:
            probed(torch.randn(16, 3)).square().sum().backward()
            monitor.step()
            waits.waiting = True
            with monitor.evaluation():
                pass
            found.append(monitor.skipped.get("train-eval-gap", ""))

    other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False))
    thread = threading.Thread(target=probe)
    with Monitor(other, sinks=[], on_alert="log", sample_every_n_steps=1) as monitor:
        thread.start()
        try:
            assert within.wait(60)
            for _ in range(4):
                other(torch.randn(16, 3)).square().sum().backward()
                monitor.step()
        finally:
            go_on.set()
            thread.join(60)
        assert monitor.history("1", "batch_mean").isfinite().all()
        assert len(monitor.steps) == 4
    assert found == [""] or "extra forward, which failed" not in found[0]
