"""Runs the monitor's own computations on the thread that calls it."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch


class _OpenMP(NamedTuple):
    """Two functions of the OpenMP runtime that PyTorch uses; what they set holds for the calling thread alone."""

    get_max_threads: Any
    set_num_threads: Any


class SingleThreaded:
    """A context manager that keeps PyTorch's operations on the calling thread; it may be entered again inside.

    The monitor's operations are small: to wake the worker threads of the training costs more than they save, and where
    others need the processor, such as the workers of a data loader, a matrix product of a tenth of a millisecond waits
    for ten. Unlike ``torch.set_num_threads``, which changes the whole process and drops what oneDNN has prepared, this
    sets the number of the calling thread, and sets it back. It does nothing where PyTorch does not use OpenMP.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._before = 1

    def __enter__(self) -> None:
        self._depth += 1
        openmp = _runtime()
        if self._depth == 1 and openmp is not None:
            self._before = openmp.get_max_threads()
            openmp.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        openmp = _runtime()
        if not self._depth and openmp is not None:
            openmp.set_num_threads(self._before)


@cache
def _runtime() -> _OpenMP | None:
    """The runtime whose number of threads PyTorch obeys; None if there is none."""
    for library in _libraries():
        found = _OpenMP(getattr(library, "omp_get_max_threads", None), getattr(library, "omp_set_num_threads", None))
        if all(found) and _obeyed(found):
            return found
    return None


def _libraries() -> Iterator[ctypes.CDLL]:
    """What may be that runtime: PyTorch makes it visible in the whole process, or brings a file."""
    directory = Path(torch.__file__).parent / "lib"
    files = [str(file) for kind in ("libgomp", "libomp", "libiomp") for file in sorted(directory.glob(f"{kind}*"))]
    loaded = ctypes.DEFAULT_MODE | getattr(os, "RTLD_NOLOAD", 0)  # a second runtime would help nobody
    for name in (*files, *([] if sys.platform == "win32" else [None])):
        try:
            yield ctypes.CDLL(name, mode=loaded)
        except OSError:
            continue


def _obeyed(openmp: _OpenMP) -> bool:
    """Whether PyTorch has as many threads as are set, and as before once that is set again."""
    before, other = torch.get_num_threads(), 1 if torch.get_num_threads() > 1 else 2
    if openmp.get_max_threads() != before:
        return False
    openmp.set_num_threads(other)
    try:
        obeyed = torch.get_num_threads() == other
    finally:
        openmp.set_num_threads(before)
    return obeyed and torch.get_num_threads() == before
