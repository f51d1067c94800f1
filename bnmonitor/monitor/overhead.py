"""The part of the training's time that bnmonitor takes, and whether that is more than it may take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

ALLOWANCE = 10.0
"""Seconds that the monitor may take in any case: a short training is checked and sampled as the user asked."""


class Overhead:
    """Measures the monitor's own time while it runs; a context manager, which may be entered again inside.

    Args:
        limit: The part of the training's time that the monitor may take; None: any.
        in_hooks: Returns the seconds spent in hooks within the forwards, so far.
        clock: Returns seconds; what else is done with them does not matter.
    """

    def __init__(
        self, limit: float | None, in_hooks: Callable[[], float], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.limit, self.clock = limit, clock
        self._in_hooks = in_hooks
        self._began: float | None = None
        self._before = 0.0
        self._own = 0.0
        self._depth = 0
        self._entered = 0.0

    def begin(self) -> None:
        """The training begins, or goes on."""
        if self._began is None:
            self._began = self.clock()

    def end(self) -> None:
        """The training has ended; time that passes from now on does not count."""
        self._before, self._began = self.elapsed, None

    def __enter__(self) -> None:
        self._depth += 1
        if self._depth == 1:
            self._entered = self.clock()

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._own += self.clock() - self._entered

    @property
    def elapsed(self) -> float:
        """Seconds of the training so far."""
        return self._before + (0.0 if self._began is None else self.clock() - self._began)

    @property
    def own(self) -> float:
        """Seconds that the monitor took so far."""
        return self._own + (self.clock() - self._entered if self._depth else 0.0) + self._in_hooks()

    @property
    def share(self) -> float:
        """The part of the training's time that the monitor took; NaN before the training."""
        elapsed = self.elapsed
        return min(1.0, self.own / elapsed) if elapsed > 0 else math.nan

    @property
    def exceeded(self) -> bool:
        """Whether the monitor has taken more than it may: then it checks and samples less often."""
        return self.limit is not None and self.own > ALLOWANCE + self.limit * self.elapsed
