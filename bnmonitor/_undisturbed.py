"""Puts the state of the process back that other packages change when they are imported or called."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from bnmonitor._settings import put_back, settings

_NOTHING = nullcontext()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Run code of other packages, and put the random states and the settings of the process back afterwards.

    rich draws from Python's ``random`` when it is imported, and so may every logger: a training that draws from it
    would get other numbers than without bnmonitor. The states are those of ``random``, NumPy and PyTorch; of CUDA that
    of the current device. The settings are those of :mod:`bnmonitor._settings`, such as signal handlers, the locale,
    warning filters, and PyTorch's default dtype and number of threads.
    """
    python, numpy, torch = random.getstate(), sys.modules.get("numpy.random"), sys.modules.get("torch")
    drawn = None if numpy is None else numpy.get_state()
    state, cuda = (None, None) if torch is None else _of_torch(torch)
    before = settings()
    try:
        yield
    finally:
        put_back(before)
        random.setstate(python)
        if numpy is not None:
            numpy.set_state(drawn)
        if torch is not None:
            torch.set_rng_state(state)
            if cuda is not None:
                torch.cuda.set_rng_state(cuda)


def _of_torch(torch: Any) -> tuple[Any, Any]:
    ready = torch.cuda.is_available() and torch.cuda.is_initialized()
    cuda = torch.cuda.get_rng_state() if ready and not torch.cuda.is_current_stream_capturing() else None
    return torch.get_rng_state(), cuda


def single_precision() -> AbstractContextManager[None]:
    """Compute in single precision at least, where the default dtype of the training is half precision."""
    torch: Any = sys.modules["torch"]
    before = torch.get_default_dtype()
    return _NOTHING if before.itemsize >= 4 else _instead_of(before, torch)


@contextmanager
def _instead_of(before: Any, torch: Any) -> Iterator[None]:
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
