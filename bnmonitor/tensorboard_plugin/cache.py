"""A cache of the values that were read last, bounded by their bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any

import numpy as np


class Cache:
    """Values by key, each valid for one state of its sources.

    Many threads send requests: each value is made once, and other keys are served meanwhile.

    Args:
        most: Bytes of arrays and of texts to keep; the value used last is kept whatever its size.
    """

    def __init__(self, most: int = 1 << 30) -> None:
        self._most = most
        self._lock = Lock()
        self._making: dict[Hashable, Lock] = {}
        self._kept: OrderedDict[Hashable, tuple[Hashable, Any, int]] = OrderedDict()

    def holds(self, key: Hashable, state: Hashable) -> bool:
        """Return whether the value of a key is kept for a state."""
        with self._lock:
            found = self._kept.get(key)
            return found is not None and found[0] == state

    def get(self, key: Hashable, state: Hashable, make: Callable[[], Any]) -> Any:
        """Return the value of a key; make it again if the state changed."""
        with self._lock:
            making = self._making.setdefault(key, Lock())
        with making:
            with self._lock:
                found = self._kept.get(key)
                if found is not None and found[0] == state:
                    self._kept.move_to_end(key)
                    return found[1]
            value = make()
            with self._lock:
                self._kept[key] = (state, value, _bytes(value) + (len(state) if isinstance(state, bytes) else 0))
                self._kept.move_to_end(key)
                while len(self._kept) > 1 and sum(size for _, _, size in self._kept.values()) > self._most:
                    gone, _ = self._kept.popitem(last=False)
                    self._making.pop(gone, None)
            return value


def _bytes(value: Any) -> int:
    if isinstance(value, np.ndarray):
        return 1000 + value.nbytes
    if isinstance(value, bytes):
        return 1000 + len(value)
    if isinstance(value, tuple):
        return sum(map(_bytes, value))
    return (
        1000 + sum(each.nbytes for each in vars(value).values() if isinstance(each, np.ndarray))
        if hasattr(value, "__dict__")
        else 1000
    )
