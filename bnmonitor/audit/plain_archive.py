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
import zlib
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

_JIT_VALUES = ("build_boollist", "build_doublelist", "build_intlist", "build_tensorlist", "restore_type_tag")
"""What the archives of TorchScript make lists and typed values by."""

_OPCODES = b".()012NIJKLMGFVXTUacdehjlpqrstubRQ]}\x80\x81\x85\x86\x87\x88\x89\x8a\x8b"
"""Those of protocol 2, which ``torch.save`` writes, without the ones that look objects up in a registry."""

_Base: Any = getattr(pickle, "_Unpickler", None)
"""The unpickler in Python: the one in C reserves as much memory as the file asks for."""


DAMAGED = (OSError, ValueError, EOFError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile)
"""What reading a damaged zip archive raises; that it is of another kind is a ``RuntimeError`` as well."""


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
        return _unpickler(_Records(Mapped(path, entries))).load()
    except Exception as error:
        raise NotPlainError(f"{type(error).__name__}: {error}") from None


class Mapped:
    """The entries of an archive that are not compressed, as parts of the file, which is mapped into memory."""

    def __init__(self, path: Path, entries: Sequence[zipfile.ZipInfo]) -> None:
        with path.open("rb") as file:
            self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self.entries = {entry.filename: entry for entry in entries}

    def read(self, name: str) -> bytes:
        """Return the bytes of an entry.

        Raises:
            NotPlainError: It is compressed, or its header is damaged.
            KeyError: There is none.
        """
        start, size = self._find(name)
        return self._mapped[start : start + size]

    def values(self, name: str, dtype: torch.dtype, count: int) -> Tensor:
        """Return the first values of an entry as a flat tensor, a view of the file; raises as :meth:`read` does."""
        start, size = self._find(name)
        if not 0 <= count * dtype.itemsize <= size:
            raise NotPlainError(f"the record {name} is not as long as it claims")
        if not count:
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(self._mapped, dtype=dtype, count=count, offset=start)

    def _find(self, name: str) -> tuple[int, int]:
        """Where an entry begins, and its length."""
        entry = self.entries[name]
        head = self._mapped[entry.header_offset : entry.header_offset + 30]
        start = entry.header_offset + 30 + sum(struct.unpack("<HH", head[26:30]))
        end = start + entry.file_size
        if entry.compress_type != zipfile.ZIP_STORED or head[:4] != b"PK\3\4" or end > len(self._mapped):
            raise NotPlainError(f"the record {name} is compressed, or its header is damaged")
        return start, entry.file_size


class _Records:
    """The records of what ``torch.save`` wrote."""

    def __init__(self, archive: Mapped) -> None:
        self._archive = archive
        [pickled] = [name for name in archive.entries if name.endswith("/data.pkl")]
        self._folder = pickled.removesuffix("data.pkl")
        self._known: dict[tuple[str, torch.dtype], Tensor] = {}
        order = self.read("byteorder") if f"{self._folder}byteorder" in archive.entries else b"little"
        if order.decode() != sys.byteorder:
            raise NotPlainError(f"it is {order!r}-endian")

    def read(self, name: str) -> bytes:
        """Return the bytes of a record."""
        return self._archive.read(self._folder + name)

    def storage(self, key: str, dtype: torch.dtype, count: int) -> Tensor:
        """Return a storage of so many values as a flat tensor."""
        known = self._known.get((key, dtype))
        if known is None:
            known = self._archive.values(f"{self._folder}data/{key}", dtype, count)
            self._known[key, dtype] = known
        return known


class Scripted(dict[str, Any]):
    """A module of a TorchScript archive: its attributes by name. None of its code is read here.

    Attributes:
        kind: The name of its class within the archive.
    """

    kind: ClassVar[str] = ""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.update({name: value for name, value in state.items() if isinstance(name, str)})


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

    class First:
        """In the place of what gives a list, or a value of a certain type, back."""

        __slots__ = ()

        def __call__(self, value: Any, *_: Any) -> Any:
            return value

    class Unpickler(_Base):  # type: ignore[misc]
        dispatch: ClassVar[dict[int, Any]] = {op: load for op, load in _Base.dispatch.items() if op in _OPCODES}

        def find_class(self, module: str, name: str) -> Any:
            if (module, name) == ("collections", "OrderedDict"):
                return Plain
            if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
                return Rebuild() if name == "_rebuild_tensor_v2" else Parameter()
            if module == "torch" and name in _DTYPES:
                return name
            if module == "__torch__" or module.startswith("__torch__."):
                return type("Module", (Scripted,), {"kind": f"{module}.{name}"})
            if module == "torch.jit._pickle" and name in _JIT_VALUES:
                return First()
            raise NotPlainError(f"it holds a {module}.{name}")

        def persistent_load(self, pid: Any) -> Any:
            kind, storage, key, _, count = pid
            if kind != "storage" or type(key) is not str or type(count) is not int:
                raise NotPlainError("it refers to something else than a storage")
            return key, _DTYPES[storage], count

    return Unpickler(io.BytesIO(records.read("data.pkl")))
