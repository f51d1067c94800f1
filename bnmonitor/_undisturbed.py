"""Puts the state of the process back that other packages change when they are imported or called."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any


@contextmanager
def undisturbed(*, imports: bool = False) -> Iterator[None]:
    """Run code of other packages, and put the random states of the training back afterwards.

    rich draws from Python's ``random`` when it is imported, and so may every logger: a training that draws from it
    would get other numbers than without bnmonitor. The states are those of ``random``, NumPy and PyTorch; of CUDA that
    of the current device.

    Args:
        imports: Whether packages are imported here for the first time. Then the warning filters, PyTorch's default
            dtype and its number of threads are put back, too. Not at each call: a change of the filters makes Python
            show all warnings anew.
    """
    python, numpy, torch = random.getstate(), sys.modules.get("numpy.random"), sys.modules.get("torch")
    drawn = None if numpy is None else numpy.get_state()
    state, cuda, settings = (None, None, None) if torch is None else _of_torch(torch)
    try:
        with warnings.catch_warnings() if imports else nullcontext():
            yield
    finally:
        random.setstate(python)
        if numpy is not None:
            numpy.set_state(drawn)
        if torch is not None:
            torch.set_rng_state(state)
            if cuda is not None:
                torch.cuda.set_rng_state(cuda)
            if imports and settings is not None:
                _put_back(torch, *settings)


def _of_torch(torch: Any) -> tuple[Any, Any, Any]:
    ready = torch.cuda.is_available() and torch.cuda.is_initialized()
    cuda = torch.cuda.get_rng_state() if ready and not torch.cuda.is_current_stream_capturing() else None
    return torch.get_rng_state(), cuda, (torch.get_default_dtype(), torch.get_num_threads())


def _put_back(torch: Any, dtype: Any, threads: int) -> None:
    if torch.get_default_dtype() != dtype:
        torch.set_default_dtype(dtype)
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@contextmanager
def single_precision() -> Iterator[None]:
    """Compute in single precision at least, where the default dtype of the training is half precision."""
    torch: Any = sys.modules["torch"]
    before = torch.get_default_dtype()
    if before.itemsize >= 4:
        yield
        return
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
