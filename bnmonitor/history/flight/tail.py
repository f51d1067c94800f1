"""The tail: the blocks that are not in a page yet, appended one after the other as plain float32.

Each record has its lengths and checksums, and is written by one call to the operating system: a process that is killed
loses none that it had written, and a record that was cut is left out.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from bnmonitor.history.flight.layout import PARTS, STATISTICS, Array, Blocks, Layout, columns

MAGIC = b"BNTL"
_START = struct.Struct(f"<4sIII{len(STATISTICS)}II")
"""Magic, blocks, parts of each, checksum of steps and course, of each statistic, and of all this."""


def record(blocks: Blocks) -> bytes:
    """Return blocks as a record of the tail: steps and course, then each statistic's ``[B, K, C]``."""
    head = b"".join(each.astype(kind).tobytes() for each, kind in _about(blocks))
    rows = np.ascontiguousarray(blocks.values.transpose(2, 0, 1, 3), "<f4")
    start = _START.pack(MAGIC, len(blocks), rows.shape[2], zlib.crc32(head), *map(zlib.crc32, rows), 0)
    return b"".join([start[:-4], zlib.crc32(start[:-4]).to_bytes(4, "little"), head, rows.data])


def _about(blocks: Blocks) -> tuple[tuple[Array, str], ...]:
    return (blocks.first, "<i8"), (blocks.last, "<i8"), (blocks.course, "<f8")


class Tail:
    """A tail that is open for writing.

    Args:
        path: The file, which is made.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.size, self.count = path, 0, 0
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o644)
        _lock(self._file)

    def append(self, blocks: Blocks) -> None:
        """Write blocks at the end."""
        data = memoryview(record(blocks))
        self.size += len(data)
        self.count += len(blocks)
        while data:
            data = data[os.write(self._file, data) :]

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def is_left(path: Path) -> bool:
    """Return whether the process that wrote a tail has ended without making a page of it."""
    file = os.open(path, os.O_RDWR)
    try:
        return _lock(file)
    finally:
        os.close(file)


def _lock(file: int) -> bool:
    """Lock a file until it is closed, or its process ends; return whether that is known to have worked."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


@dataclass(frozen=True)
class _Record:
    """The beginning of a record in a file."""

    first: Array
    last: Array
    course: Array
    parts: int
    checksums: tuple[int, ...]
    at: int

    def read(self, file: BinaryIO, which: int, channels: int) -> Array | None:
        """Return ``[B, K, C]`` of the statistic with a position; None if it is damaged."""
        size = 4 * len(self.first) * self.parts * channels
        file.seek(self.at + which * size)
        body = file.read(size)
        if len(body) < size or zlib.crc32(body) != self.checksums[which]:
            return None
        return np.frombuffer(body, "<f4").reshape(len(self.first), self.parts, channels)


def _records(file: BinaryIO, layout: Layout) -> Iterator[_Record]:
    """Yield the records up to the first whose beginning is damaged or whose end is missing."""
    at, end, width = 0, file.seek(0, os.SEEK_END), len(columns(layout.groups))
    while at + _START.size <= end:
        file.seek(at)
        start = file.read(_START.size)
        magic, count, parts, checksum, *checksums, whole = _START.unpack(start)
        if magic != MAGIC or zlib.crc32(start[:-4]) != whole or parts not in (1, len(PARTS)):
            return
        size = 8 * count * (2 + width)
        body, head = at + _START.size + size, file.read(size)
        at = body + 4 * count * parts * len(STATISTICS) * layout.total
        if at > end or zlib.crc32(head) != checksum:
            return
        first, last = np.frombuffer(head, "<i8", 2 * count).reshape(2, count)
        course = np.frombuffer(head, "<f8", offset=16 * count).reshape(count, width)
        yield _Record(first, last, course, parts, tuple(checksums), body)


def read(path: Path, layout: Layout) -> list[Blocks]:
    """Return the blocks of each record of a tail. Reading ends at the first damaged record.

    Raises:
        OSError: The file can't be read.
    """
    found = []
    with path.open("rb") as file:
        for each in _records(file, layout):
            rows = [each.read(file, which, layout.total) for which in range(len(STATISTICS))]
            known = [row for row in rows if row is not None]
            if len(known) < len(rows):
                break
            found.append(Blocks(each.first, each.last, np.stack(known, axis=2), each.course))
    return found


def read_steps(path: Path, layout: Layout) -> tuple[Array, Array, Array] | None:
    """Return first steps, last steps and course of the blocks of a tail; None if there are none.

    Raises:
        OSError: The file can't be read.
    """
    with path.open("rb") as file:
        found = [(each.first, each.last, each.course) for each in _records(file, layout)]
    if not found:
        return None
    first, last, course = (np.concatenate([each[i] for each in found]) for i in range(3))
    return first, last, course


def read_layer(path: Path, layout: Layout, layer: int, statistic: str) -> Iterator[tuple[Array, Array, Array]]:
    """Yield first steps, last steps and ``[B, K, C]`` of a layer, by its position, record by record.

    Raises:
        OSError: The file can't be read.
    """
    with path.open("rb") as file:
        for each in _records(file, layout):
            rows = each.read(file, STATISTICS.index(statistic), layout.total)
            if rows is None:
                return
            yield each.first, each.last, rows[..., layout.span(layer)]
