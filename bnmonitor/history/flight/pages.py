"""A page: consecutive blocks in one file, with each statistic of each layer in a chunk of its own.

The file begins with a header that says where each chunk lies, so that a reader takes one layer's statistic out of a
page by two reads. A page is written under another name, and then renamed: it is there whole or not at all.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bnmonitor.history.flight.codes import decode_into, encode
from bnmonitor.history.flight.layout import LOGARITHMIC, PARTS, STATISTICS, Array, Blocks, Layout, columns, empty_values

MAGIC = b"BNFLIGHT"
_START = struct.Struct("<8sII")
_COUNTS = struct.Struct("<IIII")
_CHUNK = np.dtype([("offset", "<u8"), ("length", "<u4"), ("checksum", "<u4")])

GAMMA_ERROR = 0.002
"""Largest error of gamma and beta, in typical gammas of the layer: about what an output is uncertain by in float16."""

_LEAST_GAMMA = 1e-6


@dataclass(frozen=True)
class Header:
    """What a page says before its chunks.

    Attributes:
        first: ``[B]`` int64, the first step of each block.
        last: ``[B]`` int64, its last step.
        parts: How many of ``PARTS`` a block has: 1 or 3.
        layers: ``[L]`` int64, positions in the layout of the layers that the page has.
        chunks: ``[L, S]``, where the chunk of each statistic lies.
        course: ``[B, N]`` float64.
    """

    first: Array
    last: Array
    parts: int
    layers: Array
    chunks: Array
    course: Array


def grids(values: Array, mean_error: float, variance_error: float, eps: float = 1e-12) -> tuple[Array, ...]:
    """Return the step of each statistic's grid, ``[C]`` each, for a layer's ``[B, S, C]`` means over blocks.

    Args:
        values: The means of the blocks.
        mean_error: Largest error of a mean, in standard deviations of the channel.
        variance_error: Largest relative error of a variance.
        eps: Smallest variance that counts.
    """
    channels = values.shape[2]
    deviation = np.sqrt(np.maximum(_smallest(values[:, STATISTICS.index("batch_var")], values[:, 3]), eps))
    affine = _power(np.full(channels, _typical(values[:, STATISTICS.index("gamma")]) * 2 * GAMMA_ERROR))
    mean = _power(2 * mean_error * deviation)
    variance = np.full(channels, 2 * np.log1p(variance_error), np.float32)
    return mean, variance, mean, variance, affine, affine


def _power(steps: Array) -> Array:
    """The largest powers of two that are not above: what lies on such a grid lies on every finer one."""
    return np.exp2(np.floor(np.log2(steps))).astype(np.float32)


def _smallest(batch: Array, running: Array) -> Array:
    """``[C]`` the smallest variance of a channel over the blocks: it may grow a billionfold before the page ends.

    The larger one of both counts: a channel that is silent for a step is still normalized by the running one.
    """
    found = np.fmax(np.where(np.isfinite(batch), batch, np.nan), np.where(np.isfinite(running), running, np.nan))
    least = np.fmin.reduce(found)
    return np.asarray(np.where(np.isnan(least), 1.0, least))


def _typical(gamma: Array) -> float:
    """The layer's typical gamma, where it is smallest over the blocks; those that are 0, as at a start, don't count."""
    size = np.abs(gamma)
    if 0 < size.min() <= size.max() < np.inf:
        middle = (size.shape[1] - 1) // 2, size.shape[1] // 2
        size.partition(middle, axis=1)
        return max(float(size[:, middle].mean(1).min()), _LEAST_GAMMA)
    size[~(np.isfinite(size) & (size > 0))] = np.nan
    some = size[~np.isnan(size).all(1)]
    return max(float(np.nanmedian(some, axis=1).min()), _LEAST_GAMMA) if len(some) else 1.0


def write(path: Path, layout: Layout, layers: Iterable[tuple[int, Blocks]]) -> int:
    """Write a page, a layer at a time, and return its size in bytes.

    Args:
        path: The file.
        layout: Its layout.
        layers: Position of each layer, and its part of the same blocks; at least one.
    """
    bodies, offset, which = list[bytes](), 0, list[int]()
    places: list[tuple[int, int, int]] = []
    for layer, blocks in layers:
        which.append(layer)
        steps = grids(blocks.values[:, 0], layout.mean_error[layer], layout.variance_error[layer])
        for column, (name, grid) in enumerate(zip(STATISTICS, steps, strict=True)):
            bodies.append(encode(blocks.values[:, :, column], grid, logarithmic=name in LOGARITHMIC))
            places.append((offset, len(bodies[-1]), zlib.crc32(bodies[-1])))
            offset += len(bodies[-1])
    counts = _COUNTS.pack(len(blocks), blocks.values.shape[1], len(which), blocks.course.shape[1])
    arrays = [blocks.first.astype("<i8"), blocks.last.astype("<i8"), np.asarray(which, "<i8"), np.array(places, _CHUNK)]
    header = counts + b"".join(each.tobytes() for each in (*arrays, blocks.course.astype("<f8")))
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        file.write(_START.pack(MAGIC, len(header), zlib.crc32(header)))
        file.write(header)
        file.writelines(bodies)
    part.replace(path)
    return _START.size + len(header) + offset


class Page:
    """A page that is open for reading.

    Args:
        path: The file.
        layout: Its layout.

    Raises:
        ValueError: It is not a page of this layout, or its header is damaged.
        OSError: It can't be read.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path, self.layout = path, layout
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            self.header, self._body = self._read_header()
        except (struct.error, ValueError) as error:
            self.close()
            raise ValueError(f"{path.name}: {error}") from None

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _read_header(self) -> tuple[Header, int]:
        size = os.fstat(self._file).st_size
        magic, length, checksum = _START.unpack(_pread(self._file, _START.size, 0))
        if magic != MAGIC or length > size:
            raise ValueError("it is not a page of a flight record")
        header = _pread(self._file, length, _START.size)
        if zlib.crc32(header) != checksum:
            raise ValueError("its header is damaged")
        count, parts, layers, width = _COUNTS.unpack_from(header)
        shapes: list[tuple[tuple[int, ...], Any]] = [
            ((count,), "<i8"),
            ((count,), "<i8"),
            ((layers,), "<i8"),
            ((layers, len(STATISTICS)), _CHUNK),
        ]
        found, at = [], _COUNTS.size
        for shape, kind in [*shapes, ((count, width), "<f8")]:
            array = np.frombuffer(header, kind, int(np.prod(shape)), at).reshape(shape)
            found.append(array)
            at += array.nbytes
        first, last, which, chunks, course = found
        fits = parts in (1, len(PARTS)) and width == len(columns(self.layout.groups))
        if not fits or (layers and not 0 <= which.min() <= which.max() < len(self.layout.layers)):
            raise ValueError("it does not fit to its layout")
        return Header(first, last, parts, which, chunks, course), _START.size + length

    def chunk(self, layer: int, statistic: str) -> bytes:
        """Return a statistic of a layer, by its position in the layout, as :func:`encode` wrote it.

        Raises:
            KeyError: The page does not have the layer.
            ValueError: The chunk is damaged.
        """
        rows = np.flatnonzero(self.header.layers == layer)
        if not len(rows):
            raise KeyError(layer)
        offset, length, checksum = self.header.chunks[rows[0], STATISTICS.index(statistic)].tolist()
        body = _pread(self._file, length, self._body + offset)
        if zlib.crc32(body) != checksum:
            raise ValueError(f"{self.path.name}: {statistic} of {self.layout.layers[layer]} is damaged")
        return body

    def blocks(self, layer: int) -> Blocks:
        """Return everything of a layer, by its position in the layout; a damaged chunk is unknown."""
        shape = self.shape(layer)
        values = empty_values(*shape)
        for column, name in enumerate(STATISTICS):
            found = values[:, :, column]
            try:
                parts = tuple(found[:, part] for part in range(shape[1]))
                decode_into(parts, self.chunk(layer, name), shape, logarithmic=name in LOGARITHMIC)
            except ValueError:
                found.fill(np.nan)
        return Blocks(self.header.first, self.header.last, values, self.header.course)

    def shape(self, layer: int) -> tuple[int, int, int]:
        """Return ``(B, K, C)`` of each statistic of a layer, by its position in the layout."""
        return len(self.header.first), self.header.parts, self.layout.channels[layer]


def _pread(file: int, length: int, offset: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(file, length, offset)
    os.lseek(file, offset, os.SEEK_SET)
    return os.read(file, length)
