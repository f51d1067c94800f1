"""What a writer knows of the other writers of its directory, and a clock for its records that never goes back."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Sequence
from pathlib import Path

_WRITER = re.compile(r"tfevents\.\d+\.(.+?)\.(\d+)\.\d+")
"""The parts of an event file's name that name its process: host and process id."""


class WriterSession:
    """One stretch of writing into some directories, from a sink's opening to its closing.

    Sessions are numbered by the event files that are there when they begin. The number gives readers the order of
    writing, which neither clocks nor file names do once a run is resumed on a machine whose clock is behind.

    Args:
        directories: The directories that the session writes into, after its event files were made.
    """

    def __init__(self, directories: Sequence[str]) -> None:
        self._there = {directory: _event_files(directory) for directory in directories}
        self.number = max([1, *map(len, self._there.values())])
        self._last = self._elapsed = float("-inf")

    def now(self) -> float:
        """Return the time, in seconds since 1970; where the clock was set back, count on from the time before."""
        elapsed = time.monotonic()
        now = time.time()
        if now < self._last:
            now = self._last + (elapsed - self._elapsed)
        self._last, self._elapsed = now, elapsed
        return now

    def intruder(self) -> str:
        """Return a sentence on a process that began to write into a directory of this session; empty if none did."""
        for directory, before in self._there.items():
            for name in sorted(_event_files(directory) - before):
                self._there[directory] = before | {name}
                writer = _WRITER.search(name)
                if writer and (writer[1], writer[2]) != (socket.gethostname(), str(os.getpid())):
                    return (
                        f"process {writer[2]} on {writer[1]} writes into {directory} as well: "
                        "the readers show the session that began last; give each process a directory of its own"
                    )
        return ""


def _event_files(directory: str) -> set[str]:
    """Return the names of the event files in a directory; none if it is not a local one."""
    try:
        return {path.name for path in Path(directory).iterdir() if "tfevents" in path.name}
    except OSError:
        return set()
