"""What can be known of ``torch.compile``: which modules are compiled, how many graphs there are, with what options."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn


def is_compiled(model: nn.Module) -> bool:
    """Whether the model or a part of it is known to be compiled; a later ``torch.compile`` is not known."""
    return any(map(_compiled, model.modules()))


def compiled_parts(models: Iterable[nn.Module]) -> set[int]:
    """Return the modules within those that are known to be compiled, by ``id(module)``."""
    return {id(part) for model in models for m in model.modules() if _compiled(m) for part in m.modules()}


def graphs_compiled() -> int:
    """Return how many graphs ``torch.compile`` has compiled in this process, whatever they belong to."""
    counters: Any = getattr(sys.modules.get("torch._dynamo.utils"), "counters", {})
    return int(counters.get("stats", {}).get("unique_graphs", 0))


def freezes_graphs(models: Iterable[nn.Module] = ()) -> bool:
    """Whether inductor makes constants of the parameters and buffers of what it compiles for inference.

    The option of one compilation does so only where dynamo leaves the parameters in the graph, for which there is a
    setting of the process.

    Args:
        models: Models that may have been compiled with options of their own.
    """
    if getattr(sys.modules.get("torch._inductor.config"), "freezing", False):
        return True
    if not getattr(sys.modules.get("torch._dynamo.config"), "prepare_freezing", False):
        return False
    return any(_compiled(m) and _compiled_to_freeze(m) for model in models for m in model.modules())


def _compiled_to_freeze(module: nn.Module) -> bool:
    """Whether a module was compiled with the option, by the settings that ``torch.compile`` noted in what it made."""
    call = getattr(module, "_compiled_call_impl", None)
    context = module.__dict__.get("_compiler_ctx")  # Lightning's
    made = [getattr(module, "dynamo_ctx", None), context.get("dynamo_ctx") if isinstance(context, dict) else None]
    configs = [getattr(each, "compiler_config", None) for each in made]
    if call is not None and callable(getattr(call, "get_compiler_config", None)):
        configs.append(call.get_compiler_config())
    return any(isinstance(config, Mapping) and bool(config.get("freezing")) for config in configs)


def _compiled(module: nn.Module) -> bool:
    return (
        type(module).__name__ == "OptimizedModule"
        or getattr(module, "_compiled_call_impl", None) is not None
        or module.__dict__.get("_compiler_ctx") is not None
    )
