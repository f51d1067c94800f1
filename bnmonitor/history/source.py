"""The sources of a history's records: event files, or TensorBoard's data provider."""

from __future__ import annotations

import io
import os
import stat
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from bnmonitor.history.schema import PLUGIN

Array = np.ndarray[Any, Any]

STDIN = Path("-")
"""Stands for an event file that comes through a pipe."""


@dataclass(frozen=True)
class Record:
    """One value of a tag: a float32 array, or the text of a JSON document."""

    step: int
    wall_time: float
    value: Array | str


@dataclass(frozen=True)
class Tag:
    """The facts of a tag that need no reading of its values.

    Attributes:
        description: The description written with its first value.
        last: A value that changes when something is added.
    """

    description: bytes
    last: tuple[Any, ...]


class Source(Protocol):
    """The runs of a history, their tags, and the values of the tags."""

    def runs(self) -> Mapping[str, Mapping[str, Tag]]:
        """Return the tags of every run that has a history of bnmonitor."""
        ...

    def read(self, run: str, tags: Sequence[str]) -> Mapping[str, Sequence[Record]]:
        """Return the values of the tags, in the order in which they were written."""
        ...


# -- event files -------------------------------------------------------------------------------------------------------


@dataclass
class _Run:
    """The content of a directory's event files that was read so far."""

    tags: dict[str, bytes] = field(default_factory=dict)
    records: dict[str, list[Record]] = field(default_factory=dict)


class Files:
    """Reads event files directly.

    It ignores other files, truncated ends and damaged records, and reads the rest.

    Args:
        path: An event file, a run's directory, or a directory of runs; ``-``: an event file from standard input.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._runs: dict[str, _Run] | None = None
        self._unreadable: list[OSError] = []

    @property
    def unreadable(self) -> tuple[OSError, ...]:
        """The errors of files and directories that could not be read; each names its file."""
        self._load()
        return tuple(self._unreadable)

    def runs(self) -> Mapping[str, Mapping[str, Tag]]:
        """Return the tags of every run by its path below the directory; the directory itself is ``"."``."""
        found = self._load()
        return {
            name: {tag: Tag(run.tags[tag], (len(records),)) for tag, records in run.records.items()}
            for name, run in found.items()
        }

    def read(self, run: str, tags: Sequence[str]) -> Mapping[str, Sequence[Record]]:
        """Return the values of the tags, file by file in the order of file names, which begin with a time."""
        known = self._load()[run].records
        return {tag: known[tag] for tag in tags if tag in known}

    def directory(self, run: str) -> Path:
        """Return the directory of a run."""
        if self.path == STDIN:
            return Path("standard input")
        return (self.path if self.path.is_dir() else self.path.parent) / run

    def _load(self) -> dict[str, _Run]:
        if self._runs is None:
            self._runs = {}
            for name, file in _event_files(self.path, self._unreadable.append):
                read = self._runs.setdefault(name, _Run())
                try:
                    for tag, description, record in _ours(file):
                        if description or tag not in read.tags:
                            read.tags[tag] = read.tags.get(tag) or description
                        read.records.setdefault(tag, []).append(record)
                except OSError as error:
                    self._unreadable.append(error)
            self._runs = {name: run for name, run in self._runs.items() if run.records}
        return self._runs


def _event_files(path: Path, failed: Callable[[OSError], object]) -> Iterator[tuple[str, Path]]:
    """Yield the event files below a path with the name of their run, the oldest file of each run first."""
    if path == STDIN or not path.is_dir():
        yield ".", path
        return
    for folder, below, names in os.walk(path, onerror=failed, followlinks=True):
        below.sort()
        for name in sorted(names):
            if "tfevents" in name:
                yield Path(folder).relative_to(path).as_posix(), Path(folder) / name


def _ours(path: Path) -> Iterator[tuple[str, bytes, Record]]:
    """Yield tag, description and record of each value of bnmonitor in an event file."""
    from tensorboard.compat.proto.event_pb2 import Event

    for data in _records(path):
        if PLUGIN.encode() not in data:
            continue
        try:
            event = Event.FromString(data)
        except Exception:  # protobuf's DecodeError, which moved between versions of protobuf
            continue
        for value in event.summary.value:
            plugin = value.metadata.plugin_data
            if not value.HasField("tensor") or not value.tag.startswith(f"{PLUGIN}/"):
                continue
            if plugin.plugin_name not in (PLUGIN, ""):
                continue
            read = _value(value.tensor)
            if read is not None:
                yield value.tag, plugin.content, Record(event.step, event.wall_time, read)


def _records(path: Path) -> Iterator[bytes]:
    """Yield the records of a file in TensorFlow's framing: length, its checksum, data, their checksum.

    The checksums are not verified: in Python that takes two seconds for ten megabytes, and decoding finds the damage. A
    truncated record ends the file.
    """
    with _opened(path) as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        while len(head := file.read(12)) == 12:
            (length,) = struct.unpack("<Q", head[:8])
            if length > size - file.tell():
                return
            data = file.read(length)
            if len(file.read(4)) < 4:
                return
            yield data


def _opened(path: Path) -> BinaryIO:
    """Open a file that has a size; a pipe is read to its end first."""
    if path == STDIN:
        return io.BytesIO(sys.stdin.buffer.read())
    file = path.open("rb")
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    with file:
        return io.BytesIO(file.read())


def _value(tensor: Any) -> Array | str | None:
    from tensorboard.compat.proto import types_pb2

    if tensor.dtype == types_pb2.DT_STRING:
        return tensor.string_val[0].decode("utf-8", "replace") if len(tensor.string_val) == 1 else None
    if tensor.dtype != types_pb2.DT_FLOAT:
        return None
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    flat = np.frombuffer(tensor.tensor_content, "<f4")
    return flat.reshape(shape) if flat.size == np.prod(shape, dtype=np.int64) else None


# -- TensorBoard's data provider ---------------------------------------------------------------------------------------


class Provider:
    """Reads through TensorBoard's data provider, which knows remote directories and both of its load modes.

    Args:
        provider: The data provider.
        context: The context of the request.
        experiment: The experiment of the request.
        most: Values per tag to ask for.
    """

    def __init__(self, provider: Any, context: Any, experiment: str, most: int) -> None:
        self._provider, self._most = provider, most
        self._ask = {"experiment_id": experiment, "plugin_name": PLUGIN}
        self._context = context

    def runs(self) -> Mapping[str, Mapping[str, Tag]]:
        """Return the tags of every run."""
        listed = self._provider.list_tensors(self._context, **self._ask)
        return {
            run: {tag: Tag(each.plugin_content, (each.max_step, each.max_wall_time)) for tag, each in tags.items()}
            for run, tags in listed.items()
        }

    def read(self, run: str, tags: Sequence[str]) -> Mapping[str, Sequence[Record]]:
        """Return the values of the tags that TensorBoard kept."""
        from tensorboard.data.provider import RunTagFilter

        if not tags:
            return {}
        wanted = RunTagFilter(runs=[run], tags=list(tags))
        read = self._provider.read_tensors(self._context, **self._ask, downsample=self._most, run_tag_filter=wanted)
        return {tag: [_record(datum) for datum in data] for tag, data in read.get(run, {}).items()}


def _record(datum: Any) -> Record:
    value = datum.numpy
    if value.dtype.kind != "f":
        item = value.item()
        value = item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item)
    return Record(int(datum.step), float(datum.wall_time), value)
