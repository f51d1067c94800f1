"""The list of the runs, made before it is asked for."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from threading import Thread
from typing import Any

logger = logging.getLogger(__name__)

FRESH = 1.0
"""Seconds for which a list counts as that of now."""

Listed = Mapping[str, Mapping[str, Any]]


class ListedAhead:
    """Lists the runs in the background; each list is given out once.

    Args:
        make: Lists the runs.
    """

    def __init__(self, make: Callable[[], Listed]) -> None:
        self._make = make
        self._began: tuple[float, Future[Listed]] | None = None

    def start(self) -> None:
        """Begin to list the runs."""
        found: Future[Listed] = Future()
        self._began = (time.monotonic(), found)
        Thread(target=self._run, args=(found,), name="bnmonitor-list", daemon=True).start()

    def take(self) -> Listed | None:
        """Return the list that was begun last; None if there is none that is of now, or it could not be made."""
        began, self._began = self._began, None
        if began is None or time.monotonic() - began[0] > FRESH:
            return None
        return began[1].result()

    def _run(self, found: Future[Any]) -> None:
        try:
            found.set_result(self._make())
        except Exception:  # whoever asks for it next asks again, and says what is wrong
            logger.debug("the runs could not be listed ahead", exc_info=True)
            found.set_result(None)
