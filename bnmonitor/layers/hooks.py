"""Forward hooks that never end a forward."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from time import perf_counter
from typing import Any
from weakref import WeakSet, ref

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from bnmonitor.layers.graphs import becomes_graph
from bnmonitor.layers.oddities import scripted
from bnmonitor.layers.scripting import drop_hooks, hide_from_scripting

logger = logging.getLogger("bnmonitor")

Call = Callable[[nn.Module, Any, Any], None]
"""What a hook calls: it gets the module, the arguments, and the output or the keyword arguments."""

_graph_task: Callable[[], int] | None = getattr(torch._C, "_current_graph_task_id", None)

_is_tracing: Callable[[], bool] = getattr(torch._C, "_is_tracing", bool)

_only: ContextVar[Hooks | None] = ContextVar("bnmonitor_only", default=None)
"""The hooks that alone are called in this thread; None: all are."""


_PLACES = ("_forward_pre_hooks", "_forward_hooks")

_in_place: WeakSet[Hooks] = WeakSet()
"""Those with hooks in place that a compilation removes."""

_guarded: dict[tuple[int, str], _Guarded] = {}
"""Modules whose hooks a compiled graph may guard, by ``id(module)`` and the kind of hook."""


class Hooks:
    """Hooks that are placed together, removed together, and removed when a compilation begins.

    A module that TorchScript has compiled takes none, and gets none.

    ``torch.compile`` guards what it traces by the number of hooks of a kind on a module, unless there are none: a model
    that is traced with hooks in place is compiled again once they are gone, and one that is traced beside the hooks of
    other code is compiled again once there are more, until it is given up and runs uncompiled. So a module that had
    such hooks when a compilation began, and was not seen to run by itself, is given no more.

    Args:
        on_compilation: Called after a compilation has removed the hooks.
        outlast_compilation: Keep the hooks when a compilation begins.
    """

    def __init__(self, on_compilation: Callable[[], None] | None = None, *, outlast_compilation: bool = False) -> None:
        self._on_compilation = on_compilation
        self._outlast = outlast_compilation
        self._handles: dict[int, list[RemovableHandle]] = {}
        self._modules: dict[int, nn.Module] = {}
        self._ran: set[int] = set()
        self.seconds = 0.0
        """Time spent in the functions that were called."""
        self.refused = False
        """Whether a module was given no hook since the last removal, as a compiled graph may guard those it has."""
        self._placing: nn.Module | None = None
        self._unsubscribe: Callable[[], None] | None = None

    @property
    def placed(self) -> bool:
        """Whether a hook is in place."""
        return bool(self._handles)

    def on_call(self, module: nn.Module, call: Call) -> None:
        """Call a function before each forward of a module, with the module, its arguments and keyword arguments."""
        if self._may_place(module, "_forward_pre_hooks"):
            self._place(module, module.register_forward_pre_hook, _Hook(self, module, call), with_kwargs=True)

    def on_forward(self, module: nn.Module, call: Call, *, always: bool = False) -> None:
        """Call a function after each forward of a module, with the module, its arguments and its output.

        Args:
            module: The module.
            call: The function.
            always: Whether to call it after a forward that raised, too.
        """
        if self._may_place(module, "_forward_hooks"):
            self._place(module, module.register_forward_hook, _Hook(self, module, call), always_call=always)

    def remove(self) -> None:
        """Remove every hook."""
        for module in list(self._handles):
            self._remove(module)
        self._ran.clear()
        self.refused = False
        _in_place.discard(self)
        if self._placing is not None:  # Ctrl-C came between placing the hook and noting that
            _sweep(self._placing, self)
            self._placing = None
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None

    def remove_from(self, module: nn.Module) -> None:
        """Remove the hooks of one module."""
        self._remove(id(module))

    @contextmanager
    def only_mine(self) -> Iterator[None]:
        """Run forwards of bnmonitor itself in this thread: no other hook of bnmonitor is called, in any monitor.

        The hooks of other threads are called as ever. An error in one of these hooks is raised, not logged.
        """
        token = _only.set(self)
        try:
            yield
        finally:
            _only.reset(token)

    def _may_place(self, module: nn.Module, kind: str) -> bool:
        if scripted(module):
            return False
        guarded = _guarded.get((id(module), kind)) if _guarded else None
        if guarded is None or not guarded.holds(module):
            return True
        self.refused = True
        return False

    def _place(self, module: nn.Module, register: Callable[..., RemovableHandle], hook: _Hook, **how: bool) -> None:
        hide_from_scripting(_is_ours)
        handles = self._handles.setdefault(id(module), [])
        self._modules[id(module)] = module
        self._placing = module
        handles.append(register(hook, **how))
        self._placing = None
        if self._unsubscribe is None and not self._outlast:
            self._unsubscribe = when_compiling(self._compilation_begins)
            _in_place.add(self)

    def _remove(self, key: int) -> None:
        for handle in self._handles.get(key, ()):
            handle.remove()
        module = self._modules.pop(key, None)
        if self._outlast and module is not None and _guarded:  # what is traced from now on has no hook to guard
            for kind in _PLACES:
                if not any(map(_stays, getattr(module, kind).values())):
                    _guarded.pop((key, kind), None)
        self._handles.pop(key, None)  # last: after Ctrl-C the next call removes them

    def ran(self, module: nn.Module) -> None:
        """Note that a module runs by itself: no compiled graph calls a hook."""
        self._ran.add(id(module))
        if _guarded:
            for kind in _PLACES:
                guarded = _guarded.get((id(module), kind))
                if guarded is not None:
                    guarded.lift()

    def _guard(self) -> None:
        """Note the modules that have hooks of others, which the graph that is compiled now may guard."""
        for key, module in self._modules.items():
            for kind in _PLACES:
                if key not in self._ran and any(map(_stays, getattr(module, kind).values())):
                    known = _guarded.get((key, kind))
                    if known is None or known.module() is not module:
                        _guarded[key, kind] = _Guarded(module)
                    else:
                        known.again()

    def _compilation_begins(self) -> None:
        for hooks in tuple(_in_place):  # before the first of them removes its own
            hooks._guard()
        self.remove()
        if self._on_compilation is not None:
            self._on_compilation()


class _Guarded:
    """A module whose hooks a compiled graph may guard; one that was seen to run by itself is trusted once."""

    def __init__(self, module: nn.Module) -> None:
        self.module = ref(module)
        self._lifted = self._final = False

    def holds(self, module: nn.Module) -> bool:
        """Whether the module, which may have the identity of one that is gone, gets no hook."""
        return self.module() is module and not self._lifted

    def lift(self) -> None:
        """The module was seen to run by itself."""
        self._lifted = not self._final

    def again(self) -> None:
        """Another compilation began while it had hooks."""
        self._final |= self._lifted
        self._lifted = False


class _Hook:
    """A forward hook on one module; a deep copy of the module has none, and a pickled one has an inert function."""

    def __init__(self, hooks: Hooks, module: nn.Module, call: Call) -> None:
        self._hooks, self._module, self._call = hooks, module, call

    def __call__(self, module: nn.Module, args: Any, output: Any = None) -> None:
        """Pass the call on if the module is the watched one, and the forward is the training's own.

        This runs within the model's forward. An error is logged, the hook does nothing from then on, and the training
        goes on.
        """
        # The compiler must see its own test first: it cannot trace what follows.
        if module is not self._module or torch.compiler.is_compiling() or _is_tracing():
            return
        only = _only.get()
        if only is not None and only is not self._hooks:
            return
        try:
            if becomes_graph():
                return
            self._hooks.ran(module)
            began = perf_counter()
            self._call(module, args, output)
            self._hooks.seconds += perf_counter() - began
        except Exception as error:
            if only is not None:
                raise
            self._call = _nothing
            name, kind = type(module).__name__, type(error).__name__
            logger.warning("bnmonitor stopped observing %s after an error: %s: %s", name, kind, error)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copy = memo.get(id(self._module))
        if isinstance(copy, nn.Module):
            last = _Remove(copy)
            memo[id(last)] = last
        return nullcontext().__exit__

    def of(self, hooks: Hooks) -> bool:
        """Whether it was placed with these."""
        return self._hooks is hooks

    @property
    def outlasts(self) -> bool:
        """Whether a compilation leaves it in place."""
        return self._hooks._outlast

    def __reduce__(self) -> tuple[Any, ...]:
        # A copied or pickled hook becomes a function of the standard library that takes anything and does nothing: a
        # model that is saved while it is watched loads where bnmonitor is not installed.
        return getattr, (nullcontext(), "__exit__")


class _Remove:
    """Removes the inert hooks of a copied module at the end of the copy, when nothing holds what was known in it."""

    def __init__(self, copy: nn.Module) -> None:
        self._copy = copy

    def __del__(self) -> None:
        drop_hooks(self._copy, _is_ours)


def _is_ours(hook: Any) -> bool:
    """Whether a hook is one of bnmonitor's, or what a copy of a model has in its place."""
    return isinstance(hook, _Hook) or getattr(hook, "__func__", None) is nullcontext.__exit__


def _stays(hook: Any) -> bool:
    """Whether a hook is in place while a graph is traced."""
    return not isinstance(hook, _Hook) or hook.outlasts


def _sweep(module: nn.Module, hooks: Hooks) -> None:
    """Remove the hooks of a module that no handle is known of."""
    for kind in _PLACES:
        placed = getattr(module, kind)
        for key in [key for key, hook in placed.items() if isinstance(hook, _Hook) and hook.of(hooks)]:
            for registry in (
                placed,
                *(getattr(module, f"{kind}_{how}", {}) for how in ("with_kwargs", "always_called")),
            ):
                registry.pop(key, None)


def recomputing() -> bool:
    """Whether a backward runs: a forward within it is a checkpoint's, of a batch that has been recorded before."""
    return _graph_task is not None and _graph_task() != -1


def _nothing(module: nn.Module, args: Any, output: Any) -> None:
    pass


def when_compiling(call: Callable[[], None]) -> Callable[[], None]:
    """Call a function whenever a compilation begins, before anything is traced; return the function that ends that.

    The compiler's module is looked up and not imported: an import takes a second, and making an optimizer does it
    anyway.
    """
    handler: Any = getattr(sys.modules.get("torch._dynamo.callback"), "callback_handler", None)
    if getattr(handler, "start_callbacks", None) is None:
        return lambda: None
    subscribed = True

    def begins(*_: Any) -> None:
        if subscribed:
            call()

    def unsubscribe() -> None:
        nonlocal subscribed
        subscribed = False
        # A new list: the compiler may be going through the old one, and would skip the function after a removed one.
        handler.start_callbacks = [each for each in handler.start_callbacks if each is not begins]

    handler.start_callbacks.append(begins)
    return unsubscribe
