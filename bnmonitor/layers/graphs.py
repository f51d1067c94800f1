"""Whether PyTorch records the calls that are made now: what bnmonitor computed would become a part of the result."""

from __future__ import annotations

import sys
from typing import Any

import torch

_RECORDERS = ("torch.fx", "torch._subclasses", "torch.export", "torch._export")

_modes: Any = getattr(torch._C, "_len_torch_dispatch_stack", int)
_mode_at: Any = getattr(torch._C, "_get_dispatch_stack_at", None)


def becomes_graph() -> bool:
    """Whether a graph is made of the calls, by ``torch.fx``, ``make_fx``, ``torch.export`` or a CUDA graph."""
    tracer: Any = sys.modules.get("torch.fx._symbolic_trace")
    if tracer is not None and getattr(tracer, "_is_fx_tracing_flag", False):
        return True
    recorders = (type(_mode_at(i)).__module__ for i in range(_modes())) if _mode_at is not None else ()
    if any(module.startswith(_RECORDERS) for module in recorders) or _infra_modes():
        return True
    return captures()


def captures() -> bool:
    """Whether a CUDA graph is captured: it records operations, and what asks whether one is complete ends it."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()  # type: ignore[no-untyped-call]


def _infra_modes() -> bool:
    """Whether a mode that makes graphs is active where PyTorch keeps those apart from the modes of users."""
    kinds, get = getattr(torch._C, "_TorchDispatchModeKey", None), getattr(torch._C, "_get_dispatch_mode", None)
    if kinds is None or get is None:
        return False
    return any(get(key) is not None for name in ("FAKE", "PROXY", "FUNCTIONAL") if (key := getattr(kinds, name, None)))
