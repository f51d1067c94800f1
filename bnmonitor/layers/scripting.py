"""Takes bnmonitor's hooks off a model while PyTorch does to it what hooks would hinder, or what would move them.

TorchScript refuses modules with hooks in Python. Fusing moves them to the fused module, with other arguments.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from torch import nn

from bnmonitor.layers.oddities import scripted

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")

_FLAGS = ("_with_kwargs", "_always_called")
"""Ends of the names of the registries that say how a hook is called."""

_FUNCTIONS = (("torch.jit._recursive", "create_script_module"), ("torch.ao.quantization.fuse_modules", "_fuse_modules"))
"""Functions of PyTorch, each with the model as the first argument, that every such call goes through."""


def hide_from_scripting(ours: Callable[[Any], bool]) -> None:
    """Let ``torch.jit.script``, ``torch.jit.trace`` and ``fuse_modules`` see no hook of bnmonitor from now on.

    PyTorch has no event for this, so the function that every such call goes through is wrapped, once, when bnmonitor
    places a hook. For a model without such hooks it does what it always did.

    Args:
        ours: Whether a hook is bnmonitor's, or the inert copy of one.
    """
    for module, name in _FUNCTIONS:
        _wrap(sys.modules.get(module), name, ours)


def _wrap(module: Any, name: str, ours: Callable[[Any], bool]) -> None:
    function = getattr(module, name, None)
    if function is None or hasattr(function, "_bnmonitor"):
        return

    @wraps(function)
    def without_hooks(model: Any, *args: Any, **kwargs: Any) -> Any:
        with _taken_off(model, ours):
            return function(model, *args, **kwargs)

    without_hooks._bnmonitor = True  # type: ignore[attr-defined]
    setattr(module, name, without_hooks)


def drop_hooks(module: nn.Module, ours: Callable[[Any], bool]) -> None:
    """Remove the inert hooks of a copied module."""
    own = vars(module)
    for name in _HOOKS:
        hooks = own.get(name) or {}
        for key in [key for key, hook in hooks.items() if ours(hook)]:
            del hooks[key]
            for flags in _FLAGS:
                own.get(name + flags, {}).pop(key, None)


@contextmanager
def _taken_off(model: Any, ours: Callable[[Any], bool]) -> Iterator[None]:
    """Take the hooks off all parts of a model, and put them back in their places."""
    taken: list[tuple[dict[int, Any], list[tuple[int, Any]]]] = []
    for module in model.modules() if isinstance(model, nn.Module) and not scripted(model) else ():
        own = vars(module)
        for name in _HOOKS:
            hooks = own.get(name)
            mine = {key for key, hook in (hooks or {}).items() if ours(hook)}
            for registry in (hooks, *(own.get(name + flags) for flags in _FLAGS)) if mine else ():
                if registry:
                    taken.append((registry, list(registry.items())))
                    for key in mine & registry.keys():
                        del registry[key]
    try:
        yield
    finally:
        for registry, every in taken:
            known = {key for key, _ in every}
            new = [item for item in registry.items() if item[0] not in known]
            registry.clear()
            registry.update([*every, *new])
