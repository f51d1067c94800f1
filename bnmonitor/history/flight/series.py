"""A statistic of a layer over a run, put together from the parts of a record that have some of it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

import numpy as np

from bnmonitor.history.flight.codes import decode_into
from bnmonitor.history.flight.layout import LOGARITHMIC, Array, Layout, Part
from bnmonitor.history.flight.pages import Page
from bnmonitor.history.flight.tail import read_layer

A = TypeVar("A")
B = TypeVar("B")

logger = logging.getLogger("bnmonitor")

_MANY = 16
"""Parts from which on they are read by several threads: unpacking and NumPy let other threads run."""


@dataclass(frozen=True)
class Series:
    """A statistic of a layer over a run, a block of steps a row.

    Attributes:
        first: ``[B]`` int64, the first step of each block.
        last: ``[B]`` int64, its last step; rising.
        minimum: ``[B, C]`` float32, the smallest value of each channel within the block.
        mean: ``[B, C]`` float32.
        maximum: ``[B, C]`` float32.
    """

    first: Array
    last: Array
    minimum: Array
    mean: Array
    maximum: Array

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True)
class Wanted:
    """What to read.

    Attributes:
        layer: Name of a layer.
        channels: Its channels; where it had another number of them, it is another layer.
        statistic: One of ``STATISTICS``.
        parts: How many of ``PARTS``: the means alone, or all three.
        low: The first step.
        high: The last step.
    """

    layer: str
    channels: int
    statistic: str
    parts: int
    low: float
    high: float


@dataclass(frozen=True)
class _Piece:
    """Consecutive blocks as they lie in a file: encoded, or ``[B, K, C]`` of a tail."""

    first: Array
    last: Array
    parts: int
    body: bytes | Array
    name: str
    keep: Array

    def fill(self, found: tuple[Array, ...], logarithmic: bool) -> None:
        """Write the values into ``[B, C]`` of each part that is asked for.

        Raises:
            ValueError: They are damaged.
        """
        some = found[: self.parts]
        if isinstance(self.body, bytes):
            shape = (len(self.first), self.parts, found[0].shape[1])
            decode_into(some, self.body, shape, logarithmic=logarithmic)
        else:
            for part, each in enumerate(some):
                each[:] = self.body[:, part]
        for each in found[len(some) :]:  # a single step is its own minimum and maximum
            each[:] = found[0]


def gather(spans: Sequence[tuple[Part, Layout, float]], wanted: Wanted) -> tuple[Array, Array, tuple[Array, ...]]:
    """Read what is wanted.

    Args:
        spans: Each part with its layout, and the step from which a later one replaces it.
        wanted: What to read.

    Returns:
        The first and the last step of each block, and ``[B, C]`` of each of the wanted parts.
    """
    having = [span for span in spans if _has(span[1], wanted)]
    pieces = [piece for found in _mapped(lambda span: _pieces(*span, wanted), having, 8) for piece in found]
    counts = [int(piece.keep.sum()) for piece in pieces]
    starts, ends = (_concatenated([getattr(p, n)[p.keep] for p in pieces]) for n in ("first", "last"))
    order = np.arange(len(ends)) if (ends[1:] > ends[:-1]).all() else np.lexsort((starts, ends))
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    found = tuple(np.empty((len(order), wanted.channels), np.float32) for _ in range(wanted.parts))
    ranges = [places[end - count : end] for count, end in zip(counts, accumulate(counts), strict=True)]

    def fill(each: tuple[_Piece, Array]) -> bool:
        return _fill(*each, found, wanted.statistic in LOGARITHMIC)

    whole = list(_mapped(fill, list(zip(pieces, ranges, strict=True)), os.cpu_count() or 1))
    starts, ends = starts[order], ends[order]
    if not all(whole):
        lost = np.concatenate([rows for rows, known in zip(ranges, whole, strict=True) if not known])
        starts, ends = np.delete(starts, lost), np.delete(ends, lost)
        found = tuple(np.delete(each, lost, axis=0) for each in found)
    return starts, ends, found


def _has(layout: Layout, wanted: Wanted) -> bool:
    return (wanted.layer, wanted.channels) in zip(layout.layers, layout.channels, strict=True)


def _concatenated(steps: Sequence[Array]) -> Array:
    return np.concatenate(steps) if steps else np.zeros(0, np.int64)


def _pieces(part: Part, layout: Layout, until: float, wanted: Wanted) -> list[_Piece]:
    """What a part has of the wanted steps; nothing if it is damaged, which the log says."""
    place = layout.layers.index(wanted.layer)

    def kept(first: Array, last: Array) -> Array:
        found: Array = (first <= wanted.high) & (last >= wanted.low) & (first < until)
        return found

    found = list[_Piece]()
    try:
        if part.kind == "tail":
            for first, last, values in read_layer(part.path, layout, place, wanted.statistic):
                found.append(_Piece(first, last, values.shape[1], values, part.path.name, kept(first, last)))
        else:
            with Page(part.path, layout) as page:
                first, last, parts = page.header.first, page.header.last, page.header.parts
                keep = kept(first, last)
                if keep.any() and place in page.header.layers:
                    body = page.chunk(place, wanted.statistic)
                    found.append(_Piece(first, last, parts, body, part.path.name, keep))
    except (OSError, ValueError) as error:
        logger.warning("a part of the flight record is left out: %s", error)
    return [piece for piece in found if piece.keep.any()]


def _fill(piece: _Piece, rows: Array, found: tuple[Array, ...], logarithmic: bool) -> bool:
    """Write a piece to its rows, and return whether it could be read."""
    together = len(rows) == len(piece.first) == rows[-1] - rows[0] + 1 and (rows[1:] > rows[:-1]).all()
    if together:
        values = tuple(each[rows[0] : rows[-1] + 1] for each in found)
    else:
        values = tuple(np.empty((len(piece.first), each.shape[1]), np.float32) for each in found)
    try:
        piece.fill(values, logarithmic)
    except ValueError as error:
        logger.warning("a part of the flight record is left out: %s: %s", piece.name, error)
        return False
    if not together:
        for each, value in zip(found, values, strict=True):
            each[rows] = value[piece.keep]
    return True


def _mapped(call: Callable[[A], B], items: Sequence[A], threads: int) -> Iterable[B]:
    if len(items) < _MANY or threads < 2:
        return map(call, items)
    with ThreadPoolExecutor(min(8, threads), "bnmonitor-read") as pool:
        return list(pool.map(call, items))
