"""Runs a program three times, and compares what the runs leave behind."""

from __future__ import annotations

import contextlib
import io
import logging
import random
import re
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bnmonitor import BatchNormWarning
from tests.end_to_end.test_promises import same
from tests.fuzz import truth
from tests.fuzz.program import Program
from tests.fuzz.training import Run

OWN_FAULTS = ("BN001", "BN002")
"""Alerts that a rule or a sink of bnmonitor raised."""


@dataclass
class Result:
    """What came of a program."""

    program: Program
    wrong: list[str] = field(default_factory=list)
    rows: int = 0
    withheld: int = 0
    steps: int = 0
    unsteady: bool = False
    """Whether the program does not give the same twice, even unwatched."""


class _Heard(logging.Handler):
    """Keeps what bnmonitor logs of its own failures."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message.startswith("bnmonitor stopped"):
            self.messages.append(message)


@contextlib.contextmanager
def _heard() -> Iterator[_Heard]:
    handler, logger = _Heard(), logging.getLogger("bnmonitor")
    logger.addHandler(handler)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)


@dataclass
class Left:
    """What a run leaves behind."""

    run: Any
    ended: str
    where: str
    state: dict[str, Any]
    attributes: dict[str, dict[str, Any]]
    warnings: set[str]


def check(program: Program) -> Result:
    """Run a program unwatched, watched, and with the truth; return what is wrong."""
    result = Result(program)
    with tempfile.TemporaryDirectory() as folder, _heard() as heard:
        alone, watched, true = (_left(program, kind, Path(folder) / kind) for kind in ("alone", "watched", "truth"))
        result.steps = len(alone.run.numbers) if alone.run else 0
        differences = _differences(alone, watched)
        if differences and _differences(alone, _left(program, "alone", Path(folder) / "once more")):
            result.unsteady = True
            return result
        result.wrong += differences
        result.wrong += heard.messages
        monitor = watched.run.monitor if watched.run else None
        if monitor is not None:
            if monitor.failure:
                result.wrong.append(f"failure: {monitor.failure}")
            result.wrong += [f"alert: {a}" for a in monitor.alerts if a.code in OWN_FAULTS]
            if true.run.truth is not None and not result.wrong and _follows(alone, true, program):
                _rows(watched.run, true.run.truth, result)
    return result


def _run_of(program: Program, kind: str, folder: Path) -> Any:
    if program.loop == "lightning":
        from tests.fuzz.fit import Fit

        return Fit(program, kind, folder)
    return Run(program, kind, folder)


def _left(program: Program, kind: str, folder: Path) -> Left:
    if program.compiles:
        torch.compiler.reset()
    torch.jit._state._clear_class_state()  # type: ignore[no-untyped-call]
    folder.mkdir()
    run: Any = None
    ended = where = ""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        try:
            run = _run_of(program, kind, folder)
            run.train()
        except BaseException as error:
            ended = _without_addresses(f"{type(error).__name__}: {error}")
            where = "".join(traceback.format_exception(error)[-6:])
        state = {} if run is None else _state(run)
    said = {_without_addresses(str(w.message)) for w in caught if not issubclass(w.category, BatchNormWarning)}
    if run is not None and run.truth is not None:
        run.truth.remove()
    model = None if run is None else run.model
    return Left(run, ended, where, state, {} if model is None else _attributes(model), said)


def _state(run: Any) -> dict[str, Any]:
    model: nn.Module = run.model
    numpy = np.random.get_state()
    # Compiled code counts the writes to a buffer in ways of its own.
    versions = run.kind != "truth" and not run.program.compiles
    return {
        "random state of torch": torch.get_rng_state(),
        "random state of Python": random.getstate(),
        "random state of NumPy": [numpy[0], torch.from_numpy(numpy[1].astype("int64")), *numpy[2:]],  # type: ignore[union-attr]
        "losses": [float(x).hex() for x in run.losses],
        "outcomes": _plain(run.outcomes),
        "steps": run.numbers,
        "parameters and buffers": _tensors(model.state_dict()),
        "gradients": [p.grad for p in model.parameters() if not _lazy(p) and p.grad is not None],
        "average": {} if run.average is None else _tensors(run.average.state_dict()),
        "optimizers": [_plain(o.state_dict()) for o in run.optimizers],
        "modes": [m.training for m in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "versions": [b._version for b in model.buffers() if not (_lazy(b) or b.is_inference())] if versions else [],
        "settings": [torch.is_grad_enabled(), str(torch.get_default_dtype()), torch.is_inference_mode_enabled()],
    }


def _lazy(tensor: Any) -> bool:
    return isinstance(tensor, torch.nn.parameter.UninitializedTensorMixin)


def _tensors(state: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in state.items() if isinstance(v, Tensor) and not _lazy(v)}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, Tensor | int | bool | type(None)):
        return value
    return _without_addresses(str(value))


def _without_addresses(text: str) -> str:
    return re.sub(r"0x[0-9a-f]+|___torch_mangle_\d+\.", "", text)


def _attributes(model: nn.Module) -> dict[str, dict[str, Any]]:
    """What every module has, and how many hooks of each kind."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        found[name] = {key: _kind(key, value) for key, value in vars(module).items()}
    return found


def _kind(key: str, value: Any) -> Any:
    """The keys of a registry, the number of hooks, or the type of anything else."""
    if not isinstance(value, dict | set):
        return str(type(value))
    return len(value) if "hook" in key else sorted(map(str, value))


def _differences(alone: Left, watched: Left) -> list[str]:
    found = []
    if alone.ended != watched.ended:
        found.append(f"ended with {watched.ended!r} instead of {alone.ended!r}: {watched.where}")
    if not found:
        for key in alone.state:
            if not same(alone.state[key], watched.state[key]):
                found.append(f"{key}: {_first_difference(alone.state[key], watched.state[key])}")
    for name in {*alone.attributes, *watched.attributes}:
        a, b = alone.attributes.get(name, {}), watched.attributes.get(name, {})
        found += [f"{name}.{key}: {b.get(key)} instead of {a.get(key)}" for key in {*a, *b} if a.get(key) != b.get(key)]
    found += [f"a warning: {text}" for text in watched.warnings - alone.warnings - _seen]
    _seen.update(alone.warnings, watched.warnings)
    return found


_seen: set[str] = set()
"""Warnings that PyTorch has given before: it gives some only once in a process."""


def _first_difference(a: Any, b: Any) -> str:
    if isinstance(a, dict) and isinstance(b, dict) and list(a) == list(b):
        pairs = [(str(key), a[key], b[key]) for key in a]
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        pairs = [(str(i), x, y) for i, (x, y) in enumerate(zip(a, b, strict=True))]
    else:
        return f"{str(b)[:300]} instead of {str(a)[:300]}"
    return next((f"{key}: {_first_difference(x, y)}" for key, x, y in pairs if not same(x, y)), "")


def _follows(alone: Left, true: Left, program: Program) -> bool:
    """Whether the run with the truth is the same training."""
    keys = ("losses", "parameters and buffers", "steps")
    if all(same(alone.state[key], true.state[key]) for key in keys):
        return True
    if not program.compiles:
        raise AssertionError(f"{program}: the run with the truth is another training")
    losses = [torch.tensor([float.fromhex(x) for x in each.state["losses"]]) for each in (alone, true)]
    if len(losses[0]) != len(losses[1]) or not torch.allclose(*losses, rtol=1e-5, atol=1e-6, equal_nan=True):
        return False
    # What is compiled may update the running statistics other times than what is not, and the losses are the same: it
    # does not run a hook that came later, nor again in the backward, nor a part before an error.
    return all(map(_alike, alone.run.buffers, true.run.buffers)) and len(alone.run.buffers) == len(true.run.buffers)


def _alike(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether buffers differ by no more than rounding: counters do not at all."""
    return list(one) == list(other) and all(
        torch.allclose(a, other[k], rtol=1e-3, atol=1e-4, equal_nan=True)
        if a.is_floating_point()
        else same(a, other[k])
        for k, a in one.items()
    )


def _rows(run: Any, true: truth.Truth, result: Result) -> None:
    """Compare the recorded rows with the truth."""
    compared = truth.Compared()
    monitor = run.monitor
    position = {number: i for i, number in enumerate(run.numbers)}
    # A Trainer gives several batches one number where it accumulates gradients.
    last = range(true.steps)[-len(monitor.steps) :] if monitor.steps else []
    steps = list(last) if run.prefix else [position[number] for number in monitor.steps]
    modules = {f"{run.prefix}{name}": module for name, module in run.model.named_modules()}
    for name in monitor.layers.names:
        got = monitor.history(name, "batch_mean"), monitor.history(name, "batch_var")
        instance = isinstance(modules.get(name), truth.INSTANCE)
        _leave_out(true.rows.get(name.removeprefix(run.prefix), []), _is_compiled(name, run), instance)
        truth.compare(true, name.removeprefix(run.prefix), steps[-len(got[0]) :], got, compared, instance)
    result.rows, result.withheld = compared.right, compared.withheld
    result.wrong += compared.wrong


def _is_compiled(name: str, run: Any) -> bool:
    """Whether a layer is in compiled code."""
    blocks, block = run.program.blocks, int(name.removeprefix(run.prefix).split(".")[1])
    return bool(run.program.compiled) or (block < len(blocks) and blocks[block].call == "compile")


def _leave_out(rows: list[Any], compiled: bool, instance: bool) -> None:
    """Leave out the rows of which the manual says that they are not known.

    Several calls of a compiled InstanceNorm in a step are mistaken for one, and hooks see some calls of a compiled
    layer without running statistics. A momentum of 0 within a forward makes InstanceNorm write what it read, rounded.
    """
    for row in rows:
        if row is None:
            continue
        several = compiled and len(row.calls) > 1 and (instance or not row.tracked)
        rounds = instance and 0.0 in {c.momentum for c in row.calls} | row.momenta
        row.unknown = row.unknown or several or rounds
