"""The monitors of this process, for what watches it from outside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar
from weakref import WeakSet


class Watching(Protocol):
    """What is started and closed."""

    @property
    def running(self) -> bool:
        """Whether it was started and not yet closed."""


T = TypeVar("T", bound=Watching)


class Running(Generic[T]):
    """The monitors of this process that were started and not yet closed."""

    def __init__(self) -> None:
        self._known: WeakSet[T] = WeakSet()
        self._kept: list[list[T]] = []
        self.started = 0
        """How many were started so far."""

    def note(self, monitor: T) -> None:
        """Note that a monitor was started."""
        self._known.add(monitor)
        self.started += 1
        for kept in self._kept:
            if all(monitor is not each for each in kept):
                kept.append(monitor)

    @contextmanager
    def kept(self) -> Iterator[list[T]]:
        """Keep every monitor that is started within, also those that are closed and forgotten by whoever made them."""
        found: list[T] = []
        self._kept.append(found)
        try:
            yield found
        finally:
            self._kept = [each for each in self._kept if each is not found]

    def __iter__(self) -> Iterator[T]:
        return iter([monitor for monitor in self._known if monitor.running])
