"""How a script is started so that it is watched: by two environment variables, and else as it always is."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ENTRY = Path(__file__).parent / "entry"
"""On ``PYTHONPATH`` this directory makes each Python that starts look at ``BNMONITOR``."""


def environment(
    given: Mapping[str, str], *, log_dir: Path | None = None, quiet: bool = False, entry: Path = ENTRY
) -> dict[str, str]:
    """Return the environment in which a script, and what it starts, is watched.

    Args:
        given: The environment there is.
        log_dir: The directory for the history; None: one of its own for each start, in ``bnmonitor_runs``.
        quiet: Whether nothing is to be printed.
        entry: The directory that Python looks into when it starts.
    """
    paths = [str(entry), *filter(None, given.get("PYTHONPATH", "").split(os.pathsep))]
    found = {**given, "BNMONITOR": "1", "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
    if log_dir is not None:
        found["BNMONITOR_LOG_DIR"] = str(log_dir.absolute())
    if quiet:
        found["BNMONITOR_QUIET"] = "1"
    return found


def program(command: Sequence[str]) -> list[str]:
    """Return the program to start: a Python file, ``-m module``, ``-c code``, or any other command.

    Raises:
        FileNotFoundError: There is neither such a file nor such a command.
    """
    first = command[0]
    if first in ("-m", "-c") or (Path(first).is_file() and _is_python(Path(first))):
        return [sys.executable, *command]
    found = shutil.which(first)
    if found is None:
        raise FileNotFoundError(f"{first} is neither a file nor a command")
    return [found, *command[1:]]


def _is_python(path: Path) -> bool:
    """Whether a file is for this Python: by its name, or as it could not be started by itself."""
    return path.suffix in (".py", ".pyw", ".pyc") or not os.access(path, os.X_OK)
