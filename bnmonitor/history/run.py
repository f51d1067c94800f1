"""From records to a run: its frames on one axis of steps, its alerts, the facts and the channels of its layers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bnmonitor._text import listing
from bnmonitor.history import incidents as judged
from bnmonitor.history import statistics as catalogue
from bnmonitor.history.course import Course, course
from bnmonitor.history.schema import ABOUT, ALERT, CHANNELS, COURSE, FACTS, FRAME, INCIDENT, Schema, incident_session
from bnmonitor.history.source import STDIN, Array, Files, Record, Source, Tag
from bnmonitor.results import Incident

_ORDER = {statistic.name: place for place, statistic in enumerate(catalogue.LAYER)}


@dataclass(frozen=True)
class Frames:
    """Every logged step of a run, with all layers that it ever had; the layers of the last steps come first.

    Attributes:
        layers: Name of each layer.
        channels: Number of channels of each layer.
        metrics: Name of each statistic.
        steps: ``[S]`` int64, rising.
        wall_times: ``[S]`` float64, seconds since 1970.
        values: ``[M, L, S]`` float32; NaN where a layer did not exist or a number is not known.
    """

    layers: tuple[str, ...]
    channels: tuple[int, ...]
    metrics: tuple[str, ...]
    steps: Array
    wall_times: Array
    values: Array

    def __len__(self) -> int:
        return len(self.steps)

    def of(self, metric: str) -> Array:
        """Return a statistic of every layer: ``[L, S]``; NaN throughout if the run does not have it."""
        if metric in self.metrics:
            found: Array = self.values[self.metrics.index(metric)]
            return found
        return np.full(self.values.shape[1:], np.nan, np.float32)


@dataclass(frozen=True)
class Channels:
    """The channel detail of one layer. It has fewer steps than the frames, as a budget bounds it.

    Attributes:
        statistics: Name of each statistic.
        steps: ``[S]`` int64, rising.
        values: ``[K, C, S]`` float32.
    """

    statistics: tuple[str, ...]
    steps: Array
    values: Array

    def of(self, statistic: str) -> Array:
        """Return a statistic of every channel: ``[C, S]``; NaN throughout if the detail does not have it."""
        if statistic in self.statistics:
            found: Array = self.values[self.statistics.index(statistic)]
            return found
        return np.full(self.values.shape[1:], np.nan, np.float32)


class Run:
    """One run of a history, which reads each part when a caller first asks for it.

    Args:
        source: The source to read from.
        name: Name of the run in the source.
        tags: Tags of the run, if the caller knows them already.
    """

    def __init__(self, source: Source, name: str, tags: Mapping[str, Tag] | None = None) -> None:
        self.name = name
        self._source = source
        self.tags = source.runs()[name] if tags is None else tags

    @property
    def schemas(self) -> tuple[Schema, ...]:
        """The rows and columns of the run's frames; several schemas if the layers changed."""
        found = [Schema.decode(tag.description) for name, tag in self.tags.items() if name.startswith(FRAME)]
        return tuple(schema for schema in found if schema is not None)

    @cached_property
    def frames(self) -> Frames:
        """The run's frames. Where a run was resumed at an earlier step, the frames written later count.

        Health agrees with the incidents: it is that of a severity where, and only where, an incident is open.
        """
        frames = merge(self._series)
        if "health" in frames.metrics:
            worst = judged.severities(self.incidents, frames.layers, frames.steps)
            health = judged.health(frames.of("health"), worst, frames.of("mean_lag"), frames.of("log_lag"))
            frames.values[frames.metrics.index("health")] = health
        return frames

    @cached_property
    def incidents(self) -> tuple[Incident, ...]:
        """The run's incidents in their last state, in the order in which they were recorded.

        A warning or an error that is in no incident is one of its own, as in a run from before there were incidents.
        """
        names = self._named(INCIDENT)
        read = self._source.read(self.name, names)
        rows = written((incident_session(name), read.get(name, ())) for name in names)
        plain = [(incident_session(names[i]), one) for record, i in rows if (one := _object(record.value))]
        begins: dict[int, int] = {}
        for schema, records in self._series:
            if records:
                first = records[0].step
                begins[schema.session] = min(first, begins.get(schema.session, first))
        return judged.replay(plain, begins, self.alerts)

    @cached_property
    def course(self) -> Course:
        """Loss, learning rates and epoch at each frame."""
        return self.course_at(self.frames)

    def course_at(self, frames: Frames) -> Course:
        """Return the course at frames of the run that were read before."""
        sessions = {schema.key: schema.session for schema in self.schemas}
        names = self._named(COURSE)
        read = self._source.read(self.name, names)
        rows = written((sessions.get(name[len(COURSE) :], 1), read.get(name, ())) for name in names)
        kept = _last_written(rows)
        found = {record.step: one for record, _ in kept if (one := _object(record.value))}
        return course(frames.steps, frames.wall_times, found)

    @property
    def overlap(self) -> str:
        """A sentence on sessions that wrote into the run's directory at the same time; empty if none did."""
        return _overlap(self._series)

    @cached_property
    def _series(self) -> list[tuple[Schema, Sequence[Record]]]:
        tags = {name: s for name in self._named(FRAME) if (s := Schema.decode(self.tags[name].description))}
        read = self._source.read(self.name, list(tags))
        return [(schema, read.get(name, ())) for name, schema in tags.items()]

    @cached_property
    def alerts(self) -> tuple[dict[str, Any], ...]:
        """The run's alerts as :meth:`bnmonitor.Alert.to_dict` gives them, in the order in which they began."""
        read = self._source.read(self.name, self._named(ALERT))
        found = [a for records in read.values() if records and (a := _object(records[-1].value)) and "code" in a]
        return tuple(sorted(found, key=lambda a: (_number(a.get("first_step")), str(a["code"]))))

    @cached_property
    def about(self) -> dict[str, Any]:
        """The last record of the run as a whole: ``state`` (``running`` or ``ended``), ``version``, ``skipped``."""
        records = self._source.read(self.name, [ABOUT] if ABOUT in self.tags else []).get(ABOUT, ())
        found = [about for record in records if (about := _object(record.value))]
        return max(reversed(found), key=lambda about: _number(about.get("session")), default={})

    @cached_property
    def facts(self) -> dict[str, dict[str, Any]]:
        """Facts of each layer by its name: kind, channels, eps, momentum, mode, producer, consumers."""
        read = self._source.read(self.name, self._named(FACTS))
        last = sorted((records[-1] for records in read.values() if records), key=lambda r: (r.place, r.wall_time))
        lists = (_parsed(record.value) for record in last)
        return {str(f["name"]): f for each in lists if isinstance(each, list) for f in each if _named(f)}

    def channels(self, layer: str) -> Channels | None:
        """Return the channel detail of a layer; None if none was written."""
        found: dict[str, tuple[str, ...]] = {}
        for name in self._named(CHANNELS):
            about = _object(self.tags[name].description.decode("utf-8", "replace"))
            if about and about.get("layer") == layer and isinstance(about.get("statistics"), list):
                found[name] = tuple(map(str, about["statistics"]))
        read = self._source.read(self.name, list(found))
        sessions = {schema.key: schema.session for schema in self.schemas}
        names = [name for name in found if name in read]
        fitting = [
            (
                sessions.get(name[len(CHANNELS) :].split("/")[0], 1),
                [r for r in read[name] if np.ndim(r.value) == 2 and len(r.value) == len(found[name])],
            )
            for name in names
        ]
        rows = [(record, found[names[index]]) for record, index in written(fitting)]
        return _channels(rows) if rows else None

    @property
    def detailed(self) -> frozenset[str]:
        """The layers that have channel detail."""
        about = (_object(self.tags[n].description.decode("utf-8", "replace")) for n in self._named(CHANNELS))
        return frozenset(str(a["layer"]) for a in about if a and "layer" in a)

    def state(self, prefix: str) -> tuple[tuple[str, Tag], ...]:
        """Return a value that changes when something is written under the tags with a prefix."""
        return tuple((name, self.tags[name]) for name in sorted(self._named(prefix)))

    def _named(self, prefix: str) -> list[str]:
        return [name for name in self.tags if name.startswith(prefix)]


class History:
    """All runs of a source.

    Args:
        source: Event files, or TensorBoard's data provider.
    """

    def __init__(self, source: Source) -> None:
        self.source = source

    def all(self) -> dict[str, Run]:
        """Return every run that holds a frame or an alert, by name."""
        runs = sorted(self.source.runs().items())
        return {n: Run(self.source, n, tags) for n, tags in runs if any(t.startswith((FRAME, ALERT)) for t in tags)}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all runs."""
        return tuple(self.all())

    def run(self, name: str) -> Run:
        """Return a run.

        Raises:
            KeyError: There is no such run; the message lists the runs.
        """
        runs = self.all()
        if name not in runs:
            raise KeyError(f"no run named {name!r} has a history of bnmonitor; there are {listing(runs)}")
        return runs[name]


def open_history(path: str | Path) -> History:
    """Open the history in an event file (``-``: from standard input), the directory of a run, or a directory of runs.

    Raises:
        FileNotFoundError: There is no such file or directory.
    """
    if Path(path) != STDIN and not Path(path).exists():
        raise FileNotFoundError(f"there is no file or directory {str(path)!r}: give a run's log directory")
    return History(Files(path))


def merge(series: Sequence[tuple[Schema, Sequence[Record]]]) -> Frames:
    """Put frames of one or several schemas on one axis of steps.

    Frames count in the order in which they were written. A frame at an earlier step than the last one replaces all
    frames from there on: the run was resumed from a checkpoint.
    """
    fitting = [
        (schema.session, [r for r in records if np.shape(r.value) == (len(schema.layers), len(schema.metrics))])
        for schema, records in series
    ]
    kept = _last_written(written(fitting))
    used = list(dict.fromkeys(place for _, place in reversed(kept)))
    layers: dict[str, int] = {}
    for place in used:
        schema = series[place][0]
        for name, count in zip(schema.layers, schema.channels, strict=True):
            layers.setdefault(name, count)
    seen = dict.fromkeys(metric for place in used for metric in series[place][0].metrics)
    metrics = tuple(sorted(seen, key=lambda m: _ORDER.get(m, len(_ORDER))))
    row_of = {name: i for i, name in enumerate(layers)}
    values = np.full((len(metrics), len(layers), len(kept)), np.nan, np.float32)
    for place in used:
        schema = series[place][0]
        when = np.array([i for i, (_, of) in enumerate(kept) if of == place])
        stack = np.stack([np.asarray(kept[i][0].value) for i in when]).transpose(2, 1, 0)
        which = np.array([row_of[name] for name in schema.layers], dtype=np.int64)
        for column, metric in enumerate(schema.metrics):
            values[metrics.index(metric)][np.ix_(which, when)] = stack[column]
    return Frames(
        layers=tuple(layers),
        channels=tuple(layers.values()),
        metrics=metrics,
        steps=np.array([record.step for record, _ in kept], dtype=np.int64),
        wall_times=np.array([record.wall_time for record, _ in kept], dtype=np.float64),
        values=values,
    )


def written(series: Iterable[tuple[int, Sequence[Record]]]) -> list[tuple[Record, int]]:
    """Return the records of several tags in the order of writing, each with the index of its tag.

    A clock may go back, so it counts only between tags of one session, where the source does not know their places.

    Args:
        series: The session and the records of each tag; the records of one tag are in the order of writing.
    """
    keyed = []
    for index, (session, records) in enumerate(series):
        latest = float("-inf")
        for record in records:
            latest = max(latest, record.wall_time)
            keyed.append(((session, record.place, latest), record, index))
    return [(record, index) for _, record, index in sorted(keyed, key=lambda each: each[0])]


def _last_written(rows: Iterable[tuple[Record, Any]]) -> list[tuple[Record, Any]]:
    """Return the rows with rising steps: a row written later replaces the rows at its step and after."""
    kept: list[tuple[Record, Any]] = []
    for row in rows:
        while kept and kept[-1][0].step >= row[0].step:
            kept.pop()
        kept.append(row)
    return kept


def _overlap(series: Iterable[tuple[Schema, Sequence[Record]]]) -> str:
    """Return a sentence on a session that began, at steps already reached, while the one before it still wrote."""
    sessions: dict[tuple[int, int], list[Record]] = {}
    for schema, records in series:
        for record in records:
            sessions.setdefault((schema.session, record.place[0]), []).append(record)
    parts = [records for _, records in sorted(sessions.items(), key=lambda each: each[0])]
    for before, after in pairwise(parts):
        began, first = min((r.wall_time, r.step) for r in after)
        ended, last = max((r.wall_time, r.step) for r in before)
        if min(r.wall_time for r in before) <= began < ended and first <= last:
            return (
                f"{len(parts)} processes or monitors wrote into this directory, two of them at the same time: "
                f"from step {first} on only the one that began last is shown; give each a directory of its own"
            )
    return ""


def _channels(rows: Iterable[tuple[Record, tuple[str, ...]]]) -> Channels:
    kept = _last_written(rows)
    names = tuple(dict.fromkeys(name for _, statistics in reversed(kept) for name in statistics))
    arrays = [np.asarray(record.value) for record, _ in kept]
    values = np.full((len(names), max(a.shape[1] for a in arrays), len(kept)), np.nan, np.float32)
    for at, (array, (_, statistics)) in enumerate(zip(arrays, kept, strict=True)):
        values[[names.index(name) for name in statistics], : array.shape[1], at] = array
    return Channels(names, np.array([record.step for record, _ in kept], dtype=np.int64), values)


def _parsed(text: object) -> Any:
    try:
        return json.loads(text, parse_constant=str, parse_float=_finite) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None


def _finite(text: str) -> float | str:
    """Return the number; a number too large for a float stays text, as ``inf`` and ``nan`` do."""
    value = float(text)
    return value if np.isfinite(value) else text


def _object(text: object) -> dict[str, Any] | None:
    found = _parsed(text)
    return found if isinstance(found, dict) else None


def _named(fact: object) -> bool:
    return isinstance(fact, Mapping) and "name" in fact


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0
