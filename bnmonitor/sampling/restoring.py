"""Puts single objects back into their present state: containers, tensors, random generators, objects and classes."""

from __future__ import annotations

import random
import sys
from array import array
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

Restore = Callable[[], None]
"""Puts one object back into the state in which it was."""


def keep(value: Any) -> Restore | None:
    """Return a function that puts an object back into its present state; None if it has none that can change.

    The objects that it holds are kept as they are, but not their own states. An object whose state has not changed is
    not written to.
    """
    if isinstance(value, Tensor):
        return _keep_tensor(value)
    for kind, kept in _KINDS:
        if isinstance(value, kind):
            return kept(value)
    numpy = sys.modules.get("numpy")
    return None if numpy is None else _keep_of_numpy(value, numpy)


def keep_attributes(value: Any) -> Restore | None:
    """Return a function that gives an object its present attributes back; None if it has none."""
    own = getattr(value, "__dict__", None)
    kept = [_keep_dict(own)] if isinstance(own, dict) else []
    for name, slot in slots(type(value)).items():
        kept.append(_keep_slot(value, name, slot))
    return (lambda: _all(kept)) if kept else None


def slots(kind: type) -> dict[str, Any]:
    """Return the descriptors of a class's ``__slots__``, by name."""
    found: dict[str, Any] = {}
    for each in kind.__mro__:
        named = vars(each).get("__slots__", ())
        for name in (named,) if isinstance(named, str) else tuple(named):
            mangled = f"_{each.__name__.lstrip('_')}{name}" if name[:2] == "__" and name[-2:] != "__" else name
            if hasattr(vars(each).get(mangled), "__set__"):
                found[mangled] = vars(each)[mangled]
    return found


def keep_class(kind: type, names: list[str]) -> Restore:
    """Return a function that gives a class its present attributes of these names back, and removes new ones."""
    before = dict(vars(kind))

    def restore() -> None:
        for name in names:
            if name in before and vars(kind).get(name, _NOTHING) is not before[name]:
                type.__setattr__(kind, name, before[name])
            elif name not in before and name in vars(kind):
                type.__delattr__(kind, name)

    return restore


def keep_names(namespace: dict[str, Any], names: list[str]) -> Restore:
    """Return a function that gives some names of a module their present values back."""
    before = {name: namespace[name] for name in names if name in namespace}

    def restore() -> None:
        for name in names:
            if name in before:
                if namespace.get(name, _NOTHING) is not before[name]:
                    namespace[name] = before[name]
            else:
                namespace.pop(name, None)

    return restore


def keep_cell(cell: Any) -> Restore:
    """Return a function that gives the variable of a closure its present value back."""
    try:
        before = cell.cell_contents
    except ValueError:  # not assigned yet
        before = _NOTHING

    def restore() -> None:
        if before is not _NOTHING:
            cell.cell_contents = before
        else:
            del cell.cell_contents

    return restore


def keep_generators() -> list[Restore]:
    """Return functions that set every random generator of the process back to its present state."""
    state, python = torch.get_rng_state(), random.getstate()
    found: list[Restore] = [lambda: torch.set_rng_state(state), lambda: random.setstate(python)]
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # pragma: no cover (GPU)
        devices = torch.cuda.get_rng_state_all()
        found.append(lambda: torch.cuda.set_rng_state_all(devices))
    numpy = sys.modules.get("numpy")
    if numpy is not None and hasattr(numpy, "random"):
        drawn = numpy.random.get_state()
        found.append(lambda: _void(numpy.random.set_state(drawn)))
    return found


def lack_of_memory(tensors: Iterable[Tensor]) -> str:
    """Return why there is not enough memory for a copy of tensors; empty if there is, or if that is unknown."""
    needed: Counter[torch.device] = Counter()
    for tensor in tensors:
        needed[tensor.device] += tensor.numel() * tensor.element_size()
    for device, size in needed.items():
        free = _free(device)
        if free is not None and size > free // 2:
            return f"a copy of its tensors needs {size:,} bytes on {device}, and {free:,} are free"
    return ""


def _free(device: torch.device) -> int | None:
    if device.type == "cuda":  # pragma: no cover (needs a GPU)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + held
    if device.type == "cpu":
        with suppress(OSError, ValueError, IndexError), open("/proc/meminfo", encoding="ascii") as file:
            return next(1024 * int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    return None


_NOTHING = object()


def _void(_: object) -> None:
    pass


def _all(kept: list[Restore]) -> None:
    for restore in kept:
        restore()


def _keep_tensor(value: Tensor) -> Restore | None:
    if value.is_meta:
        return None
    grows, grad = value.requires_grad, value.grad if value.is_leaf else None
    attributes = _keep_dict(value.__dict__)
    version = None if value.is_inference() else value._version
    with torch.no_grad():
        copy = value.detach().clone()

    def restore() -> None:
        with torch.inference_mode(value.is_inference()), torch.no_grad():
            if value.shape != copy.shape or value.dtype != copy.dtype:
                value.data = copy
            elif value.device.type != "cpu" or not _equal(value, copy):  # to compare would wait for the device
                value.copy_(copy)
        if version is not None and value._version != version:
            _set_version(value, version)
        if value.is_leaf and not value.is_inference():
            if value.requires_grad != grows:
                value.requires_grad_(grows)
            if value.grad is not grad:
                value.grad = grad
        attributes()

    return restore


def _set_version(value: Tensor, version: int) -> None:
    """Give a tensor with the values that it had the version that it had: a graph of the training may have kept it."""
    with suppress(Exception):  # private to PyTorch, and once of a single tensor
        try:
            torch._C._autograd._unsafe_set_version_counter((value,), (version,))
        except TypeError:
            torch._C._autograd._unsafe_set_version_counter(value, version)  # type: ignore[arg-type]


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.layout == torch.strided and torch.equal(one, other)


def _keep_dict(value: dict[Any, Any]) -> Restore:
    kind: Any = OrderedDict if isinstance(value, OrderedDict) else dict
    before = list(kind.items(value))

    def restore() -> None:
        now = list(kind.items(value))
        if len(now) == len(before) and all(a[0] is b[0] and a[1] is b[1] for a, b in zip(now, before, strict=True)):
            return
        kind.clear(value)
        for key, item in before:
            kind.__setitem__(value, key, item)

    return restore


def _keep_list(value: list[Any]) -> Restore:
    before = list(value)

    def restore() -> None:
        if len(value) != len(before) or any(a is not b for a, b in zip(value, before, strict=True)):
            list.__setitem__(value, slice(None), before)

    return restore


def _keep_deque(value: deque[Any]) -> Restore:
    before = list(value)

    def restore() -> None:
        if len(value) != len(before) or any(a is not b for a, b in zip(value, before, strict=True)):
            deque.clear(value)
            deque.extend(value, before)

    return restore


def _keep_set(value: set[Any]) -> Restore:
    before = set(value)

    def restore() -> None:
        if set(value) != before:
            set.clear(value)
            set.update(value, before)

    return restore


def _keep_bytes(value: Any) -> Restore:
    before = value[:]

    def restore() -> None:
        if value != before:
            value[:] = before

    return restore


def _keep_generator(value: torch.Generator) -> Restore:
    state = value.get_state()
    return lambda: _void(value.set_state(state))


def _keep_random(value: random.Random) -> Restore:
    state = value.getstate()
    return lambda: value.setstate(state)


def _keep_of_numpy(value: Any, numpy: Any) -> Restore | None:
    if isinstance(value, numpy.ndarray):
        before = value.copy()

        def restore() -> None:
            if value.tobytes() != before.tobytes():
                value[...] = before

        return restore if value.flags.writeable else None
    if isinstance(value, numpy.random.Generator):
        value = value.bit_generator
    if isinstance(value, numpy.random.BitGenerator):
        state = value.state
        return lambda: setattr(value, "state", state)
    if isinstance(value, numpy.random.RandomState):
        drawn = value.get_state()
        return lambda: _void(value.set_state(drawn))
    return None


def _keep_slot(value: Any, name: str, slot: Any) -> Restore:
    before = getattr(value, name, _NOTHING)

    def restore() -> None:
        if getattr(value, name, _NOTHING) is not before:
            slot.__set__(value, before) if before is not _NOTHING else slot.__delete__(value)

    return restore


def _keep_variable(value: ContextVar[Any]) -> Restore:
    before = value.get()

    def restore() -> None:
        if value.get() is not before:
            value.set(before)

    return restore


_KINDS: tuple[tuple[type, Callable[[Any], Restore]], ...] = (
    (dict, _keep_dict),
    (list, _keep_list),
    (deque, _keep_deque),
    (set, _keep_set),
    (bytearray, _keep_bytes),
    (array, _keep_bytes),
    (torch.Generator, _keep_generator),
    (random.Random, _keep_random),
    (ContextVar, _keep_variable),
)
