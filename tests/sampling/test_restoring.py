"""Objects that an extra forward may change: each is as it was, and what did not change is not written to."""

from __future__ import annotations

import random
from array import array
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from contextvars import ContextVar
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bnmonitor.sampling.restoring import keep, keep_attributes, keep_cell, keep_class, keep_names, slots

VARIABLE = ContextVar("VARIABLE", default=1)


class Slotted:
    __slots__ = "mean"

    def __init__(self) -> None:
        self.mean: Any = [1]


class Several(Slotted):
    __slots__ = ("__hidden", "count")

    def __init__(self) -> None:
        super().__init__()
        self.__hidden = self.count = 3

    @property
    def hidden(self) -> int:
        return self.__hidden

    def hide(self, value: int) -> None:
        self.__hidden = value


CASES: dict[str, tuple[Callable[[], Any], Callable[[Any], object], Callable[[Any], Any]]] = {
    "dict": (lambda: {"a": 1}, lambda v: v.update(b=2), dict),
    "ordered": (lambda: OrderedDict(a=1, b=2), lambda v: v.move_to_end("a"), lambda v: list(v.items())),
    "counter": (lambda: Counter("aab"), lambda v: v.update("c"), dict),
    "list": (lambda: [1, 2], lambda v: v.reverse(), list),
    "deque": (lambda: deque([1, 2], 2), lambda v: v.append(3), list),
    "set": (lambda: {1, 2}, lambda v: v.add(3), set),
    "bytes": (lambda: bytearray(b"ab"), lambda v: v.append(1), bytes),
    "array": (lambda: array("d", [1.0]), lambda v: v.append(2.0), list),
    "numpy": (lambda: np.array([1.0, np.nan]), lambda v: v.fill(2.0), lambda v: v.tobytes()),
    "generator": (torch.Generator, lambda v: torch.rand(1, generator=v), lambda v: v.get_state().tolist()),
    "random": (lambda: random.Random(0), lambda v: v.random(), lambda v: v.getstate()),
    "numpy generator": (
        lambda: np.random.default_rng(0),
        lambda v: v.random(),
        lambda v: v.bit_generator.state["state"]["state"],
    ),
    "numpy state": (lambda: np.random.RandomState(0), lambda v: v.rand(), lambda v: v.get_state()[1:][1]),
    "variable": (lambda: VARIABLE, lambda v: v.set(2), lambda v: v.get()),
    "tensor": (lambda: torch.ones(2), lambda v: v.add_(1), lambda v: (v.tolist(), v._version)),
    "resized": (lambda: torch.ones(2), lambda v: setattr(v, "data", torch.ones(3)), lambda v: v.tolist()),
    "parameter": (
        lambda: nn.Parameter(torch.ones(2)),
        lambda v: (v.requires_grad_(False), setattr(v, "grad", torch.ones(2))),
        lambda v: (v.requires_grad, v.grad),
    ),
    "attributes": (lambda: torch.ones(1), lambda v: setattr(v, "tag", 1), lambda v: vars(v).copy()),
}


@pytest.mark.parametrize("name", CASES)
def test_an_object_is_as_it_was(name: str) -> None:
    make, change, look = CASES[name]
    value = make()
    before = deepcopy(look(value))
    restore = keep(value)
    assert restore is not None
    restore()
    assert look(value) == before
    change(value)
    assert look(value) != before
    restore()
    assert look(value) == before


def test_what_did_not_change_is_not_written_to() -> None:
    weight = torch.ones(2)
    frozen = np.ones(2)
    frozen.flags.writeable = False
    restore = keep(weight)
    assert restore is not None
    restore()
    assert weight._version == 0
    assert keep(frozen) is None
    assert keep(torch.ones(2, device="meta")) is None
    assert keep(3) is None


def test_slots_are_attributes() -> None:
    value = Several()
    assert set(slots(Several)) == {"_Several__hidden", "count", "mean"}
    del value.count
    restore = keep_attributes(value)
    assert restore is not None
    restore()
    mean = value.mean
    value.mean, value.count = [2], 4
    value.hide(5)
    restore()
    assert value.mean is mean
    assert value.hidden == 3
    assert not hasattr(value, "count")
    assert keep_attributes(3) is None


def test_variables_of_closures_classes_and_modules() -> None:
    def closures() -> tuple[Callable[[], None], Callable[[], list[str]]]:
        known = "before"

        def change() -> None:
            nonlocal known, new
            known = new = "after"

        def look() -> list[str]:
            try:
                return [known, new]
            except NameError:
                return [known]

        if not known:
            new = ""
        return change, look

    class Kind:
        known = "before"

    space = {"known": "before"}
    change, look = closures()
    restores = [keep_cell(cell) for cell in look.__closure__ or ()]  # type: ignore[attr-defined]
    restores += [keep_class(Kind, ["known", "new", "none"]), keep_names(space, ["known", "new", "none"])]
    for changed in (False, True):
        if changed:
            change()
            Kind.known = Kind.new = "after"  # type: ignore[attr-defined]
            space.update(known="after", new="after")
        for restore in restores:
            restore()
        assert look() == ["before"]
        assert Kind.known == "before"
        assert not hasattr(Kind, "new")
        assert space == {"known": "before"}
