"""Reads safetensors: a JSON header and the bytes of the tensors, which stay where they are in the mapped file."""

from __future__ import annotations

import json
import math
import mmap
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bnmonitor.audit.unreadable import UnreadableError, first_line

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}

_LONGEST = 100_000_000
"""Bytes of the longest header that the format allows."""


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file as views of it, by their names; one of an unknown type is left out.

    Raises:
        UnreadableError: The file is not one, or is damaged.
    """
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return _tensors(mapped)
    except (OSError, ValueError, RecursionError, MemoryError, RuntimeError, TypeError) as error:
        raise UnreadableError(f"{path} is not a valid safetensors file: {first_line(error)}") from None


def _tensors(mapped: mmap.mmap) -> dict[str, Tensor]:
    size = int.from_bytes(mapped[:8], "little")
    begin = 8 + size
    if len(mapped) < 8 or begin > len(mapped) or size > _LONGEST:
        raise ValueError(f"its header claims {size:,} bytes, and the file has {len(mapped):,}")
    try:
        header = json.loads(mapped[8:begin])
    except ValueError:
        raise ValueError("its header is not JSON") from None
    if not isinstance(header, dict):
        raise ValueError("its header is not a mapping of names to tensors")
    header.pop("__metadata__", None)
    room = len(mapped) - begin
    places = {str(name): _place(str(name), entry, room) for name, entry in header.items()}
    spans = sorted((start, stop) for _, _, start, stop in places.values() if stop > start)
    if any(stop > start for (_, stop), (start, _) in pairwise(spans)):
        raise ValueError("two of its tensors overlap")
    return {
        name: _view(mapped, _DTYPES[kind], shape, begin + start, stop - start)
        for name, (kind, shape, start, stop) in places.items()
        if kind in _DTYPES
    }


def _place(name: str, entry: Any, room: int) -> tuple[str, tuple[int, ...], int, int]:
    """Return type, shape, begin and end of a tensor that the header describes."""
    try:
        kind, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise ValueError(f"its header does not say where {name[:80]!r} is") from None
    if not all(type(n) is int and n >= 0 for n in (*shape, start, stop)) or not start <= stop <= room:
        raise ValueError(f"{name[:80]!r} lies outside the file, which is cut off or damaged")
    if isinstance(kind, str) and kind in _DTYPES and math.prod(shape) * _DTYPES[kind].itemsize != stop - start:
        raise ValueError(f"{name[:80]!r} has {stop - start:,} bytes, which is not what its shape {list(shape)} needs")
    return str(kind), shape, start, stop


def _view(mapped: mmap.mmap, dtype: torch.dtype, shape: tuple[int, ...], start: int, size: int) -> Tensor:
    if not size:
        return torch.empty(shape, dtype=dtype)
    if start % dtype.itemsize:  # the format does not align the first tensor in files of old writers
        return torch.frombuffer(bytearray(mapped[start : start + size]), dtype=dtype).reshape(shape)
    return torch.frombuffer(mapped, dtype=dtype, count=size // dtype.itemsize, offset=start).reshape(shape)
