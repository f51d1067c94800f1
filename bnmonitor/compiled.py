"""What can be seen of torch.compile from outside: whether a model is compiled, and when a compilation begins."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import nn


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
