"""The BatchNormalization nodes of an ONNX file with their initializers, read without the onnx package.

An ONNX file is a protocol buffer; of its fields only those are read that a node and a tensor need.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from bnmonitor.audit.norms import Contents
from bnmonitor.audit.unreadable import UnreadableError, first_line

_DTYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    10: torch.float16,
    11: torch.float64,
    16: torch.bfloat16,
}
"""The numbers that the format gives to types."""

_FLOAT_DATA, _INT32_DATA, _RAW_DATA, _DOUBLE_DATA = 4, 5, 9, 10
_ROLES = ("weight", "bias", "running_mean", "running_var")
_MOST = 1 << 16
"""Axes, inputs and attributes beyond which a file is damaged."""


@dataclass
class _Node:
    operator: str = ""
    name: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    floats: dict[str, float] = field(default_factory=dict)
    value: memoryview | None = None


def read_onnx(path: Path) -> Contents:
    """Return the tensors of the BatchNormalization nodes, named as in PyTorch, with their eps and momentum.

    Raises:
        UnreadableError: The file is no ONNX file, or is damaged.
    """
    try:
        with path.open("rb") as file:
            whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        graphs = [value for number, value in _fields(whole) if number == 7 and isinstance(value, memoryview)]
        if not graphs:
            raise ValueError("it has no graph")
        return _contents(graphs[-1], path)
    except UnreadableError:
        raise
    except (OSError, ValueError, IndexError, TypeError, struct.error, RuntimeError, MemoryError) as error:
        raise UnreadableError(f"{path} is not a valid ONNX file: {first_line(error)}") from None


def _contents(graph: memoryview, path: Path) -> Contents:
    nodes, initializers = [], {}
    for number, value in _fields(graph):
        if number == 1 and isinstance(value, memoryview):
            nodes.append(_node(value))
        elif number == 5 and isinstance(value, memoryview):
            initializers[_text(value, 8)] = value
    for node in nodes:
        if node.operator == "Constant" and node.value is not None and node.outputs:
            initializers[node.outputs[0]] = node.value
        elif node.operator == "Identity" and node.inputs and node.inputs[0] in initializers and node.outputs:
            initializers[node.outputs[0]] = initializers[node.inputs[0]]
    tensors: dict[str, Tensor] = {}
    eps: dict[str, float] = {}
    momentum: dict[str, float] = {}
    for at, node in enumerate(n for n in nodes if n.operator == "BatchNormalization"):
        given = node.inputs[1:5]
        if len(given) < 4 or any(name not in initializers for name in given):
            continue
        layer = _name(node, at)
        for role, name in zip(_ROLES, given, strict=True):
            tensors[f"{layer}.{role}"] = _tensor(initializers[name], path)
        eps[layer] = node.floats.get("epsilon", 1e-5)
        momentum[layer] = 1 - node.floats.get("momentum", 0.9)  # the weight of the old value, in ONNX
    for name, value in initializers.items():
        if name not in tensors and len(_dims(value)) > 1:
            with suppress(ValueError):  # one that no layer needs
                tensors[name] = _tensor(value, path)
    return Contents(tensors=tensors, eps=eps, momentum=momentum)


def _name(node: _Node, at: int) -> str:
    """Return what the layer is called: as in PyTorch if its tensors are, else as its node."""
    mean = node.inputs[3]
    if mean.endswith(".running_mean"):
        return mean.removesuffix(".running_mean")
    name = (node.name or (node.outputs or [""])[0]).strip("/").replace("/", ".")
    return name.removesuffix(".BatchNormalization") or f"norm{at}"


def _node(message: memoryview) -> _Node:
    node = _Node()
    for number, value in _fields(message):
        if not isinstance(value, memoryview):
            continue
        if number == 1:
            node.inputs.append(_decoded(value))
        elif number == 2:
            node.outputs.append(_decoded(value))
        elif number == 3:
            node.name = _decoded(value)
        elif number == 4:
            node.operator = _decoded(value)
        elif number == 5:
            name = _text(value, 1)
            for inner, known in _fields(value):
                if inner == 2 and isinstance(known, bytes) and len(known) == 4:
                    node.floats[name] = struct.unpack("<f", known)[0]
                elif inner == 5 and isinstance(known, memoryview) and name == "value":
                    node.value = known
    return node


def _tensor(message: memoryview, path: Path) -> Tensor:
    """Return a tensor of the file, or of the file beside it that holds the values."""
    name, shape, kind = _text(message, 8), _dims(message), 0
    raw: memoryview | None = None
    typed: dict[int, list[memoryview | int | bytes]] = {}
    external: dict[str, str] = {}
    for number, value in _fields(message):
        if number == 2 and isinstance(value, int):
            kind = value
        elif number == _RAW_DATA and isinstance(value, memoryview):
            raw = value
        elif number == 13 and isinstance(value, memoryview):
            external[_text(value, 1)] = _text(value, 2)
        elif number in (_FLOAT_DATA, _INT32_DATA, _DOUBLE_DATA):
            typed.setdefault(number, []).append(value)
    if kind not in _DTYPES:
        raise ValueError(f"{name[:80]!r} is of a type that no layer has")
    dtype, size = _DTYPES[kind], math.prod(shape)
    if external:
        raw = _external(external, path, size * dtype.itemsize)
    if raw is None:
        return _typed(typed, dtype, shape, name)
    if len(raw) != size * dtype.itemsize:
        raise ValueError(f"{name[:80]!r} has {len(raw):,} bytes, which is not what its shape {shape} needs")
    return torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape) if size else torch.empty(shape, dtype=dtype)


def _typed(typed: dict[int, list[memoryview | int | bytes]], dtype: torch.dtype, shape: list[int], name: str) -> Tensor:
    """Return a tensor whose values are fields of their own, as small ones often are."""
    packed = b"".join(
        bytes(part) for key in (_FLOAT_DATA, _DOUBLE_DATA) for part in typed.get(key, ()) if not isinstance(part, int)
    )
    if packed and dtype in (torch.float32, torch.float64):
        found = torch.frombuffer(bytearray(packed), dtype=dtype)
    else:
        whole = [
            n
            for part in typed.get(_INT32_DATA, ())
            for n in (_varints(part) if isinstance(part, memoryview) else [part])
        ]
        bits = torch.tensor([int(n) & 0xFFFF for n in whole], dtype=torch.int32).to(torch.uint16)
        found = bits.view(dtype) if dtype in (torch.float16, torch.bfloat16) else bits.to(dtype)
    if found.numel() != math.prod(shape):
        raise ValueError(f"{name[:80]!r} has {found.numel():,} values, which is not what its shape {shape} needs")
    return found.reshape(shape)


def _external(where: dict[str, str], path: Path, size: int) -> memoryview:
    location = where.get("location", "")
    beside = path.parent / location
    if not location or Path(location).is_absolute() or ".." in Path(location).parts:
        raise UnreadableError(f"{path} is refused: its weights are to lie in {location[:80]!r}, outside its directory")
    try:
        with beside.open("rb") as file:
            file.seek(int(where.get("offset", "0") or 0))
            return memoryview(file.read(size))
    except OSError as error:
        raise UnreadableError(f"{path} keeps its weights in {beside}: {error.strerror or error}") from None


def _dims(message: memoryview) -> list[int]:
    shape: list[int] = []
    for number, value in _fields(message):
        if number == 1:
            shape += (
                [value] if isinstance(value, int) else list(_varints(value)) if isinstance(value, memoryview) else []
            )
    if len(shape) > _MOST or any(size >= 1 << 48 for size in shape):
        raise ValueError("a shape is damaged")
    return shape


def _text(message: memoryview, wanted: int) -> str:
    """Return a field of text; empty if there is none."""
    found = ""
    for number, value in _fields(message):
        if number == wanted and isinstance(value, memoryview):
            found = _decoded(value)
    return found


def _decoded(value: memoryview) -> str:
    return bytes(value).decode("utf-8", "backslashreplace")


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int | bytes]]:
    """Yield number and value of every field: a whole number, the bytes of a fixed one, or a part of the message."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        size = 0
        if wire == 2:
            size, at = _varint(message, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError("it is no protocol buffer")
        if at + size > len(message):
            raise ValueError("it is cut off")
        part = message[at : at + size]
        yield number, part if wire == 2 else bytes(part)
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            raise ValueError("it is cut off, or no protocol buffer")
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _varints(message: memoryview) -> Iterator[int]:
    at = 0
    while at < len(message):
        value, at = _varint(message, at)
        yield value
