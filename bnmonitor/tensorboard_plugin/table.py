"""The table of runs: many runs are read with few requests to TensorBoard's data provider, as each takes a while."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from bnmonitor.history.listing import listed
from bnmonitor.history.run import Run
from bnmonitor.history.schema import ALERT, COURSE, FRAME, INCIDENT, KEPT
from bnmonitor.history.source import Provider
from bnmonitor.tensorboard_plugin.hyperparameters import of_run

MOST_BYTES = 1 << 26
"""About the most bytes of frames to read at once; a larger run is read alone."""

_NEEDED = (FRAME, COURSE, ALERT, INCIDENT)


def rows(
    runs: Sequence[Run],
    source: Provider,
    settings: dict[str, dict[str, Any]],
    *,
    known: Callable[[Run], bool],
    keep: Callable[[Run, Callable[[], Any]], Any],
) -> list[dict[str, Any]]:
    """Return a row for each run.

    Args:
        runs: The runs.
        source: Where they are read from.
        settings: Hyperparameters by the name of the run.
        known: Whether the row of a run is kept, and nothing was added to the run since.
        keep: Returns the row that is kept, or makes it.
    """
    found: list[dict[str, Any]] = []
    for part in _parts(runs, known):
        source.ahead({run.name: [tag for tag in run.tags if tag.startswith(_NEEDED)] for run in part if not known(run)})
        # A run keeps what it has read; one made anew goes with its numbers.
        for run in part:
            fresh = Run(source, run.name, run.tags)
            found.append(keep(run, partial(listed, fresh, of_run(settings, run.name))))
    source.ahead({})
    return found


def _parts(runs: Sequence[Run], known: Callable[[Run], bool]) -> list[list[Run]]:
    """Return the runs in their order, in parts to read at once."""
    parts: list[list[Run]] = [[]]
    spent = 0
    for run in runs:
        size = 0 if known(run) else _bytes(run)
        if parts[-1] and spent + size > MOST_BYTES:
            parts.append([])
            spent = 0
        parts[-1].append(run)
        spent += size
    return parts


def _bytes(run: Run) -> int:
    """Return how many bytes the frames of a run have at the most."""
    last = max((int(tag.last[0]) for _, tag in run.state(FRAME)), default=0)
    return sum(4 * len(schema.layers) * len(schema.metrics) for schema in run.schemas) * min(KEPT, last + 1)
