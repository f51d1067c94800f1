"""Reads what ``torch.save`` wrote of plain types and tensors in a small part of the time that ``torch.load`` needs.

``torch.load`` takes a quarter of a millisecond for each tensor. The tensors here are views of the mapped file.
"""

from __future__ import annotations

import io
import math
import mmap
import pickle
import struct
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}

_OPCODES = b".()012NIJKLMGFVXTUacdehjlpqrstubRQ]}\x80\x81\x85\x86\x87\x88\x89\x8a\x8b"
"""Those of protocol 2, which ``torch.save`` writes, without the ones that look objects up in a registry."""

_Base: Any = getattr(pickle, "_Unpickler", None)
"""The unpickler in Python: the one in C reserves as much memory as the file asks for."""


class NotPlainError(Exception):
    """The archive holds something else, or is not as ``torch.save`` writes it."""


def read_plain(path: Path, entries: Sequence[zipfile.ZipInfo]) -> Any:
    """Return the value of an archive of plain types and tensors.

    Args:
        path: A zip archive.
        entries: What it holds.

    Raises:
        NotPlainError: It may be one that ``torch.load`` can read.
    """
    if _Base is None:
        raise NotPlainError("this Python has no unpickler in Python")
    try:
        with path.open("rb") as file:
            records = _Records(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), entries)
        return _unpickler(records).load()
    except Exception as error:
        raise NotPlainError(f"{type(error).__name__}: {error}") from None


class _Records:
    """The records of an archive, which is mapped into memory."""

    def __init__(self, mapped: mmap.mmap, entries: Sequence[zipfile.ZipInfo]) -> None:
        self._mapped, self._entries = mapped, {entry.filename: entry for entry in entries}
        [pickled] = [name for name in self._entries if name.endswith("/data.pkl")]
        self._folder = pickled.removesuffix("data.pkl")
        self._known: dict[tuple[str, torch.dtype], Tensor] = {}
        order = self.read("byteorder") if f"{self._folder}byteorder" in self._entries else b"little"
        if order.decode() != sys.byteorder:
            raise NotPlainError(f"it is {order!r}-endian")

    def read(self, name: str) -> bytes:
        """Return the bytes of a record."""
        start, size = self._find(name)
        return self._mapped[start : start + size]

    def storage(self, key: str, dtype: torch.dtype, count: int) -> Tensor:
        """Return a storage of so many values as a flat tensor."""
        known = self._known.get((key, dtype))
        if known is None:
            start, size = self._find(f"data/{key}")
            if not 0 <= count * dtype.itemsize <= size:
                raise NotPlainError(f"the storage {key} is not as long as it claims")
            flat = (
                torch.frombuffer(self._mapped, dtype=dtype, count=count, offset=start)
                if count
                else torch.empty(0, dtype=dtype)
            )
            self._known[key, dtype] = known = flat
        return known

    def _find(self, name: str) -> tuple[int, int]:
        """Where a record begins, and its length."""
        entry = self._entries[self._folder + name]
        head = self._mapped[entry.header_offset : entry.header_offset + 30]
        start = entry.header_offset + 30 + sum(struct.unpack("<HH", head[26:30]))
        end = start + entry.file_size
        if entry.compress_type != zipfile.ZIP_STORED or head[:4] != b"PK\3\4" or end > len(self._mapped):
            raise NotPlainError(f"the record {name} is compressed, or its header is damaged")
        return start, entry.file_size


def _unpickler(records: _Records) -> Any:
    """Return an unpickler that knows tensors and mappings; any other global, and any other opcode, is an error.

    Its classes are made anew for each file: nothing that a file does to them outlasts it.
    """

    class Plain(dict[Any, Any]):
        """In the place of an OrderedDict."""

    class Rebuild:
        __slots__ = ()

        def __call__(
            self, storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
        ) -> Tensor:
            flat = records.storage(*storage)
            if not offset and size == flat.shape and stride == (1,):
                return flat
            if len(size) > 64 or math.prod(size) > flat.numel():
                raise NotPlainError("a tensor is larger than its storage")
            return flat.as_strided(size, stride, offset)

    class Parameter:
        __slots__ = ()

        def __call__(self, data: Any, *_: Any) -> Any:
            return data

    class Unpickler(_Base):  # type: ignore[misc]
        dispatch: ClassVar[dict[int, Any]] = {op: load for op, load in _Base.dispatch.items() if op in _OPCODES}

        def find_class(self, module: str, name: str) -> Any:
            if (module, name) == ("collections", "OrderedDict"):
                return Plain
            if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
                return Rebuild() if name == "_rebuild_tensor_v2" else Parameter()
            if module == "torch" and name in _DTYPES:
                return name
            raise NotPlainError(f"it holds a {module}.{name}")

        def persistent_load(self, pid: Any) -> Any:
            kind, storage, key, _, count = pid
            if kind != "storage" or type(key) is not str or type(count) is not int:
                raise NotPlainError("it refers to something else than a storage")
            return key, _DTYPES[storage], count

    return Unpickler(io.BytesIO(records.read("data.pkl")))
