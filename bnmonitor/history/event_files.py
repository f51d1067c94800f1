"""Event files: where they are below a directory, and the values of bnmonitor in them."""

from __future__ import annotations

import errno
import io
import json
import os
import select
import stat
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from bnmonitor.history.flight.layout import FOLDER
from bnmonitor.history.schema import ABOUT, EVERY, PLUGIN

STDIN = Path("-")
"""Stands for an event file that comes through a pipe."""

_MOST_BYTES = 2**31
"""The most bytes of a record that is read: Protocol Buffers cannot hold more."""

_OURS = EVERY.encode()
_MOST_PIPED = 2**32
_PATIENCE = 5.0

Array = np.ndarray[Any, Any]


class DamagedError(OSError):
    """Some values of a file are damaged; the others are read."""


class Found(NamedTuple):
    """One value of bnmonitor in an event file."""

    tag: str
    description: bytes
    step: int
    wall_time: float
    value: Array | str


def event_files(path: Path, failed: Callable[[OSError], object]) -> Iterator[tuple[str, Path]]:
    """Yield the event files below a path with the name of their run, in the order of file names."""
    for name, file in run_files(path, failed):
        if path == file or "tfevents" in file.name:
            yield name, file


def run_files(path: Path, failed: Callable[[OSError], object]) -> Iterator[tuple[str, Path]]:
    """Yield the event files and the files of flight records below a path with the name of their run.

    Every directory is visited once: links are followed after all real directories, so that a loop of links ends.
    """
    if path == STDIN or not path.is_dir():
        yield ".", path
        return
    seen: set[tuple[int, int]] = set()
    waiting, links = [path], list[Path]()
    while waiting or links:
        folder = waiting.pop() if waiting else links.pop(0)
        try:
            about = folder.stat()
            if (about.st_dev, about.st_ino) in seen:
                continue
            seen.add((about.st_dev, about.st_ino))
            with os.scandir(folder) as entries:
                there = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            failed(error)
            continue
        for entry in there:
            if _is_directory(entry):
                (links if entry.is_symlink() else waiting).append(Path(entry.path))
            elif "tfevents" in entry.name:
                yield folder.relative_to(path).as_posix(), Path(entry.path)
            elif is_of_flight(Path(entry.path)) and folder.parents[2].is_relative_to(path):
                yield folder.parents[2].relative_to(path).as_posix(), Path(entry.path)


def values(path: Path, given: bool = False) -> Iterator[Found]:
    """Yield each value of bnmonitor in an event file, in the order of writing.

    Args:
        path: The file.
        given: Whether the user named this very file, which may then be a pipe.

    Raises:
        OSError: The file cannot be read; raised after the last value if only some values are damaged.
    """
    from tensorboard.compat.proto.event_pb2 import Event

    damaged = ""
    for data in _records(path, given):
        if _OURS not in data:
            continue
        try:
            event = Event.FromString(data)
        except Exception:  # protobuf's DecodeError, which moved between versions of protobuf
            continue
        for value in _ours(event.summary.value, data.count(_OURS)):
            plugin = value.metadata.plugin_data
            if not value.HasField("tensor") or plugin.plugin_name not in (PLUGIN, ""):
                continue
            read = _value(value.tensor)
            if read is not None:
                yield Found(value.tag, plugin.content, event.step, event.wall_time, read)
            else:
                damaged = damaged or f"the value of {value.tag} at step {event.step} is damaged"
    if damaged:
        raise DamagedError(errno.EIO, damaged, str(path))


def _ours(summary: Any, most: int) -> list[Any]:
    """Return the values of a summary whose tags are bnmonitor's, in their order, if there are so many at most.

    They are the first and the last ones of a frame, and to look at the hundreds of scalars between them takes as long
    as to decode it.
    """
    first, last, end = list[Any](), list[Any](), len(summary)
    while len(first) < end and summary[len(first)].tag.startswith(EVERY):
        first.append(summary[len(first)])
    while len(first) + len(last) < most and end > len(first):
        end -= 1
        if summary[end].tag.startswith(EVERY):
            last.append(summary[end])
    return first + last[::-1]


def session_of(found: Found) -> int | None:
    """Return the session that a record of the run as a whole names; None for any other value."""
    if found.tag != ABOUT or not isinstance(found.value, str):
        return None
    try:
        session = json.loads(found.value).get("session")
    except (AttributeError, ValueError, RecursionError):
        return None
    return session if isinstance(session, int) else None


def is_of_flight(file: Path) -> bool:
    """Whether a file is one of a flight record."""
    return file.parts[-len(FOLDER.parts) - 1 : -1] == FOLDER.parts


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _records(path: Path, given: bool) -> Iterator[bytes]:
    """Yield the records of a file in TensorFlow's framing: length, its checksum, data, their checksum.

    The checksums are not verified: in Python that takes two seconds for ten megabytes, and decoding finds the damage. A
    truncated record ends the file, and so do zeros, which a file system leaves after a crash.
    """
    with _opened(path, given) as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        while len(head := file.read(12)) == 12 and any(head):
            (length,) = struct.unpack("<Q", head[:8])
            if length > size - file.tell():
                return
            if length >= _MOST_BYTES:
                file.seek(length + 4, io.SEEK_CUR)
                continue
            data = file.read(length)
            if len(file.read(4)) < 4:
                return
            yield data


def _opened(path: Path, given: bool) -> BinaryIO:
    """Open a file that has a size; a pipe that the user named is read to its end first."""
    if path == STDIN:
        return io.BytesIO(_drained(sys.stdin.buffer, path))
    mode = path.stat().st_mode
    if stat.S_ISREG(mode):
        return path.open("rb")
    if not given or not stat.S_ISFIFO(mode):
        raise OSError(errno.EINVAL, "it is a pipe, a device or a directory, not a file", str(path))
    # Opened in the usual way, a pipe without a writer would block forever.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        if not select.select([file], [], [], _PATIENCE)[0]:
            raise OSError(errno.EINVAL, f"no process wrote into this pipe for {_PATIENCE:.0f} s", str(path))
        os.set_blocking(file.fileno(), True)
        return io.BytesIO(_drained(file, path))


def _drained(file: BinaryIO, path: Path) -> bytes:
    data = file.read(_MOST_PIPED + 1)
    if len(data) > _MOST_PIPED:
        raise OSError(errno.EFBIG, f"it does not end within {_MOST_PIPED:,} bytes", str(path))
    return data


def _value(tensor: Any) -> Array | str | None:
    """Return what a tensor holds; None if it is damaged."""
    from tensorboard.compat.proto import types_pb2

    if tensor.dtype == types_pb2.DT_STRING:
        return tensor.string_val[0].decode("utf-8", "replace") if len(tensor.string_val) == 1 else None
    if tensor.dtype != types_pb2.DT_FLOAT:
        return None
    try:
        flat = np.frombuffer(tensor.tensor_content, "<f4")
        shape = [dim.size for dim in tensor.tensor_shape.dim]
        return flat.reshape(shape) if min(shape, default=0) >= 0 else None
    except (ValueError, OverflowError, MemoryError):
        return None
