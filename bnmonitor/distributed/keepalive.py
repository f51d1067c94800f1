"""Keeps objects alive for as long as the process lives, past the end of the interpreter."""

from __future__ import annotations

import ctypes
from typing import Any


class KeptAlive:
    """A reference that the interpreter does not drop at its end.

    A process group waits for its collectives when its last reference goes, at the end of the interpreter as well. If
    another process never joins one, the process would not end.

    Args:
        value: What is kept alive, until :meth:`release`.
    """

    def __init__(self, value: Any) -> None:
        self._held = ctypes.py_object(value)
        ctypes.pythonapi.Py_IncRef(self._held)

    def release(self) -> None:
        """Give the reference up; to be called once."""
        ctypes.pythonapi.Py_DecRef(self._held)
