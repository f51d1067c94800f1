"""Floats as small whole numbers, and these as few bytes.

A mean is rounded to a grid whose step is twice the allowed error at most; a variance likewise in its logarithm, so that
its error is relative. The mean of a block has an eighth of the step, as it is rounded again each time that blocks are
joined; extremes stay on their grid then. Over time a statistic moves by a few steps of the grid, so the differences
between consecutive blocks are small whole numbers, and so are the distances of a block's minimum and maximum from its
mean. They are written byte by byte of their significance, and packed by zlib's run lengths and Huffman code: faster
than its search for repeated strings, and smaller for numbers that are noise.
"""

from __future__ import annotations

import struct
import zlib
from itertools import pairwise

import numpy as np

from bnmonitor.history.flight.layout import Array

ABSENT, PLAIN, GRID = 0, 1, 2
"""Forms of a chunk: nothing is known; float32 as they are; whole numbers on a grid."""

FINER = 8
"""By how much the grid of a block's mean is finer than that of its extremes."""

_HEAD = struct.Struct("<BBBBI")
_LEAST = 1e-38
_MOST = 1e37
_LARGEST = 2**28
_FEW_ROWS = 64
_WIDTHS = ("<u1", "<u2", "<u4")


def encode(values: Array, grid: Array, *, logarithmic: bool) -> bytes:
    """Return a statistic of a layer over some blocks as bytes.

    Args:
        values: ``[B, K, C]`` float32, the mean of each block, and its minimum and maximum if ``K`` is 3.
        grid: ``[C]`` float32, the step of each channel's grid; of the logarithm's if ``logarithmic``.
        logarithmic: Whether to round the logarithm; the values are at least 0 then.
    """
    known = ~np.isnan(values[:, 0, 0])
    if not known.any():
        return _HEAD.pack(ABSENT, 0, 0, 0, 0) if np.isnan(values).all() else _plain(values)
    if not known.all() and not np.isnan(values[~known]).all():
        return _plain(values)
    levels = _levels(values[known], grid, logarithmic=logarithmic)
    if levels is None:
        return _plain(values)
    groups = _numbers(levels)
    widths = [next(i for i, w in enumerate(_WIDTHS) if g.max(initial=0) < 256 ** int(w[2:])) for g in groups]
    body = [np.packbits(known).tobytes(), grid.astype("<f4").tobytes()]
    body += [_planes(group.astype(_WIDTHS[width])) for group, width in zip(groups, widths, strict=True)]
    packed = _packed(b"".join(body))
    return _HEAD.pack(GRID, values.shape[1], *widths, len(packed)) + packed


def _levels(some: Array, grid: Array, *, logarithmic: bool) -> Array | None:
    """The values in steps of the grid, in their own memory; None if they do not fit there."""
    if not (np.isfinite(grid).all() and (grid > 0).all()):
        return None
    if logarithmic:
        if not 0 <= some.min() <= some.max() < _MOST:
            return None
        np.log(np.maximum(some, _LEAST, out=some), out=some)
    with np.errstate(all="ignore"):
        np.divide(some, grid, out=some)
    most = _LARGEST / FINER
    return some if -most < some.min() <= some.max() < most else None


def _numbers(levels: Array) -> tuple[Array, Array]:
    """The first mean of each channel, and all that follows, as whole numbers from 0 on."""
    count, parts, channels = levels.shape
    mean = np.rint(levels[:, 0] * (FINER if parts > 1 else 1)).astype(np.int32)
    rest = np.empty((count * parts - 1, channels), np.int32)
    np.subtract(mean[1:], mean[:-1], out=rest[: count - 1])
    if parts > 1:
        middle, extremes = mean // FINER, np.rint(levels[:, 1:], out=levels[:, 1:]).astype(np.int32)
        np.subtract(middle, extremes[:, 0], out=rest[count - 1 : 2 * count - 1])
        np.subtract(extremes[:, 1], middle, out=rest[2 * count - 1 :])
    return _zigzag(mean[:1]), _zigzag(rest).reshape(-1)


def decode(chunk: bytes, shape: tuple[int, int, int], *, logarithmic: bool) -> Array:
    """Return the values of a chunk: ``[B, K, C]`` float32.

    Raises:
        ValueError: The chunk is damaged.
    """
    try:
        form, parts, *widths, length = _HEAD.unpack_from(chunk)
        if form == ABSENT:
            return np.full(shape, np.nan, np.float32)
        body = zlib.decompress(chunk[_HEAD.size : _HEAD.size + length], -15)
        if form == PLAIN:
            return np.frombuffer(_joined(body, 4), "<f4").reshape(shape)
        if form != GRID or parts != shape[1]:
            raise ValueError(f"form {form} with {parts} parts")
        return _on_grid(body, shape, widths, logarithmic=logarithmic)
    except (struct.error, zlib.error, IndexError) as error:
        raise ValueError(f"a damaged chunk: {error}") from None


def _on_grid(body: bytes, shape: tuple[int, int, int], widths: list[int], *, logarithmic: bool) -> Array:
    blocks, parts, channels = shape
    at = -(-blocks // 8)
    known = np.unpackbits(np.frombuffer(body[:at], np.uint8), count=blocks).astype(bool)
    grid = np.frombuffer(body[at : at + 4 * channels], "<f4")
    at += 4 * channels
    count = int(known.sum())
    groups = []
    for size, width in zip((channels, (count * parts - 1) * channels), widths, strict=True):
        bytes_each = 1 << width
        groups.append(np.frombuffer(_joined(body[at : at + size * bytes_each], bytes_each), f"<u{bytes_each}"))
        at += size * bytes_each
    mean = np.empty((count, channels), np.int32)
    rest = _unzigzag(groups[1]).reshape(-1, channels)
    mean[0], mean[1:] = _unzigzag(groups[0]), rest[: count - 1]
    _accumulate(mean)
    levels = np.empty((count, parts, channels), np.float32)
    if parts > 1:
        middle = mean // FINER
        levels[:, 1] = middle - rest[count - 1 : 2 * count - 1]
        levels[:, 2] = middle + rest[2 * count - 1 :]
        levels[:, 1:] *= grid
        grid = grid / np.float32(FINER)
    levels[:, 0] = mean
    levels[:, 0] *= grid
    if logarithmic:
        np.exp(levels, out=levels)
    if count == blocks:
        return levels
    found = np.full(shape, np.nan, np.float32)
    found[known] = levels
    return found


def _accumulate(rows: Array) -> None:
    """Add to each row those before it. NumPy's own sum over rows goes column by column, which is slow for few rows."""
    if len(rows) > _FEW_ROWS:
        np.cumsum(rows, axis=0, out=rows)
        return
    for before, row in pairwise(rows):
        row += before


def _plain(values: Array) -> bytes:
    packed = _packed(_planes(np.ascontiguousarray(values, "<f4").reshape(-1)))
    return _HEAD.pack(PLAIN, values.shape[1], 0, 0, len(packed)) + packed


def _packed(body: bytes) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, -15, 9, zlib.Z_RLE)
    return packer.compress(body) + packer.flush()


def _planes(numbers: Array) -> bytes:
    """The lowest byte of every number, then the next."""
    return np.ascontiguousarray(numbers.reshape(-1).view(np.uint8).reshape(-1, numbers.itemsize).T).tobytes()


def _joined(planes: bytes, size: int) -> bytes:
    return np.ascontiguousarray(np.frombuffer(planes, np.uint8).reshape(size, -1).T).tobytes()


def _zigzag(numbers: Array) -> Array:
    signs: Array = numbers >> 31
    signs ^= numbers << 1
    return signs.view(np.uint32)


def _unzigzag(numbers: Array) -> Array:
    found = numbers.astype(np.int32)
    signs = -(found & 1)
    if numbers.itemsize == found.itemsize:
        found = (numbers >> 1).astype(np.int32)
    else:
        found >>= 1
    found ^= signs
    return found
