"""Takes bnmonitor's hooks off a model while TorchScript compiles it: it refuses modules with hooks in Python."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from torch import nn

from bnmonitor.layers.oddities import scripted

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def hide_from_scripting(ours: Callable[[Any], bool]) -> None:
    """Let ``torch.jit.script`` and ``torch.jit.trace`` see no hook of bnmonitor from now on.

    TorchScript has no event for this, so its one function that every compilation goes through is wrapped, once, when
    bnmonitor places its first hook. For a model without such hooks it does what it always did.

    Args:
        ours: Whether a hook is bnmonitor's, or the inert copy of one.
    """
    recursive: Any = sys.modules.get("torch.jit._recursive")
    create = getattr(recursive, "create_script_module", None)
    if create is None or hasattr(create, "_bnmonitor"):
        return

    @wraps(create)
    def without_hooks(nn_module: Any, *args: Any, **kwargs: Any) -> Any:
        with _taken_off(nn_module, ours):
            return create(nn_module, *args, **kwargs)

    without_hooks._bnmonitor = True  # type: ignore[attr-defined]
    recursive.create_script_module = without_hooks


@contextmanager
def _taken_off(model: Any, ours: Callable[[Any], bool]) -> Iterator[None]:
    """Take the hooks off all parts of a model, and put them back in their places."""
    taken: list[tuple[dict[int, Any], list[tuple[int, Any]]]] = []
    for module in model.modules() if isinstance(model, nn.Module) and not scripted(model) else ():
        for name in _HOOKS:
            hooks = vars(module).get(name)
            if hooks and any(map(ours, hooks.values())):
                every = list(hooks.items())
                for key, hook in every:
                    if ours(hook):
                        del hooks[key]
                taken.append((hooks, every))
    try:
        yield
    finally:
        for hooks, every in taken:
            new = [item for item in hooks.items() if item not in every]
            hooks.clear()
            hooks.update([*every, *new])
