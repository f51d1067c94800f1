"""Where the layers sit in the network: what feeds each, what reads it, and which lie in one chain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

Role = Literal["input", "weights", "norm", "nonlinearity", "dropout", "pooling", "shape", "join", "other"]
"""What an operation is to a normalization; ``weights`` are a convolution, a linear map, an embedding and their like."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation of the network.

    Attributes:
        kind: ``convolution``, ``linear``, ``relu``, ``add``, ``batchnorm``, ``dropout``, ...; ``input`` for the
            network's input, and ``frozen`` for a part before it that has no graph, as nothing in it is trained.
        role: What it is to a normalization.
        name: Dotted path of the module it belongs to; empty where it belongs to none that is known.
    """

    kind: str
    role: Role
    name: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.kind})" if self.name else self.kind


@dataclass(frozen=True, kw_only=True)
class Producer(Operation):
    """The operation that feeds a layer: the nearest upstream that has weights, normalizes or joins.

    Attributes:
        features: Size of what it puts out: channels of a convolution, columns of a linear map; 0 where unknown.
        bias: Whether it adds a bias that is trained.
        shared: Whether something besides a normalization reads what it puts out.
        features_last: Whether its features are the last axis of the layer's input ``[N, ?, ?]``, not the one that is
            normalized.
        depthwise: Whether each of its features reads one channel of many.
    """

    features: int = 0
    bias: bool = False
    shared: bool = False
    features_last: bool = False
    depthwise: bool = False


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one layer sits in the network.

    Attributes:
        blind: Why nothing is known; empty if all that follows is.
        order: Position of its first call among all calls of layers in the step.
        calls: How often it was called in the step, recomputations left out.
        places: From how many different ways through the network it got its inputs: 1 for one encoder with two inputs,
            2 for a block that follows itself, or one norm after two convolutions.
        shape: Shape of its input.
        producers: What feeds it; more than one if it is called at several places.
        between: What lies between the producer and the layer at its first call, in the order of the data's flow.
        readers: What reads its output, changes of shape looked through.
        predecessors: Nearest layers upstream, by position.
        follows: The layer upstream from which no skip connection or other join leads past it, by position; None if
            there is none.
        joins: Skip connections and other joins between the layers upstream and it, on the path with most of them.
        root: Whether no other layer is upstream.
        depth: Layers upstream on the longest path.
        distance: Operations with weights between the network's input and it, on the shortest path; -1 where a
            part before it has no graph.
        dropouts: Dropout upstream with nothing but linear operations between it and the layer.
        dropout: The largest probability among these; 0 if there is none or it is unknown.
        per_sample: Whether, in training mode, gradients with respect to the network's input that keep their own graph
            went through it, as a gradient penalty takes them.
    """

    blind: str = ""
    order: int = 0
    calls: int = 0
    places: int = 1
    shape: tuple[int, ...] = ()
    producers: tuple[Producer, ...] = ()
    between: tuple[Operation, ...] = ()
    readers: tuple[Operation, ...] = ()
    predecessors: tuple[int, ...] = ()
    follows: int | None = None
    joins: int = 0
    root: bool = False
    depth: int = 0
    distance: int = 0
    dropouts: tuple[Operation, ...] = ()
    dropout: float = 0.0
    per_sample: bool = False

    @property
    def activation(self) -> Operation | None:
        """The nonlinearity that the layer's input comes straight from, changes of shape looked through."""
        last = next((operation for operation in reversed(self.between) if operation.role != "shape"), None)
        return last if last is not None and last.role == "nonlinearity" else None


@dataclass(frozen=True, kw_only=True)
class Bare:
    """A convolution that a nonlinearity follows with no normalization between.

    Attributes:
        name: Dotted path of the convolution; empty where unknown.
        nonlinearity: What follows it.
        first: Whether it is the first operation with weights after the network's input.
        near: The layer nearest to it upstream, or else the first of the network; by position.
    """

    name: str
    nonlinearity: str
    first: bool
    near: int


@dataclass(frozen=True, kw_only=True)
class Structure:
    """What the autograd graph of one step shows of each layer; None where it could not be seen.

    Attributes:
        producer_trains: Whether the operation that feeds the layer has parameters that get a gradient.
        consumers: Names of the operations that read the layer's output, such as ``relu`` or ``add``.
        places: Where each layer sits.
        names: Names of the layers.
        bare: Convolutions without a normalization.
        normalized: Number of convolutions with one.
    """

    producer_trains: tuple[bool | None, ...]
    consumers: tuple[tuple[str, ...] | None, ...]
    places: tuple[Place, ...] = ()
    names: tuple[str, ...] = ()
    bare: tuple[Bare, ...] = ()
    normalized: int = 0

    @classmethod
    def unknown(cls, names: Sequence[str], why: str) -> Structure:
        """Return the structure of layers of which nothing is known."""
        nothing = (None,) * len(names)
        blind = (Place(blind=why),) * len(names)
        return cls(producer_trains=nothing, consumers=nothing, places=blind, names=tuple(names))

    def relu_only(self) -> Tensor:
        """``[L]`` bool: every reader of the layer's output is a ReLU or ReLU6, which let nothing negative through."""
        return self._relu_only

    @cached_property
    def _relu_only(self) -> Tensor:
        return torch.tensor([bool(c) and set(c or ()) <= {"relu", "relu6"} for c in self.consumers], device="cpu")

    def roots(self) -> Tensor:
        """``[L]`` bool: no other layer is upstream, so that what the layer sees is the data."""
        return self._roots

    @cached_property
    def near_input(self) -> Tensor:
        """``[L]`` bool: roots with at most one operation with weights between the network's input and them."""
        near = [0 <= place.distance <= 1 for place in self.places]
        return self._roots & torch.tensor(near, dtype=torch.bool, device="cpu")

    @cached_property
    def behind_bias(self) -> tuple[int, ...]:
        """The layers with a bias in an operation that feeds them."""
        return tuple(i for i, place in enumerate(self.places) if any(p.bias for p in place.producers))

    @cached_property
    def _roots(self) -> Tensor:
        return torch.tensor([place.root for place in self.places], dtype=torch.bool, device="cpu")

    def completed(self, older: Structure) -> Structure:
        """Return this structure with what only an older one of the same layers saw."""
        if older.names != self.names or not any(place.blind for place in self.places):
            return self
        old = [bool(place.blind) for place in self.places]

        def filled(name: str) -> tuple[Any, ...]:
            pairs = zip(old, getattr(self, name), getattr(older, name), strict=True)
            return tuple(then if blind else now for blind, now, then in pairs)

        trains = zip(self.producer_trains, filled("producer_trains"), strict=True)
        bare = {b.name: b for b in (*older.bare, *self.bare)}
        return replace(
            self,
            producer_trains=tuple(then if now is None else now for now, then in trains),
            consumers=filled("consumers"),
            places=filled("places"),
            bare=tuple(bare.values()),
            normalized=max(self.normalized, older.normalized),
        )

    @cached_property
    def chains(self) -> tuple[tuple[int, ...], ...]:
        """The longest runs of layers in which each follows the one before without a join, by position."""
        follows = {i: place.follows for i, place in enumerate(self.places)}
        inner = set(follows.values())
        found = []
        for end in follows:
            chain, at = [end], follows[end]
            while at is not None and at not in chain:
                chain.append(at)
                at = follows[at]
            if end not in inner and len(chain) > 1:
                found.append(tuple(reversed(chain)))
        return tuple(found)

    def __str__(self) -> str:
        """One line a layer in the order of execution: what feeds it, the layer, what reads it."""
        order = sorted(range(len(self.places)), key=lambda i: (bool(self.places[i].blind), self.places[i].order))
        joined = {i for i in order if not self.places[i].blind and self.places[i].follows is None}
        return "\n".join(self._line(i, head=i in joined) for i in order)

    def _line(self, layer: int, *, head: bool) -> str:
        place, name = self.places[layer], self.names[layer] if self.names else f"layer {layer}"
        if place.blind:
            return f"?  {name}: {place.blind}"
        lead = "●  " if place.root else "├─ " if head else "│  "
        fed = [" | ".join(map(str, place.producers)), *(str(op) for op in place.between if op.role != "shape")]
        read = " | ".join(map(str, place.readers)) or "nothing"
        times = f" ×{place.calls}" if place.calls > 1 else ""
        return f"{lead}{' → '.join(fed)} → [{name}{times}] → {read}"
