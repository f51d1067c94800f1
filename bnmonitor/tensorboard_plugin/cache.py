"""Keeps what was read last, within bounds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any

import numpy as np


class Cache:
    """Values by key, each good for one state of what it was made of.

    Requests come from many threads: each value is made once, and while it is made other keys are served.

    Args:
        most: Bytes of arrays to keep; the value used last is kept whatever its size.
    """

    def __init__(self, most: int = 1 << 30) -> None:
        self._most = most
        self._lock = Lock()
        self._making: dict[Hashable, Lock] = {}
        self._kept: OrderedDict[Hashable, tuple[Hashable, Any, int]] = OrderedDict()

    def get(self, key: Hashable, state: Hashable, make: Callable[[], Any]) -> Any:
        """Return the value of a key, made anew if the state is another than when it was made."""
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
                self._kept[key] = (state, value, _bytes(value))
                self._kept.move_to_end(key)
                while len(self._kept) > 1 and sum(size for _, _, size in self._kept.values()) > self._most:
                    gone, _ = self._kept.popitem(last=False)
                    self._making.pop(gone, None)
            return value


def _bytes(value: Any) -> int:
    return (
        1000 + sum(each.nbytes for each in vars(value).values() if isinstance(each, np.ndarray))
        if hasattr(value, "__dict__")
        else 1000
    )
