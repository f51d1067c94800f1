"""Finds convolutions that no normalization follows, in the graph of a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bnmonitor.graph.graph import Graph
from bnmonitor.window import Bare

_BOUNDED = ("sigmoid", "tanh", "softmax", "logsoftmax", "hardsigmoid")
"""Nonlinearities that end a network, or open and close a gate."""


@dataclass(frozen=True)
class Above:
    """What is upstream of a node.

    Attributes:
        layers: The nearest layers.
        depth: The number of layers on the longest way from the input.
        distance: The number of operations with weights since the input, on the shortest way.
        joins: The number of skip connections since the nearest layer.
        pooled: Whether a global pooling came since the nearest layer.
        wanted: Whether the network's input itself gets a gradient.
        normalized: Whether the input comes from a layer in training mode that ran without a graph.
        weighted: Whether it comes from an operation with weights that ran without a graph.
        opaque: Whether an operation with a backward of its own, as a reentrant checkpoint, may hide layers.
        path: A number for the operations on the way from the input: equal for the same ones.
    """

    layers: frozenset[int] = frozenset()
    depth: int = 0
    distance: int = 0
    joins: int = 0
    pooled: bool = False
    wanted: bool = False
    normalized: bool = False
    weighted: bool = False
    opaque: bool = False
    path: int = 0


def bare_convolutions(graph: Graph, above: Mapping[Any, Above], bottoms: set[Any]) -> tuple[list[Bare], int]:
    """Return the convolutions that a nonlinearity follows without a normalization, and the number of those with one.

    Args:
        graph: The graph of the step.
        above: What is upstream of each node.
        bottoms: Nodes that the layers read from.
    """
    bare: dict[Any, Bare] = {}
    normalized: set[Any] = set()
    for node in graph.order:
        step = graph.at(node)
        if step.operation.kind != "convolution" or above.get(step.below, Above()).pooled:
            continue  # after a global pooling it is part of a gate or of the head
        convolution = step.operation.name or node  # one that is called several times counts once
        kinds = _followers(graph, node, bottoms)
        if "norm" in kinds:
            normalized.add(convolution)
        if not kinds or "norm" in kinds or kinds & {*_BOUNDED}:
            continue
        near = above.get(step.below, Above())
        bare[convolution] = Bare(
            name=step.operation.name,
            nonlinearity=min(kinds),
            first=not near.distance,
            near=max(near.layers, default=0),
        )
    return [each for convolution, each in bare.items() if convolution not in normalized], len(normalized)


def _followers(graph: Graph, node: Any, bottoms: set[Any]) -> set[str]:
    """Which nonlinearities come directly after a node, and ``norm`` if a normalization does."""
    kinds: set[str] = set()
    stack, seen = [node], {node}
    while stack:
        at = stack.pop()
        if at in bottoms:
            kinds.add("norm")
        for reader in graph.readers.get(at, ()):
            role = graph.at(reader).operation.role
            if role == "nonlinearity":
                kinds.add(graph.at(reader).operation.kind)
            elif role == "norm":
                kinds.add("norm")
            elif role in ("shape", "pooling", "dropout", "other") and reader not in seen:
                seen.add(reader)
                stack.append(reader)
    return kinds
