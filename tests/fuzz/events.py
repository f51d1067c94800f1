"""What can happen once in a training of a program."""

from __future__ import annotations

import builtins
import copy
import io
import pickle
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tests.fuzz import parts
from tests.fuzz.program import ERRORS, Event

if TYPE_CHECKING:
    from tests.fuzz.training import Run

_MOMENTA = (0.1, 0.5, 0.02, None, 1.0, 0.0)


def do(run: Run, event: Event) -> None:
    """Let an event happen; an error is raised, everything else is tried and its outcome kept."""
    if event.what in ERRORS:
        raise _builtin(event.what)(f"in step {event.step}, {event.place}")
    norms = run.norms()
    norm: Any = norms[event.which % len(norms)] if norms else None
    call = DO[event.what]
    if norm is None and event.what in _OF_A_LAYER:
        return
    run.outcomes.append((event.what, outcome(lambda: call(run, norm, event))))


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns or raises."""
    try:
        return call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _builtin(name: str) -> type[BaseException]:
    found: type[BaseException] = getattr(builtins, name)
    return found


# -- what changes no buffer --------------------------------------------------------------------------------------------


def _momentum(run: Run, norm: Any, event: Event) -> None:
    momentum = _MOMENTA[event.which % len(_MOMENTA)]
    for each in run.norms() if event.which % 2 else [norm]:
        each.momentum = momentum  # type: ignore[assignment]


def _freeze(run: Run, norm: Any, event: Event) -> None:
    run.frozen.add(id(norm))
    norm.eval()


def _unfreeze(run: Run, norm: Any, event: Event) -> None:
    run.frozen.clear()
    run.model.train()


def _requires_grad(on: bool) -> Callable[[Run, Any, Event], None]:
    def set_it(run: Run, norm: Any, event: Event) -> None:
        norm.requires_grad_(on)

    return set_it


def _evaluated(run: Run, model: Any) -> list[float]:
    """The output of a copy in evaluation mode, for a batch that draws no random numbers."""
    shape = parts.SHAPES[run.program.family]
    x = torch.linspace(-1, 1, 4 * parts.CHANNELS * max(1, int(torch.tensor(shape).prod())))
    model.eval()
    with torch.no_grad():
        out = model(x.view(4, parts.CHANNELS, *shape).to(run.dtype))
    return [float(v) for v in out.flatten()]


def _deepcopy(run: Run, norm: Any, event: Event) -> Any:
    return _evaluated(run, copy.deepcopy(run.model))


def _pickle(run: Run, norm: Any, event: Event) -> Any:
    return _evaluated(run, pickle.loads(pickle.dumps(run.model)))


def _exported(export: Callable[[Any, Any], Any]) -> Callable[[Run, Any, Event], Any]:
    def exports(run: Run, norm: Any, event: Event) -> Any:
        blocks = run.model.blocks
        block = blocks[event.which % len(blocks)]  # type: ignore[arg-type,index]
        shape = parts.SHAPES[run.program.family]
        x = torch.linspace(-1, 1, 4 * parts.CHANNELS * max(1, int(torch.tensor(shape).prod())))
        x = x.view(4, parts.CHANNELS, *shape).to(run.dtype)
        modes = [(m, m.training) for m in block.modules()]
        block.eval()
        try:
            with torch.no_grad():
                return [float(v) for v in export(block, x)(x).flatten()]
        finally:
            for module, mode in modes:
                module.training = mode

    return exports


def _hook(run: Run, norm: Any, event: Event) -> None:
    kinds = ("forward", "replacing", "in place", "pre", "pre replacing")
    run.handles.append(run.hook(norm, kinds[event.which % len(kinds)]))
    if run.truth is not None:
        run.truth.renew()


def _unhook(run: Run, norm: Any, event: Event) -> None:
    for handle in run.handles:
        handle.remove()
    run.handles.clear()


def _replace(run: Run, norm: Any, event: Event) -> None:
    for parent in run.model.modules():
        for name, child in parent.named_children():
            if child is norm and not isinstance(parent, torch.jit.ScriptModule):
                setattr(parent, name, copy.deepcopy(_bare(norm)))
    if run.truth is not None:
        run.truth.renew()


def _bare(norm: Any) -> nn.Module:
    """A new layer of the same kind, without hooks."""
    made = object.__new__(type(norm))
    made.__dict__ = {k: v for k, v in norm.__dict__.items() if "hook" not in k}
    for key, value in norm.__dict__.items():
        if "hook" in key:
            made.__dict__[key] = type(value)() if hasattr(value, "clear") else value
    return made


def _add(run: Run, norm: Any, event: Event) -> None:
    flat = run.program.family in ("flat", "line")
    norm = nn.BatchNorm1d(parts.CHANNELS) if flat else nn.GroupNorm(2, parts.CHANNELS)
    run.model.blocks.append(nn.Sequential(norm).to(run.dtype))  # type: ignore[union-attr,operator]
    if run.truth is not None:
        run.truth.renew()


def _extra(grad: bool) -> Callable[[Run, Any, Event], None]:
    def forwards(run: Run, norm: Any, event: Event) -> None:
        with torch.set_grad_enabled(grad):
            out = run.called(run.batch())
        if grad and out.requires_grad:
            parts.loss_of(out).backward()

    return forwards


def _evaluate(run: Run, norm: Any, event: Event) -> None:
    run.evaluate()


def _save(run: Run, norm: Any, event: Event) -> None:
    torch.save(run.model.state_dict(), io.BytesIO())
    if run.monitor is not None:
        state = run.monitor.state_dict()
        pickle.loads(pickle.dumps(state))


def _look(run: Run, norm: Any, event: Event) -> None:
    if run.monitor is not None:
        for name in run.monitor.layers.names:
            run.monitor.history(name, "batch_mean")
        str(run.monitor.summary())
        str(run.monitor.structure())
        run.monitor.window()
        _ = run.monitor.skipped, run.monitor.samples, run.monitor.totals()


def _again(run: Run, norm: Any, event: Event) -> None:
    if run.prefix:  # a Trainer's monitor is the callback's to close
        return
    if run.monitor is not None:
        run.monitor.close()
        run.monitor.start()
    if run.truth is not None:
        run.truth.end_evaluation()


def _input(**values: float) -> Callable[[Run, Any, Event], None]:
    def change(run: Run, norm: Any, event: Event) -> None:
        for name, value in values.items():
            setattr(run, name, value)

    return change


def _tiny(run: Run, norm: Any, event: Event) -> None:
    run.called(torch.zeros(1, parts.CHANNELS, *parts.SHAPES[run.program.family], dtype=run.dtype))


def _anomaly(run: Run, norm: Any, event: Event) -> None:
    with torch.autograd.set_detect_anomaly(True, check_nan=False):
        parts.loss_of(run.called(run.batch())).backward()


# -- what changes buffers ----------------------------------------------------------------------------------------------


def _load(run: Run, norm: Any, event: Event) -> None:
    run.model.load_state_dict(run.snapshot, strict=False, assign=event.which % 3 == 0)


def _copy(run: Run, norm: Any, event: Event) -> None:
    with torch.no_grad():
        norm.running_mean.copy_(norm.running_mean * 0.5 + 0.1)
        if event.which % 2:
            norm.running_var.copy_(norm.running_var * 0.5 + 0.1)


def _data(run: Run, norm: Any, event: Event) -> None:
    norm.running_mean.data.add_(0.25)
    if event.which % 2:
        norm.running_var.data.mul_(1.5)


def _reset(run: Run, norm: Any, event: Event) -> None:
    norm.reset_running_stats()


def _assign(run: Run, norm: Any, event: Event) -> None:
    norm.running_mean = norm.running_mean.clone() + 0.125
    norm.running_var = norm.running_var.clone()


def _counter(run: Run, norm: Any, event: Event) -> None:
    norm.num_batches_tracked.zero_()


def _swap(run: Run, norm: Any, event: Event) -> None:
    kept = {k: v.clone() for k, v in run.model.state_dict().items()}
    run.model.load_state_dict(run.snapshot, strict=False)
    _evaluated(run, run.model)
    run.model.load_state_dict(kept)
    run.model.train()


DO: dict[str, Callable[[Run, Any, Event], Any]] = {
    "momentum": _momentum,
    "freeze": _freeze,
    "unfreeze": _unfreeze,
    "fix": _requires_grad(False),
    "release": _requires_grad(True),
    "deepcopy": _deepcopy,
    "pickle": _pickle,
    "script": _exported(lambda block, x: torch.jit.script(block)),
    "trace": _exported(lambda block, x: torch.jit.trace(block, x, check_trace=False)),
    "hook": _hook,
    "unhook": _unhook,
    "replace": _replace,
    "add": _add,
    "extra forward": _extra(True),
    "quiet forward": _extra(False),
    "evaluate": _evaluate,
    "save": _save,
    "look": _look,
    "again": _again,
    "nan": _input(input_scale=float("nan")),
    "constant": _input(input_scale=0.0),
    "large": _input(input_scale=1e3, input_shift=1e4),
    "tiny": _tiny,
    "anomaly": _anomaly,
    "load": _load,
    "copy": _copy,
    "data": _data,
    "reset": _reset,
    "assign": _assign,
    "counter": _counter,
    "swap": _swap,
}
"""What the events do, by their names."""

_OF_A_LAYER = frozenset({"momentum", "freeze", "fix", "release", "hook", "replace"}) | frozenset(
    {"copy", "data", "reset", "assign", "counter"}
)
