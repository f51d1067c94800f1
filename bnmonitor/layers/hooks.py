"""Hooks that never end a forward, and how to tell that a module is compiled."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from torch import nn

logger = logging.getLogger("bnmonitor")

_graph_task: Callable[[], int] | None = getattr(torch._C, "_current_graph_task_id", None)


def recomputing() -> bool:
    """Whether a backward runs: a forward within it is a checkpoint's, of a batch that was seen before."""
    return _graph_task is not None and _graph_task() != -1


class Hook:
    """A forward hook on one module; a copy of the module gets an inert one.

    Args:
        module: The module.
        call: What to do.
        own: Whether it is meant for a forward that bnmonitor runs itself; the others do not see that.
    """

    deaf: ClassVar[bool] = False

    def __init__(
        self, module: nn.Module, call: Callable[[nn.Module, tuple[Any, ...], Any], None], *, own: bool = False
    ) -> None:
        self._module, self._call, self._own = module, call, own

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Pass the call on if it is the watched module's own, and real.

        This is within the model's forward: what fails here is told and left alone from then on, and ends no training.
        """
        if module is not self._module or torch.compiler.is_compiling() or (Hook.deaf and not self._own):
            return
        try:
            self._call(module, args, output)
        except Exception as error:
            if self._own:
                raise
            self._call = _nothing
            logger.warning("bnmonitor looks at %s no more: %s: %s", type(module).__name__, type(error).__name__, error)

    def __reduce__(self) -> tuple[Any, ...]:
        # Copied or pickled, it becomes a function of the standard library that takes anything and does nothing: a
        # model that is saved while it is watched loads where bnmonitor is not installed.
        return getattr, (nullcontext(), "__exit__")


def _nothing(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    pass


@contextmanager
def own_forward() -> Iterator[None]:
    """Run a forward that no hook but those made for it sees."""
    before, Hook.deaf = Hook.deaf, True
    try:
        yield
    finally:
        Hook.deaf = before


def is_compiled(model: nn.Module) -> bool:
    """Whether the model or a part of it is known to be compiled; what ``torch.compile`` wrapped later is not."""
    return any(
        type(module).__name__ == "OptimizedModule"
        or getattr(module, "_compiled_call_impl", None) is not None
        or module.__dict__.get("_compiler_ctx") is not None
        for module in model.modules()
    )


def when_compiling(call: Callable[[], None]) -> Callable[[], None]:
    """Call a function whenever a compilation begins, before anything is traced; return what ends that.

    The module is looked up and not imported: that would take a second, and making an optimizer imports it anyway.
    """
    handler = getattr(sys.modules.get("torch._dynamo.callback"), "callback_handler", None)
    callbacks: list[Callable[..., None]] | None = getattr(handler, "start_callbacks", None)
    if callbacks is None:
        return lambda: None

    def begins(*_: Any) -> None:
        call()

    callbacks.append(begins)

    def end() -> None:
        if begins in callbacks:
            callbacks.remove(begins)

    return end
