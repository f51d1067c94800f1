"""What a forward can read and write: everything that is put back after an extra forward, or the reason against one.

A forward reaches its modules with all that they hold, the code of their classes, and what that code mentions: variables
of closures, names of its Python module, attributes of other objects. An attribute that no code mentions is not reached:
a LightningModule holds its Trainer, and its forward does not use it.
"""

from __future__ import annotations

import abc
import collections
import contextvars
import copy
import datetime
import decimal
import enum
import functools
import gc
import io
import itertools
import logging
import operator
import queue
import re
import sys
import threading
import types
import uuid
import weakref
from collections.abc import Collection, Iterable, Iterator
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor, nn

from bnmonitor.sampling.mentioned import Mentioned, mentioned
from bnmonitor.sampling.restoring import (
    Restore,
    keep,
    keep_attributes,
    keep_cell,
    keep_class,
    keep_names,
    lack_of_memory,
    slots,
)

MOST_OBJECTS = 500_000
"""A forward that reaches more objects is not run."""

_TRUSTED = frozenset({*sys.stdlib_module_names, "torch", "numpy", "bnmonitor", "_pytest"}) - {"__main__"}
"""Packages whose code is not read: it writes to what it gets, to the random generators, and to nothing else."""

_FIRST_NAMES = frozenset({"forward"})

_MODULE = frozenset(vars(nn.Module()))

_FIXED: tuple[type, ...] = (
    *(type(None), bool, int, float, complex, str, bytes, range, slice, type(...), type(NotImplemented)),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.qscheme, torch.finfo, torch.iinfo),
    *(re.Pattern, enum.Enum, logging.Logger, PurePath, uuid.UUID, decimal.Decimal, types.CodeType, types.GenericAlias),
    types.UnionType,
    *(datetime.date, datetime.time, datetime.timedelta, datetime.tzinfo, types.MappingProxyType),
    *(operator.itemgetter, operator.methodcaller, operator.attrgetter, type(threading.Lock()), type(threading.RLock())),
    *(types.MethodDescriptorType, types.WrapperDescriptorType, types.GetSetDescriptorType, types.MemberDescriptorType),
    *(type(vars(abc.ABC)["_abc_impl"]), getattr(collections, "_tuplegetter", int)),
    torch.jit.ScriptFunction,
    # Other threads wait for these: to put them back could make them wait forever.
    *(threading.Event, threading.Condition, threading.Semaphore, threading.Barrier),
)

_OPAQUE: tuple[type, ...] = (
    *(types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType),
    *(io.IOBase, threading.Thread, queue.Queue, torch.jit.ScriptModule),
)
"""What cannot be put back."""

_EMPTY: tuple[Any, ...] = ([], (), {}, {}.items(), {}.values(), set(), "", b"", range(0), reversed([]))

_ITERATORS: tuple[type, ...] = (
    *(type(iter(each)) for each in _EMPTY),
    *(enumerate, zip, map, filter, reversed),
    *(kind for kind in vars(itertools).values() if isinstance(kind, type) and hasattr(kind, "__next__")),
)


class Reach:
    """Everything that calls of some modules can read and write.

    Args:
        roots: The modules that are called, and the arguments.
    """

    def __init__(self, roots: Iterable[Any]) -> None:
        self._roots = list(roots)
        self.obstacle = ""
        """Why not everything can be put back, as the end of a sentence; empty if it can."""
        self._names = set(_FIRST_NAMES)
        self._every = self._any_variable = False
        known: tuple[int, ...] = ()
        while known != (known := (len(self._names), self._every, self._any_variable)) and not self.obstacle:
            self._walk()
        if not self.obstacle:
            self.obstacle = lack_of_memory(value for value in self._seen.values() if isinstance(value, Tensor))

    def keep(self) -> list[Restore]:
        """Return functions that put everything back, and give the forward copies of the iterators until then.

        Raises:
            Exception: An object cannot be copied; nothing has changed.
        """
        kept = [restore for value in self._seen.values() if (restore := keep(value)) is not None]
        kept += [restore for value in self._objects if (restore := keep_attributes(value)) is not None]
        kept += [keep_cell(cell) for cell in self._cells.values()]
        names = sorted(self._names)
        kept += [keep_class(kind, [*names, *vars(kind)] if self._every else names) for kind in self._classes]
        kept += [keep_names(space, sorted(named)) for space, named in self._namespaces.values()]
        memo = {key: value for key, value in self._seen.items() if not isinstance(value, _ITERATORS)}
        copies = [(holder, key, copy.deepcopy(iterator, memo)) for holder, key, iterator in self._iterators]
        for holder, key, iterator in copies:
            if isinstance(holder, types.CellType):
                holder.cell_contents = iterator
            else:
                holder[key] = iterator
        return kept

    # -- the walk ------------------------------------------------------------------------------------------------------

    def _walk(self) -> None:
        self._seen: dict[int, Any] = {}
        self._objects: list[Any] = []
        self._classes: list[type] = []
        self._kinds: set[tuple[type, bool]] = set()
        self._cells: dict[int, Any] = {}
        self._namespaces: dict[int, tuple[dict[str, Any], set[str]]] = {}
        self._iterators: list[tuple[Any, Any, Any]] = []
        stack: list[tuple[Any, str]] = [(root, type(root).__name__) for root in self._roots]
        while stack and not self.obstacle:
            value, where = stack.pop()
            if id(value) in self._seen or isinstance(value, _FIXED):
                continue
            if len(self._seen) > MOST_OBJECTS:
                self.obstacle = f"the forward reaches more than {MOST_OBJECTS:,} objects"
                return
            self._seen[id(value)] = value
            placed = len(self._iterators)
            held = list(self._inside(value, where))
            replaced = {id(iterator) for _, _, iterator in self._iterators[placed:]}
            for item, words in held:
                if isinstance(item, _ITERATORS) and not isinstance(value, _ITERATORS) and id(item) not in replaced:
                    self._stop(words, f"a {type(item).__name__} in a place that cannot be written")
            stack += held

    def _inside(self, value: Any, where: str) -> Iterable[tuple[Any, str]]:
        """What an object holds, each with the words for it."""
        if isinstance(value, Tensor):
            return [(each, where) for each in value.__dict__.values()] if not value.is_quantized else ()
        if isinstance(value, _OPAQUE):
            return self._stop(where, f"an object of {type(value).__name__}")
        if isinstance(value, type):
            return self._of_class(value, made=True)
        if isinstance(value, types.FunctionType):
            return self._of_function(value, where)
        if isinstance(value, types.ModuleType):
            return self._of_namespace(vars(value), self._names) if not _trusted(value.__name__) else ()
        if isinstance(value, _ITERATORS):
            return [(each, where) for each in gc.get_referents(value) if not isinstance(each, type)]
        if isinstance(value, contextvars.ContextVar):
            try:
                return [(value.get(), where)]
            except LookupError:
                return self._stop(where, "a ContextVar without a value, which cannot be taken away from it again")
        if isinstance(value, weakref.ref):
            return [(value(), where)]
        if isinstance(value, _WRAPPERS):
            return [(getattr(value, name, None), where) for name in _HELD]
        return self._of_object(value, where)

    def _of_object(self, value: Any, where: str) -> Iterable[tuple[Any, str]]:
        kind = type(value)
        if _trusted(kind.__module__) and _unwritten(value):
            return ()
        contents = _contents(value)
        own = getattr(value, "__dict__", None)
        attributes: dict[str, Any] = own if isinstance(own, dict) else {}
        if contents is None and _hides_state(value, has_attributes=isinstance(own, dict)):
            return self._stop(where, f"an object of {kind.__name__}, whose state cannot be read")
        self._objects.append(value)
        found: list[tuple[Any, str]] = list(self._of_class(kind, made=False))
        for key, item in contents or ():
            found.append((item, f"{where}[{key!r}]" if isinstance(key, int | str) else where))
            if isinstance(item, _ITERATORS) and isinstance(value, dict | list):
                self._iterators.append((value, key, item))
        for name, item in list(attributes.items()):
            if self._mentioned(value, name):
                found.append((item, f"{kind.__name__}.{name}"))
                if isinstance(item, _ITERATORS):
                    self._iterators.append((attributes, name, item))
        for name in slots(kind):
            found.append((getattr(value, name, None), f"{kind.__name__}.{name}"))
        return found

    def _mentioned(self, value: Any, name: str) -> bool:
        """Whether the code that is reached may use an attribute of an object."""
        if self._every or name in self._names or (isinstance(value, nn.Module) and name in _MODULE):
            return True
        # The code of these classes is not read.
        kinds = (k for k in type(value).__mro__ if k is not object and k is not nn.Module)
        return any(_trusted(k.__module__) and vars(k).get("__init__") is not None for k in kinds)

    def _of_class(self, kind: type, *, made: bool) -> Iterable[tuple[Any, str]]:
        """The code and the variables of a class; that of its construction only if the forward may make objects."""
        found: list[tuple[Any, str]] = []
        if (kind, made) in self._kinds:
            return found
        self._kinds.add((kind, made))
        for each in kind.__mro__:
            if _trusted(each.__module__):
                continue
            self._classes.append(each)
            for name, item in vars(each).items():
                special = name[:2] == "__" and isinstance(item, types.FunctionType) and name not in _UNCALLED
                if not (special or name in self._names or self._every) or (name in _MAKING and not made):
                    continue
                found.append((item, f"{each.__name__}.{name}"))
        return found

    def _of_function(self, function: types.FunctionType, where: str) -> Iterable[tuple[Any, str]]:
        trusted = _trusted(str(function.__globals__.get("__name__")))
        self._objects.append(function)
        found: list[tuple[Any, str]] = [(each, where) for each in vars(function).values()]
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            item = getattr(cell, "cell_contents", None)
            if name == "__class__" and isinstance(item, type):  # what super() needs: it makes no object
                found += self._of_class(item, made=False)
                continue
            if trusted and not isinstance(item, (types.FunctionType, *_WRAPPERS, nn.Module)):
                continue
            self._cells[id(cell)] = cell
            found.append((item, f"{name} of {function.__name__}"))
            if isinstance(item, _ITERATORS):
                self._iterators.append((cell, None, item))
        if trusted:
            return found
        held = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
        names = mentioned(function.__code__)
        self._note(names)
        found += [(item, where) for item in held]
        found += [(sys.modules.get(name), name) for name in names.imported]
        return [*found, *self._of_namespace(function.__globals__, names.variables)]

    def _of_namespace(self, space: dict[str, Any], names: Collection[str]) -> Iterable[tuple[Any, str]]:
        """The variables of a Python module that have one of these names, or all."""
        _, known = self._namespaces.setdefault(id(space), (space, set()))
        wanted = ({*space, *names} if self._any_variable else {*names}) - known
        known |= wanted
        found = []
        for name in wanted & space.keys():
            item = space[name]
            if isinstance(item, _ITERATORS):
                self._iterators.append((space, name, item))
            found.append((item, f"{space.get('__name__')}.{name}"))
        return found

    def _note(self, names: Mentioned) -> None:
        self._names |= names.attributes
        self._every |= names.any_attribute
        self._any_variable |= names.any_variable

    def _stop(self, where: str, what: str) -> Iterable[tuple[Any, str]]:
        self.obstacle = f"the forward reaches {where}, {what}"
        return ()


_WRAPPERS: tuple[type, ...] = (
    *(types.MethodType, types.BuiltinMethodType, types.MethodWrapperType, functools.partial, functools.partialmethod),
    *(property, staticmethod, classmethod, functools.cached_property, type(functools.lru_cache(len))),
)

_HELD = ("__self__", "__func__", "__wrapped__", "func", "args", "keywords", "fget", "fset")
"""Where such an object holds others."""

_MAKING = frozenset({"__init__", "__new__", "__init_subclass__", "__class_getitem__", "__post_init__", "__del__"})
"""Special functions that a forward calls only where it makes an object."""

_UNCALLED = frozenset(
    f"__{name}__"
    for name in (
        *("getstate", "setstate", "reduce", "reduce_ex", "copy", "deepcopy", "getnewargs", "getnewargs_ex", "sizeof"),
        *("repr", "str", "format", "dir", "subclasshook", "instancecheck", "subclasscheck", "prepare", "mro_entries"),
    )
)
"""Special functions that save, copy or print an object: read only where the code names them."""


def global_hooks() -> list[Any]:
    """Return the hooks that PyTorch calls in each forward of any module."""
    module: Any = sys.modules["torch.nn.modules.module"]
    return [each for name, each in vars(module).items() if name.startswith("_global_") and "hooks" in name]


def _trusted(module: str | None) -> bool:
    return str(module).partition(".")[0] in _TRUSTED


def _contents(value: Any) -> Iterator[tuple[Any, Any]] | None:
    """The items of a container of a known kind, with their keys; None for anything else."""
    if isinstance(value, dict):
        return iter([*dict.items(value), *((None, key) for key in dict.keys(value) if not isinstance(key, _FIXED))])
    kinds: tuple[Any, ...] = (list, tuple, set, frozenset, collections.deque)
    kind = next((kind for kind in kinds if isinstance(value, kind)), None)
    return None if kind is None else iter(list(enumerate(kind.__iter__(value))))


def _hides_state(value: Any, *, has_attributes: bool) -> bool:
    """Whether an object may have a state that stands in no attribute: classes that are written in C may."""
    kind = type(value)
    if keep(value) is not None:
        return False
    written_in_c = next(each for each in kind.__mro__ if not each.__flags__ & _HEAP)
    if written_in_c in (object, types.SimpleNamespace) or issubclass(written_in_c, BaseException):
        return not (has_attributes or slots(kind) or kind.__basicsize__ == object.__basicsize__)
    return True


def modes_active() -> bool:
    """Whether a mode sees every operation, as one that counts them does; that of a default device keeps nothing."""
    length = getattr(torch._C, "_len_torch_dispatch_stack", int)
    functions = getattr(torch._C, "_len_torch_function_stack", int)
    get = getattr(torch._C, "_get_function_stack_at", None)
    others = [get(i) for i in range(functions())] if get is not None else []
    return length() > 0 or any(type(mode).__name__ != "DeviceContext" for mode in others)


_HEAP = 1 << 9
"""The flag of classes that are made while Python runs, as all that are written in Python."""


def _unwritten(value: Any) -> bool:
    """Whether an object of a package that is not read has no state, or one that no forward writes."""
    module = type(value).__module__
    if isinstance(value, nn.Module):
        return False
    if module.startswith(_UNWRITTEN):
        return True
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, (numpy.generic, numpy.dtype, numpy.ufunc))


_UNWRITTEN = (
    "bnmonitor",
    "torch._ops",
    "torch._C._distributed",
    "torch.cuda",
    "torch.distributed",
    "torch.utils.hooks",
)
