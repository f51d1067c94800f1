"""What the autograd graph of one step tells of each layer: what feeds it, and who reads its output."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from bnmonitor.frame import Structure

_SHAPE_ONLY = (
    "View",
    "Reshape",
    "Unsafe",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
    "Permute",
    "TBackward",
    "Clone",
    "ToCopy",
)
_PARAMETER = "AccumulateGrad"
_WITH_PARAMETERS = {"Convolution": 0, "Addmm": 1, "MmBackward": 0, "Embedding": -1, "Norm": 0}
"""Operations with parameters, and which of their operands is the input; the rest are weights. -1: none is."""


def tensors_of(value: Any) -> list[Tensor]:
    """Return every tensor with a graph in a nest of mappings and sequences."""
    if isinstance(value, Tensor):
        return [value] if value.grad_fn is not None else []
    if isinstance(value, Mapping):
        return [t for v in value.values() for t in tensors_of(v)]
    if isinstance(value, list | tuple):
        return [t for v in value for t in tensors_of(v)]
    return []


def trace(outputs: Iterable[Tensor], nodes: Mapping[int, Any], layers: int) -> Structure:
    """Walk the graph from the outputs of a step and describe each layer in it.

    Args:
        outputs: Tensors at the end of the step: the loss, or the model's outputs.
        nodes: ``grad_fn`` of the layers' outputs, by position of the layer; a layer that is missing took no part.
        layers: Number of layers.
    """
    readers: dict[Any, list[Any]] = {}
    stack: list[Any] = [t.grad_fn for t in outputs]
    seen = set(stack)
    while stack:
        node = stack.pop()
        for child, _ in node.next_functions:
            if child is None:
                continue
            readers.setdefault(child, []).append(node)
            if child not in seen:
                seen.add(child)
                stack.append(child)
    trains: list[bool | None] = [None] * layers
    consumers: list[tuple[str, ...] | None] = [None] * layers
    for layer, top in nodes.items():
        node = _norm_below(top)
        if node is None:
            continue
        trains[layer] = _trains(node.next_functions[0][0])
        if node in readers:
            consumers[layer] = tuple(sorted(set(_readers(node, readers))))
    return Structure(producer_trains=tuple(trains), consumers=tuple(consumers))


def _kind(node: Any) -> str:
    name = re.sub(r"Backward\d*$", "", type(node).__name__).lower()
    # ReLU6 is a clamp from 0 to 6.
    return "relu6" if name == "hardtanh" and getattr(node, "_saved_min_val", None) == 0 else name


def _is_shape(node: Any) -> bool:
    return any(word in type(node).__name__ for word in _SHAPE_ONLY)


def _norm_below(node: Any, depth: int = 4) -> Any:
    """Find the normalization at or just under a node: a subclass may apply more on top of it."""
    while node is not None and depth:
        name = type(node).__name__
        if "BatchNorm" in name:
            return node
        if any(word in name for word in _WITH_PARAMETERS):
            return None
        following = [n for n, _ in node.next_functions if n is not None and type(n).__name__ != _PARAMETER]
        node, depth = (following[0] if following else None), depth - 1
    return None


def _trains(node: Any) -> bool:
    """Whether the nearest operation with parameters upstream has one that gets a gradient."""
    stack, seen = [(node, False)], set()
    while stack:
        node, is_weight = stack.pop()
        if node is None or (node, is_weight) in seen:
            continue
        seen.add((node, is_weight))
        name = type(node).__name__
        if name == _PARAMETER:
            return True
        children = [child for child, _ in node.next_functions]
        # A weight may be made of others (weight_norm): all that is behind it counts.
        operand = None if is_weight else next((at for word, at in _WITH_PARAMETERS.items() if word in name), None)
        if operand is None:
            stack += [(child, is_weight) for child in children]
        else:
            stack += [(child, True) for at, child in enumerate(children) if at != operand]
    return False


def _readers(node: Any, readers: Mapping[Any, list[Any]]) -> list[str]:
    """Names of the operations that read a node's output, looking through changes of shape."""
    names: list[str] = []
    for reader in readers.get(node, ()):
        names += (_readers(reader, readers) if _is_shape(reader) else []) or [_kind(reader)]
    return names
