"""At how many places of the network a layer is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bnmonitor.graph.convolutions import Above
from bnmonitor.graph.graph import Call, Graph

MOST_CALLS = 8
"""Most calls of a layer that are compared."""

MOST_NODES = 4096
"""Most nodes that a comparison of two calls looks at; two calls with more before them count as one place."""


def places_of(graph: Graph, layer: int, calls: Sequence[Call], above: Mapping[Any, Above]) -> int:
    """Count the places of the network that a layer is called at.

    Two calls are at one place if the same operations lie between the data and both. They are as well if one of them
    gets the data itself, and the other what some other part of the network has made: a discriminator of real and
    generated images is one network with two inputs. But not if the layer itself is in that part: then it follows
    itself, as in a loop.

    Args:
        graph: The graph of the step.
        layer: Position of the layer.
        calls: Its calls in training mode that have a graph.
        above: What is upstream of each node.
    """
    found: dict[int, Call] = {}
    for call in calls[:MOST_CALLS]:
        path = call.origin.path if call.bottom is None else above.get(call.bottom, Above()).path
        if path not in found and not any(_one_place(graph, layer, call, other) for other in found.values()):
            found[path] = call
    return max(1, len(found))


def _one_place(graph: Graph, layer: int, one: Call, other: Call) -> bool:
    if any(_follows_itself(graph, layer, call.bottom) for call in (one, other)):
        return False
    return _ends_alike(graph, one.bottom, other.bottom)


def _follows_itself(graph: Graph, layer: int, bottom: Any) -> bool:
    """Whether the layer is upstream of a node."""
    seen: set[Any] = set()
    stack = [bottom]
    while stack and len(seen) < MOST_NODES:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        step = graph.at(node)
        if step.layer == layer:
            return True
        stack += step.branches or (step.below,)
    return False


def _ends_alike(graph: Graph, one: Any, other: Any) -> bool:
    """Whether the same operations lie before two nodes, up to the data before the nearer one."""
    seen: set[Any] = set()
    stack = [(one, other)]
    while stack and len(seen) < MOST_NODES:
        pair = stack.pop()
        if pair in seen:
            continue
        seen.add(pair)
        (first, a), (second, b) = (_operation(graph, node) for node in pair)
        if first == "input" or second == "input":
            continue
        if first != second or len(a) != len(b):
            return False
        stack += zip(a, b, strict=True)
    return True


def _operation(graph: Graph, node: Any) -> tuple[str, tuple[Any, ...]]:
    """The name of the nearest operation upstream that is more than a change of shape, and the nodes that it reads."""
    for step in graph.upstream(node):
        operation = step.operation
        if operation.role not in ("shape", "dropout", "other"):
            break
    if operation.role == "input":
        return "input", ()
    return operation.name or operation.kind, step.branches or (step.below,)
