"""Writes the few parts of an ONNX file that hold normalization layers, without the onnx package."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import torch
from torch import Tensor, nn

ROLES = ("weight", "bias", "running_mean", "running_var")
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


def tensor(name: str, values: Tensor, *, typed: bool = False, beside: str = "") -> bytes:
    raw = values.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    head = b"".join(part(1, size) for size in values.shape) + part(2, TYPES[values.dtype]) + part(8, name)
    if beside:
        return head + part(13, part(1, "location") + part(2, beside)) + part(14, 1)
    return head + part(4 if typed else 9, raw)


def attribute(name: str, value: float) -> bytes:
    return part(5, part(1, name) + varint(2 << 3 | 5) + struct.pack("<f", value))


def layer_of(layer: nn.Module) -> dict[str, Tensor]:
    return layer_in(layer.state_dict(prefix="x."), "x")


def layer_in(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {role: state[f"{name}.{role}"] for role in ROLES}


def model(
    layers: Mapping[str, Mapping[str, Tensor]],
    *,
    eps: float = 1e-5,
    momentum: float = 0.9,
    typed: bool = False,
    beside: str = "",
) -> bytes:
    """A graph of a BatchNormalization for each layer, whose tensors are initializers; ``beside`` holds the means."""
    graph, at = b"", "input"
    for name, held in layers.items():
        names = {role: f"{name}.{role}" for role in ROLES}
        node = b"".join(part(1, each) for each in (at, *names.values()))
        node += part(2, f"{name}.out") + part(3, f"/{name}/Norm") + part(4, "BatchNormalization")
        graph += part(1, node + attribute("epsilon", eps) + attribute("momentum", momentum))
        for role, each in names.items():
            graph += part(5, tensor(each, held[role], typed=typed, beside=beside if role == "running_mean" else ""))
        at = f"{name}.out"
    return part(1, 8) + part(7, graph + part(2, "graph"))
