"""Calls of a step that its graph does not show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from bnmonitor.graph.graph import WHOLE, Call


@dataclass(frozen=True)
class Outside:
    """Calls without a graph of modules that have none in the whole step.

    Attributes:
        frozen: Those of operations with weights and layers that may be a part of the network before a layer.
        hidden: Those of layers in training mode that an operation with a backward of its own may have made.
    """

    frozen: tuple[Call, ...]
    hidden: tuple[Call, ...]


def outside(calls: Sequence[Call], layers: Mapping[int, int], recomputed: Collection[int]) -> Outside:
    """Find the calls that the graph does not show.

    A module that has a graph as well is not among them: its other calls are forwards beside the one that trains. Nor is
    a copy of modules with a graph, such as a teacher: it runs beside them, not before them.
    """
    shown = {id(c.module): c.module for c in calls if c.top is not None}
    dark = [c for c in calls if c.top is None and id(c.module) not in shown]
    dark = [c for c in dark if isinstance(c.module, WHOLE) or id(c.module) in layers]
    there = {id(c.module): c.module for c in dark}
    copied = not there.keys() & set(recomputed) and _kinds(there.values()) <= _kinds(shown.values())
    again = [c for c in dark if id(c.module) in layers and c.training]
    known = [c for c in again if id(c.module) in recomputed]
    return Outside(frozen=() if copied else tuple(dark), hidden=tuple(known or again))


def _kinds(modules: Iterable[nn.Module]) -> Counter[Any]:
    """How many modules there are of each class and each shape of parameters."""
    shapes = ((type(m), *(p.shape for p in m._parameters.values() if p is not None)) for m in modules)
    return Counter(shapes)
