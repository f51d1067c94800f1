"""What every forward hook of bnmonitor keeps to: it is inert on copies, under a compiler and in a recomputation."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

_graph_task: Callable[[], int] | None = getattr(torch._C, "_current_graph_task_id", None)


def recomputing() -> bool:
    """Whether a backward runs: a forward within it is a checkpoint's, of a batch that was seen before."""
    return _graph_task is not None and _graph_task() != -1


class Hook:
    """A forward hook on one module; a copy of the module gets an inert one."""

    def __init__(self, module: nn.Module, call: Callable[[nn.Module, tuple[Any, ...], Any], None]) -> None:
        self._module, self._call = module, call

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Pass the call on if it is the watched module's own, and real."""
        if module is self._module and not torch.compiler.is_compiling():
            self._call(module, args, output)

    def __reduce__(self) -> tuple[Any, ...]:
        # Copied or pickled, it becomes a function of the standard library that takes anything and does nothing: a
        # model that is saved while it is watched loads where bnmonitor is not installed.
        return getattr, (nullcontext(), "__exit__")
