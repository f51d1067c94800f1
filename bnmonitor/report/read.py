"""Reading a history back to the state that the terminal shows while a run trains."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from bnmonitor._text import count
from bnmonitor.history import black_boxes as boxes
from bnmonitor.history.event_files import DamagedError
from bnmonitor.history.incidents import described
from bnmonitor.history.run import History, Run, open_history
from bnmonitor.history.source import Array
from bnmonitor.results import Alert, Incident, LayerSummary, StepSummary

SCHEMA = 1
"""Version of what :meth:`Report.to_dict` returns; it changes only if a field changes its meaning or goes."""

COURSE = 64
"""Frames that a layer's sparkline is drawn from."""

_PATIENCE = 600.0


class NoHistoryError(ValueError):
    """There is no history to report on; the message says what to do."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Report(StepSummary):
    """The last state of a recorded run, and whether the run ended.

    Attributes:
        run: Name of the run below the given directory; ``"."`` for the directory itself.
        path: Directory of the run.
        frames: Number of logged steps.
        first_step: The first logged step; -1 if there is none.
        began: Time of the first logged step, in seconds since 1970; 0 if unknown.
        written: Time of the last logged step, in the same form.
        ended: Whether the run recorded its end.
        version: Version of bnmonitor that recorded it; empty if unknown.
        black_boxes: Files with the whole window at the moment an error opened.
        overlap: A sentence if several processes wrote into the directory at the same time; empty otherwise.
    """

    run: str
    path: Path
    frames: int
    first_step: int
    began: float
    written: float
    ended: bool
    version: str
    black_boxes: tuple[Path, ...]
    overlap: str = ""

    @property
    def span(self) -> str:
        """The steps of the rows' courses, in words."""
        return "the whole run"

    def ending(self, now: float | None = None) -> str:
        """Return how the record ends: the run ended, still writes, or stopped without a word."""
        if self.ended:
            return "ended"
        now = time.time() if now is None else now
        usual = (self.written - self.began) / max(1, self.frames - 1)
        if now - self.written < max(_PATIENCE, 10 * usual):
            return "running"
        return "stopped without a word: what came after the last flush is missing"

    def about(self) -> list[str]:
        """Return lines that say what was read, how it ends, and why it may be read wrongly."""
        when = _date(self.written)
        steps = f"steps {self.first_step} to {self.step}" if self.frames else "no frame yet"
        lines = [f"{self.path} · {count(self.frames, 'frame')}, {steps} · {self.ending()}{when and f' · {when}'}"]
        return lines + ([self.overlap] if self.overlap else [])

    def beside(self) -> list[str]:
        """Return lines that say what bnmonitor took, and what else it has written."""
        return ([self.cost] if self.cost else []) + [f"black box: {path}" for path in self.black_boxes]

    def to_dict(self) -> dict[str, Any]:
        """Return plain types that JSON can hold; a number that is not finite is null or, in an alert, a word."""
        return {
            "schema": SCHEMA,
            "version": self.version,
            "run": self.run,
            "path": str(self.path),
            "state": self.ending().split(":")[0],
            "first_step": self.first_step,
            "step": self.step,
            "frames": self.frames,
            "health": self.health,
            "layers": [_finite(asdict(row)) for row in self.rows],
            "alerts": [alert.to_dict() for alert in self.alerts],
            "incidents": [incident.to_dict() for incident in self.incidents],
            "loss": _number(self.loss),
            "learning_rates": [_number(rate) for rate in self.learning_rates],
            "overhead": _number(self.overhead),
            "skipped": dict(self.skipped),
            "black_boxes": [str(path) for path in self.black_boxes],
            "overlap": self.overlap,
        }


def read(path: str | Path, run: str | None = None) -> list[Report]:
    """Read the runs of a history, the one written to last first.

    Args:
        path: An event file, the directory of a run, or a directory of runs.
        run: Read only the run of this name.

    Raises:
        NoHistoryError: There is no history of bnmonitor.
    """
    return read_all(*find(path, run))


def read_all(history: History, names: Sequence[str]) -> list[Report]:
    """Read some runs of a history, the one written to last first."""
    return sorted((report(history, name) for name in names), key=lambda each: -each.written)


def find(path: str | Path, run: str | None = None) -> tuple[History, tuple[str, ...]]:
    """Open a history, and return it with the names of its runs.

    Args:
        path: An event file, the directory of a run, or a directory of runs.
        run: Only the run of this name.

    Raises:
        NoHistoryError: There is no history of bnmonitor.
    """
    try:
        history = open_history(path)
        names = history.names if run is None else (history.run(run).name,)
    except (OSError, KeyError) as error:
        raise NoHistoryError(str(error.args[0] if isinstance(error, KeyError) else error)) from None
    if not names:
        unreadable = getattr(history.source, "unreadable", ())
        if unreadable:
            raise NoHistoryError(said(unreadable[0]))
        raise NoHistoryError(
            f"no history of bnmonitor in {path}: it is written where a TensorBoardLogger writes "
            "(Trainer(callbacks=[BatchNormMonitor()])), or to Monitor(log_dir=...)"
        )
    return history, names


def said(error: OSError) -> str:
    """Return which file could not be read, and why."""
    begin = "" if isinstance(error, DamagedError) else "cannot read "
    return f"{begin}{error.filename}: {error.strerror}"


def report(history: History, name: str) -> Report:
    """Reduce a run to its last state."""
    run = history.run(name)
    frames, about = run.frames, run.about
    directory = getattr(history.source, "directory", lambda each: Path(each))(name)
    alerts = tuple(_explained(a, run.incidents) for plain in run.alerts if (a := described(Alert, plain)) is not None)
    skipped = about.get("skipped")
    steps = frames.steps
    return Report(
        step=int(steps[-1]) if len(steps) else -1,
        epoch=about["epoch"] if isinstance(about.get("epoch"), int) else run.course.last_epoch,
        rows=_rows(run, alerts),
        alerts=alerts,
        skipped={str(k): str(v) for k, v in skipped.items()} if isinstance(skipped, Mapping) else {},
        run=name,
        path=directory,
        frames=len(steps),
        first_step=int(steps[0]) if len(steps) else -1,
        began=float(frames.wall_times[0]) if len(steps) else 0.0,
        written=float(frames.wall_times[-1]) if len(steps) else 0.0,
        ended=about.get("state") == "ended",
        version=str(about.get("version", "")),
        black_boxes=tuple(boxes.listing(directory)),
        overlap=run.overlap,
        incidents=run.incidents,
        loss=run.course.last_loss,
        learning_rates=run.course.last_rates,
        overhead=overhead if isinstance(overhead := about.get("overhead"), float) else math.nan,
    )


def _explained(alert: Alert, incidents: Sequence[Incident]) -> Alert:
    """Return an alert with its incident."""
    known = (incident for incident in incidents if any(each.key == alert.key for each in incident.evidence))
    return replace(alert, incident=next(known, None))


def _rows(run: Run, alerts: Sequence[Alert]) -> tuple[LayerSummary, ...]:
    frames, facts = run.frames, run.facts
    if not len(frames):
        return ()
    # A layer that is gone by the last frame has no health there, and is not part of the last state.
    health = frames.of("health")[:, -1]
    course = _thinned(frames.of("batch_var"))
    last = {name: frames.of(name)[:, -1].tolist() for name in ("mean_lag", "gamma_min", "silent", "training")}
    rows = []
    for i in np.flatnonzero(~np.isnan(health)).tolist():
        name = frames.layers[i]
        fact = facts.get(name, {})
        rows.append(
            LayerSummary(
                name=name,
                channels=frames.channels[i],
                health=float(health[i]),
                training=bool(fact.get("training", last["training"][i] != 0)),
                settled=True,
                batch_var=tuple(course[i].tolist()),
                running_gap=last["mean_lag"][i],
                gamma_min=last["gamma_min"][i],
                silent=last["silent"][i],
                alerts=tuple(
                    f"{a.rule} since {a.first_step}" for a in alerts if a.state == "open" and name in a.layers
                ),
                recovery="",
            )
        )
    return tuple(rows)


def _date(seconds: float) -> str:
    """Return a time in words; empty if it is unknown or, in a damaged file, impossible."""
    try:
        return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M UTC") if seconds else ""
    except (OSError, OverflowError, ValueError):
        return ""


def _thinned(series: Array) -> Array:
    """Return at most :data:`COURSE` columns of ``[L, S]``: the largest value of each part, so that a spike stays."""
    parts = np.array_split(series, min(COURSE, max(1, series.shape[1])), axis=1)
    tops = [
        np.where(np.isnan(part).all(1), np.nan, np.nanmax(np.where(np.isnan(part), -np.inf, part), 1)) for part in parts
    ]
    return np.stack(tops, 1)


def _finite(plain: dict[str, Any]) -> dict[str, Any]:
    return {name: _number(value) for name, value in plain.items()}


def _number(value: Any) -> Any:
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return [_number(v) for v in value] if isinstance(value, (list, tuple)) else value
