"""What each run in a directory said last, kept between sessions, so that hundreds of runs are listed at once."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bnmonitor._version import __version__
from bnmonitor.history.entry import Entry
from bnmonitor.history.entry import read as read_entry
from bnmonitor.runs.data import RunData

Stamp = list[list[Any]]
"""Name, size and time of change of each event file of a run."""


def entries(
    path: Path | None, files: Mapping[str, Sequence[Path]], read: Callable[[str], RunData | None]
) -> dict[str, Entry]:
    """Return an entry for each run that has a history, by name; only runs whose files have changed are read.

    Args:
        path: The directory that was opened; None: nothing is kept of it.
        files: The event files of each directory below it, by name.
        read: Reads a run; None if it has no history.
    """
    kept = {} if path is None else _load(path)
    found: dict[str, Entry | None] = {}
    stamps = {name: _stamp(mine) for name, mine in files.items()}
    for name, stamp in stamps.items():
        known = kept.get(name)
        if known is not None and known[0] == stamp:
            found[name] = known[1]
        else:
            found[name] = (None if path is None else read_entry(path / name, files[name])) or _entry_of(read(name))
    fresh = {name: (stamps[name], entry) for name, entry in found.items()}
    if path is not None and fresh != kept:
        _save(path, fresh)
    return {name: entry for name, entry in found.items() if entry is not None}


def _entry_of(run: RunData | None) -> Entry | None:
    if run is None:
        return None
    last_step = int(run.steps[-1]) if len(run.steps) else -1
    loss = float(run.loss[-1]) if len(run.loss) else math.nan
    return Entry.of(run.incidents, len(run.layers), last_step, loss)


def _stamp(files: Sequence[Path]) -> Stamp:
    found: Stamp = []
    for file in files:
        with suppress(OSError):
            about = file.stat()
            found.append([file.name, about.st_size, about.st_mtime_ns])
    return found


def _place(path: Path) -> Path:
    """The file of a directory's index, among what a user's programs may keep."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "bnmonitor" / f"runs-{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}.json"


def _load(path: Path) -> dict[str, tuple[Stamp, Entry | None]]:
    """What was kept; nothing if that is damaged, or of another version."""
    try:
        kept = json.loads(_place(path).read_text(encoding="utf-8"))
        if kept["version"] != __version__:
            return {}
        return {
            name: (stamp, None if about is None else Entry(**about)) for name, (stamp, about) in kept["runs"].items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError):
        return {}


def _save(path: Path, found: Mapping[str, tuple[Stamp, Entry | None]]) -> None:
    """Keep entries for the next time; without a place for that, each time is the first."""
    plain = {name: (stamp, None if entry is None else asdict(entry)) for name, (stamp, entry) in found.items()}
    with suppress(OSError, RuntimeError):
        place = _place(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        file, name = tempfile.mkstemp(dir=place.parent, suffix=".tmp")
        try:
            with os.fdopen(file, "w", encoding="utf-8") as out:
                json.dump({"version": __version__, "runs": plain}, out)
            Path(name).replace(place)  # another process may read it meanwhile
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
