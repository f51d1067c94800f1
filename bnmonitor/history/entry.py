"""What a run says of itself in a list, in a small file beside its event file, so that a list need not read that."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bnmonitor._text import count
from bnmonitor._version import __version__
from bnmonitor.history.incidents import replay
from bnmonitor.history.schema import BOXES, PLUGIN
from bnmonitor.results import Alert, Incident, still_open, worst_of

ENTRY = BOXES / "entry.json"
_MOST_BEYOND = 64 * 2**20


@dataclass(frozen=True)
class Entry:
    """A run in a list.

    Attributes:
        verdict: One sentence: the worst open incident, how many there are, or that there is none.
        severity: That of its worst open incident; empty without one.
        layers: How many it has.
        last_step: The last logged step; -1 without one.
        loss: The loss at it; None where it is not known.
    """

    verdict: str
    severity: str
    layers: int
    last_step: int
    loss: float | None

    @classmethod
    def of(cls, incidents: Sequence[Incident], layers: int, last_step: int, loss: float) -> Entry:
        """Put together what a run said last; ``last_step`` is -1 and ``loss`` is NaN where there is none."""
        found = still_open(incidents)
        return cls(
            verdict=verdict(incidents, recorded=last_step >= 0),
            severity=str(found[0].severity) if found else "",
            layers=layers,
            last_step=last_step,
            loss=loss if math.isfinite(loss) else None,
        )


def verdict(incidents: Sequence[Incident], *, recorded: bool) -> str:
    """Return one sentence on a run: its worst open incident, how many there are, or that there is none."""
    past = f"; {count(len(incidents), 'incident')} resolved" if incidents else ""
    return worst_of(incidents) or (f"no open incident{past}" if recorded else "nothing recorded")


def write(
    directory: Path, alerts: Iterable[Alert], incidents: Iterable[Incident], layers: int, last_step: int, loss: float
) -> None:
    """Write the entry of a run of one session that has ended; without a place for it, readers read the event file."""
    told = [(1, incident.to_dict()) for incident in incidents]
    last = replay(told, {}, [alert.to_dict() for alert in alerts])
    with suppress(OSError):
        files = {path.name: path.stat().st_size for path in directory.iterdir() if "tfevents" in path.name}
        plain = {"version": __version__, "files": files, **asdict(Entry.of(last, layers, last_step, loss))}
        place = directory / ENTRY
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(plain), encoding="utf-8")
        part.replace(place)


def read(directory: Path, files: Sequence[Path]) -> Entry | None:
    """Return the entry of a run; None if there is none, or if its event files have more of bnmonitor than it knows.

    Args:
        directory: The run's directory.
        files: Its event files.
    """
    try:
        plain = json.loads((directory / ENTRY).read_text(encoding="utf-8"))
        if plain.pop("version") != __version__ or not _is_all(plain.pop("files"), files):
            return None
        return Entry(**plain)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _is_all(known: Mapping[str, Any], files: Sequence[Path]) -> bool:
    """Whether nothing of bnmonitor was added to the files since: a logger adds its own numbers at the very end."""
    if set(known) != {file.name for file in files}:
        return False
    for file in files:
        beyond = file.stat().st_size - int(known[file.name])
        if not 0 <= beyond <= _MOST_BEYOND:
            return False
        if beyond:
            with file.open("rb") as open_file:
                open_file.seek(int(known[file.name]))
                if PLUGIN.encode() in open_file.read():
                    return False
    return True
