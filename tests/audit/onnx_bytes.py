"""Writes the few parts of an ONNX file that hold normalization layers, without the onnx package."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import torch
from torch import Tensor

TYPES = {torch.float32: 1, torch.float16: 10, torch.bfloat16: 16, torch.float64: 11}


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def part(number: int, value: bytes | str | int) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def tensor(name: str, values: Tensor, *, typed: bool = False) -> bytes:
    raw = values.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    dims = b"".join(part(1, size) for size in values.shape)
    return dims + part(2, TYPES[values.dtype]) + part(8, name) + part(4 if typed else 9, raw)


def attribute(name: str, value: float) -> bytes:
    return part(5, part(1, name) + varint(2 << 3 | 5) + struct.pack("<f", value))


def model(layers: Mapping[str, Mapping[str, Tensor]], *, eps: float = 1e-5, momentum: float = 0.9, typed: bool = False) -> bytes:
    """A graph of a BatchNormalization for each layer, whose tensors are initializers."""
    graph, at = b"", "input"
    for name, held in layers.items():
        names = [f"{name}.{role}" for role in ("weight", "bias", "running_mean", "running_var")]
        node = b"".join(part(1, each) for each in (at, *names)) + part(2, f"{name}.out") + part(3, f"/{name}/Norm")
        node += part(4, "BatchNormalization") + attribute("epsilon", eps) + attribute("momentum", momentum)
        graph += part(1, node)
        graph += b"".join(part(5, tensor(each, held[each.rpartition(".")[2]], typed=typed)) for each in names)
        at = f"{name}.out"
    return part(1, 8) + part(7, graph + part(2, "graph"))
