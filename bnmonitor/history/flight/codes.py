"""Floats as small whole numbers, and these as few bytes.

A mean is rounded to a grid whose step is twice the allowed error at most; a variance likewise in its logarithm, so that
its error is relative. The mean of a block has an eighth of the step, as it is rounded again each time that blocks are
joined; extremes stay on their grid then. Over time a statistic moves by a few steps of the grid, so the differences
between consecutive blocks are small whole numbers, and so are the distances of a block's minimum and maximum from its
mean. They are written byte by byte of their significance, and packed by zlib's Huffman code alone: three times as fast
as its search for repeated strings, and no larger for numbers that are noise. The means come first, so that a reader
that asks for them alone unpacks a third.
"""

from __future__ import annotations

import struct
import zlib
from itertools import pairwise

import numpy as np

from bnmonitor.history.flight.layout import PARTS, Array

ABSENT, PLAIN, GRID = 0, 1, 2
"""Forms of a chunk: nothing is known; float32 as they are; whole numbers on a grid."""

FINER_BITS = 3
"""The grid of a block's mean is finer than that of its extremes by two to this power."""

_HEAD = struct.Struct("<BBBBBI")
_LEAST = 1e-38
_MOST = 1e37
_LARGEST = 2**28
_FEW_ROWS = 64
_UNSIGNED = (np.dtype("<u1"), np.dtype("<u2"), np.dtype("<u4"))
_SIGNED = (np.dtype("<i1"), np.dtype("<i2"), np.dtype("<i4"))


def encode(values: Array, grid: Array, *, logarithmic: bool) -> bytes:
    """Return a statistic of a layer over some blocks as bytes.

    Args:
        values: ``[B, K, C]`` float32, the mean of each block, and its minimum and maximum if ``K`` is 3.
        grid: ``[C]`` float32, the step of each channel's grid; of the logarithm's if ``logarithmic``.
        logarithmic: Whether to round the logarithm; the values are at least 0 then.
    """
    known = ~np.isnan(values[:, 0, 0])
    some = values
    if not known.all():
        if not np.isnan(values[~known]).all():
            return _plain(values)
        if not known.any():
            return _HEAD.pack(ABSENT, 0, 0, 0, 0, 0)
        some = values[known]
    levels = _levels(some, grid, logarithmic=logarithmic)
    if levels is None:
        return _plain(values)
    body, widths = [np.packbits(known).tobytes(), grid.astype("<f4").tobytes()], []
    for group in _numbers(levels):
        most = int(group.max(initial=0))
        widths.append(0 if most < 2**8 else 1 if most < 2**16 else 2)
        body.append(_planes(group.astype(_UNSIGNED[widths[-1]])))
    packed = _packed(b"".join(body))
    return _HEAD.pack(GRID, values.shape[1], *widths, len(packed)) + packed


def _levels(some: Array, grid: Array, *, logarithmic: bool) -> Array | None:
    """The values in steps of the grid; None if they do not fit there."""
    if not (np.isfinite(grid).all() and (grid > 0).all()):
        return None
    with np.errstate(all="ignore"):
        if logarithmic:
            if not 0 <= some.min() <= some.max() < _MOST:
                return None
            levels = np.maximum(some, np.float32(_LEAST))
            np.log(levels, out=levels)
            levels /= grid
        else:
            levels = some / grid
    most = _LARGEST / 2**FINER_BITS
    return levels if -most < levels.min() <= levels.max() < most else None


def _numbers(levels: Array) -> tuple[Array, ...]:
    """The first mean of each channel, the differences of the means, and the distances of the extremes, from 0 on."""
    count, parts, channels = levels.shape
    mean = np.empty((count, channels), np.int32)
    if parts == 1:
        np.rint(levels[:, 0], out=mean, casting="unsafe")
        return _zigzag(mean[:1]), _zigzag(mean[1:] - mean[:-1]), np.zeros(0, np.uint32)
    np.rint(levels[:, 0] * np.float32(2**FINER_BITS), out=mean, casting="unsafe")
    distances = np.empty((2, count, channels), np.int32)
    np.rint(levels[:, 1], out=distances[0], casting="unsafe")
    np.rint(levels[:, 2], out=distances[1], casting="unsafe")
    middle = mean >> FINER_BITS
    np.subtract(middle, distances[0], out=distances[0])
    distances[1] -= middle
    return _zigzag(mean[:1]), _zigzag(mean[1:] - mean[:-1]), _zigzag(distances)


def decode(chunk: bytes, shape: tuple[int, int, int], *, logarithmic: bool, parts: int = len(PARTS)) -> Array:
    """Return the values of a chunk.

    Args:
        chunk: What :func:`encode` returned.
        shape: ``(B, K, C)`` of the values.
        logarithmic: As they were encoded.
        parts: How many of the ``K`` to return: 1 for the means alone, which takes a third of the time.

    Returns:
        ``[B, min(K, parts), C]`` float32.

    Raises:
        ValueError: The chunk is damaged.
    """
    found = np.empty((min(shape[1], parts), shape[0], shape[2]), np.float32)
    decode_into(tuple(found), chunk, shape, logarithmic=logarithmic)
    return np.moveaxis(found, 0, 1)


def decode_into(found: tuple[Array, ...], chunk: bytes, shape: tuple[int, int, int], *, logarithmic: bool) -> None:
    """Write the values of a chunk into arrays, a ``[B, C]`` float32 for each part: one for the means alone, or ``K``.

    Raises:
        ValueError: The chunk is damaged.
    """
    try:
        form, parts, *widths, length = _HEAD.unpack_from(chunk)
        packed = chunk[_HEAD.size : _HEAD.size + length]
        if form == ABSENT:
            for each in found:
                each.fill(np.nan)
        elif form == PLAIN:
            values = np.frombuffer(_joined(zlib.decompress(packed, -15), 4), "<f4").reshape(shape)
            for part, each in enumerate(found):
                each[:] = values[:, part]
        elif form == GRID and parts == shape[1]:
            _from_grid(found, packed, shape, widths, logarithmic=logarithmic)
        else:
            raise ValueError(f"form {form} with {parts} parts")
    except (struct.error, zlib.error, IndexError) as error:
        raise ValueError(f"a damaged chunk: {error}") from None


def _from_grid(
    found: tuple[Array, ...], packed: bytes, shape: tuple[int, int, int], widths: list[int], *, logarithmic: bool
) -> None:
    blocks, parts, channels = shape
    start = -(-blocks // 8) + 4 * channels
    means = start + (channels << widths[0]) + ((blocks - 1) * channels << widths[1])
    body = zlib.decompressobj(-15).decompress(packed, means if len(found) < parts else 0)
    known = np.unpackbits(np.frombuffer(body, np.uint8, -(-blocks // 8)), count=blocks).astype(bool)
    count = int(known.sum())
    grid = np.frombuffer(body, "<f4", channels, -(-blocks // 8))
    groups, at = [], start
    sizes = channels, (count - 1) * channels, 2 * count * channels
    for size, width in zip(sizes[: 3 if len(found) > 1 else 2], widths, strict=False):
        each = size << width
        groups.append(_unzigzag(np.frombuffer(_joined(body[at : at + each], 1 << width), _UNSIGNED[width])))
        at += each
    mean = np.empty((count, channels), np.int32)
    mean[0] = groups[0]
    mean[1:] = groups[1].reshape(-1, channels)
    _accumulate(mean)
    levels = found if count == blocks else tuple(np.empty((count, channels), np.float32) for _ in found)
    fine = grid / np.float32(2**FINER_BITS) if parts > 1 else grid
    np.multiply(mean, fine, out=levels[0], dtype=np.float32, casting="same_kind")
    if len(found) > 1:
        mean >>= FINER_BITS
        distances = groups[2].reshape(2, count, channels)
        number = mean - distances[0]
        np.multiply(number, grid, out=levels[1], dtype=np.float32, casting="same_kind")
        np.add(mean, distances[1], out=number)
        np.multiply(number, grid, out=levels[2], dtype=np.float32, casting="same_kind")
    for values, level in zip(found, levels, strict=True):
        if logarithmic:
            np.exp(level, out=level)
        if level is not values:
            values.fill(np.nan)
            values[known] = level


def _accumulate(rows: Array) -> None:
    """Add to each row those before it. NumPy's own sum over rows goes column by column, which is slow for few rows."""
    if len(rows) > _FEW_ROWS:
        np.cumsum(rows, axis=0, out=rows)
        return
    for before, row in pairwise(rows):
        row += before


def _plain(values: Array) -> bytes:
    packed = _packed(_planes(np.ascontiguousarray(values, "<f4").reshape(-1)))
    return _HEAD.pack(PLAIN, values.shape[1], 0, 0, 0, len(packed)) + packed


def _packed(body: bytes) -> bytes:
    """The bytes by Huffman's code; with run lengths where most are 0, as where nothing changes."""
    mostly = 2 * np.count_nonzero(np.frombuffer(body, np.uint8)) < len(body)
    packer = zlib.compressobj(1, zlib.DEFLATED, -15, 8, zlib.Z_RLE if mostly else zlib.Z_HUFFMAN_ONLY)
    return packer.compress(body) + packer.flush()


def _planes(numbers: Array) -> bytes:
    """The lowest byte of every number, then the next."""
    size = numbers.itemsize
    planes: Array = numbers if size == 1 else numbers.reshape(-1).view(np.uint8).reshape(-1, size).T
    return planes.tobytes()


def _joined(planes: bytes, size: int) -> bytes:
    return planes if size == 1 else np.frombuffer(planes, np.uint8).reshape(size, -1).T.tobytes()


def _zigzag(numbers: Array) -> Array:
    signs: Array = numbers >> 31
    signs ^= numbers << 1
    return signs.view(np.uint32)


def _unzigzag(numbers: Array) -> Array:
    """The numbers with their signs, in as many bytes."""
    signs: Array = np.negative(numbers & 1)
    signs ^= numbers >> 1
    return signs.view(_SIGNED[_UNSIGNED.index(numbers.dtype)])
