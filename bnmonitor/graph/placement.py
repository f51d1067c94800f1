"""Describes where each layer is in the network, from the graph of a step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.autograd.function import BackwardCFunction
from torch.nn.modules.conv import _ConvNd

from bnmonitor.graph.convolutions import Above, bare_convolutions
from bnmonitor.graph.graph import Call, Graph, Step, kind_of, role_of
from bnmonitor.graph.outside import outside
from bnmonitor.graph.places import places_of
from bnmonitor.window import Operation, Place, Producer, Structure

_GATES = ("mul", "div")
"""Joins that scale one branch by the other, which are not skip connections."""

_NODES_IN_A_NORM = 4


@dataclass(frozen=True)
class _Found:
    """What the graph shows of one layer.

    Attributes:
        place: Where the layer is.
        producer_trains: Whether a nearest operation with parameters before it is trained; None: unknown.
        consumers: Kinds of the operations that read its output; None: unknown.
    """

    place: Place
    producer_trains: bool | None
    consumers: tuple[str, ...] | None


def structure_of(
    graph: Graph,
    calls: Sequence[Call],
    layers: Mapping[int, int],
    *,
    names: Sequence[str] = (),
    doubled: Mapping[int, bool] | None = None,
    recomputed: Collection[int] = (),
) -> Structure:
    """Describe where each layer is in the network.

    Args:
        graph: The graph of the step.
        calls: Calls of layers and other modules, in the order they came.
        layers: Position of each layer by ``id(module)``.
        names: Names of the layers.
        doubled: By ``id(module)``, whether the backward computed a gradient through the layer that has a graph itself.
        recomputed: The modules that the backward ran again, by ``id(module)``.
    """
    above, mine = _above(graph), _calls_of(calls, layers)
    shared = _shared(graph, calls, layers)
    order = {call: position for position, call in enumerate(c for c in calls if id(c.module) in layers)}
    apart = outside(calls, layers, recomputed)
    found: list[_Found] = []
    for i in range(len(layers)):
        seen = [call for call in mine.get(i, ()) if call.top is not None]
        if not seen:
            found.append(_unseen(mine.get(i, ())))
            continue
        before = set(map(id, calls[: calls.index(seen[0])]))
        here = above.get(seen[0].bottom, Above())
        came = seen[0].origin
        # Without a graph, an operation with weights before the layer is not trained, and hides what is before it.
        behind_frozen = here.weighted or came.weighted or any(id(c) in before for c in apart.frozen)
        hidden = here.opaque and any(id(c) in before for c in apart.hidden)
        each = [_place(graph, call, above, shared, behind_frozen) for call in seen]
        read = [node for call in seen for node in _readers(graph, _norm_at(call.top) or call.top)]
        place = replace(
            each[0],
            order=order[seen[0]],
            calls=len(seen),
            producers=tuple(dict.fromkeys(producer for place in each for producer in place.producers)),
            readers=tuple(dict.fromkeys(graph.at(node).operation for node in read)),
            root=each[0].root and not (here.normalized or came.normalized or hidden),
            places=places_of(graph, i, [call for call in seen if call.training], above),
            distance=-1 if behind_frozen else each[0].distance,
            per_sample=bool(doubled and doubled.get(id(seen[0].module)) and any(above[c.top].wanted for c in seen)),
        )
        consumers = tuple(sorted({kind_of(node) for node in read})) if read else None
        found.append(_Found(place, _trains(graph, seen[0].bottom), consumers))
    bottoms = {c.bottom for cs in mine.values() for c in cs} - {None}
    bare, normalized = bare_convolutions(graph, above, bottoms)
    return Structure(
        producer_trains=tuple(each.producer_trains for each in found),
        consumers=tuple(each.consumers for each in found),
        places=tuple(each.place for each in found),
        names=tuple(names),
        bare=tuple(bare),
        normalized=normalized,
    )


def _unseen(calls: Sequence[Call]) -> _Found:
    """What is known of a layer without a graph in any of its calls."""
    # Nothing is frozen before a layer that normalizes the data themselves.
    frozen = bool(calls) and all(call.graded and call.origin.weighted for call in calls)
    trains = False if frozen else None
    return _Found(Place(blind=_why_blind(calls)), trains, None)


def _calls_of(calls: Sequence[Call], layers: Mapping[int, int]) -> dict[int, list[Call]]:
    """The calls of each layer, by its position."""
    mine: dict[int, list[Call]] = {}
    for call in calls:
        if id(call.module) in layers:
            mine.setdefault(layers[id(call.module)], []).append(call)
    return mine


def _why_blind(calls: Sequence[Call]) -> str:
    if not calls:
        return "not called in the sampled steps"
    if calls[0].training and not calls[0].graded:
        return "called without a graph, as in a reentrant checkpoint or under no_grad"
    mode = "" if calls[0].training else "in evaluation mode "
    return f"called {mode}without a graph: nothing in it or before it is trained"


def _above(graph: Graph) -> dict[Any, Above]:
    """What is upstream of every node, itself included."""
    known: dict[Any, Above] = {None: Above()}
    for node in graph.order:
        step = graph.at(node)
        role = step.operation.role
        if role == "input":
            wanted = type(node).__name__ == "AccumulateGrad" and not isinstance(node.variable, nn.Parameter)
            known[node] = Above(wanted=wanted)
            continue
        if step.branches:
            parts = [known.get(branch, known[None]) for branch in step.branches]
            known[node] = Above(
                layers=frozenset().union(*(p.layers for p in parts)),
                depth=max(p.depth for p in parts),
                distance=min(p.distance for p in parts),
                joins=max(p.joins for p in parts) + (step.operation.kind not in _GATES),
                wanted=any(p.wanted for p in parts),
                normalized=any(p.normalized for p in parts),
                weighted=any(p.weighted for p in parts),
                opaque=any(p.opaque for p in parts) or isinstance(node, BackwardCFunction),
                path=hash((step.operation.kind, *(p.path for p in parts))),
            )
            continue
        below = _after(step, node, known.get(step.below, known[None]))
        if step.layer is not None:
            known[node] = replace(below, layers=frozenset([step.layer]), depth=below.depth + 1, joins=0, pooled=False)
        elif role == "weights":
            known[node] = replace(below, distance=below.distance + 1)
        elif role == "pooling" and step.operation.kind.startswith(("adaptive", "mean")):
            known[node] = replace(below, pooled=True)
        else:
            known[node] = below
    return known


def _after(step: Step, node: Any, below: Above) -> Above:
    """What is upstream of a node, without what the node itself is."""
    operation = step.operation
    path = below.path
    if step.call is not None and step.call.bottom is None:
        origin = step.call.origin
        path = origin.path
        below = replace(below, normalized=origin.normalized, weighted=origin.weighted)
    if operation.role not in ("shape", "dropout", "other") or isinstance(node, BackwardCFunction):
        path = hash((operation.name or operation.kind, path))
    return replace(below, path=path, opaque=below.opaque or isinstance(node, BackwardCFunction))


def _place(graph: Graph, call: Call, above: Mapping[Any, Above], shared: set[str], behind_frozen: bool) -> Place:
    here = above.get(call.bottom, Above())
    between: list[Step] = []
    source = Step(operation=Operation(kind="input", role="input"))
    for step in graph.upstream(call.bottom):
        if step.operation.role in ("weights", "norm", "join", "input"):
            source = step
            break
        between.append(step)
    if behind_frozen and source.operation.role == "input":
        source = replace(source, operation=Operation(kind="frozen", role="input"))
    dropped = _dropouts(graph, call.bottom)
    return Place(
        shape=call.shape,
        producers=(_producer(graph, call, source, between, shared),),
        between=tuple(step.operation for step in reversed(between)),
        predecessors=tuple(sorted(here.layers)),
        follows=_followed(graph, call.bottom, above),
        joins=here.joins,
        root=not here.layers,
        depth=here.depth,
        distance=here.distance,
        dropouts=tuple(step.operation for step in dropped),
        dropout=max((float(getattr(step.module, "p", 0.0)) for step in dropped), default=0.0),
    )


def _producer(graph: Graph, call: Call, source: Step, between: Sequence[Step], shared: set[str]) -> Producer:
    operation, module = source.operation, source.module
    # What TorchScript has compiled keeps its parameters in a mapping without `get`.
    bias = None if module is None else dict(module._parameters.items()).get("bias")
    features = _features(source)
    return Producer(
        kind=operation.kind,
        role=operation.role,
        name=operation.name,
        features=features,
        bias=operation.role == "weights" and bias is not None and bias.requires_grad,
        shared=operation.name in shared,
        features_last=_features_last(graph, call, source, between, features),
        depthwise=isinstance(module, _ConvNd) and module.groups == module.in_channels > 1,
    )


def _features(source: Step) -> int:
    """How many features the output of an operation with weights has; 0 where unknown."""
    for name in ("out_channels", "out_features", "embedding_dim"):
        value = getattr(source.module, name, None)
        if isinstance(value, int):
            return value
    return source.call.features if source.call is not None else 0


def _features_last(graph: Graph, call: Call, source: Step, between: Sequence[Step], features: int) -> bool:
    """Whether the layer gets ``[N, L, C]`` unchanged from an operation on the last axis."""
    if len(call.shape) != 3 or source.operation.kind in ("convolution", "batchnorm"):
        return False
    if source.operation.role not in ("weights", "norm") or features != call.shape[2]:
        return False
    if features == call.shape[1] and any(_swaps(step) for step in between):
        return False
    # A map over time, as in an MLP-Mixer, gets a transposed input: there the last axis is meant to be another.
    return not any(_swaps(step) for step in graph.upstream(source.below))


def _swaps(step: Step) -> bool:
    return step.operation.kind in ("transpose", "permute")


def _dropouts(graph: Graph, node: Any) -> list[Step]:
    """Dropout upstream with only linear operations in between."""
    found = []
    for step in graph.upstream(node):
        if step.operation.role in ("nonlinearity", "norm", "join", "input"):
            break
        if step.operation.role == "dropout":
            found.append(step)
    return found


def _followed(graph: Graph, node: Any, above: Mapping[Any, Above]) -> int | None:
    """The layer upstream that every path goes through, but for the gates of a join."""
    while True:
        step = graph.at(node)
        if step.layer is not None or step.operation.role == "input":
            return step.layer
        if step.branches:
            if step.operation.kind not in _GATES:
                return None
            node = min(step.branches, key=lambda branch: above.get(branch, Above()).distance)
        else:
            node = step.below


def _trains(graph: Graph, node: Any) -> bool:
    """Whether one of the nearest operations with parameters upstream has a parameter that gets a gradient."""
    stack, seen = [node], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        step = graph.at(node)
        if step.operation.role == "input":
            if graph.is_weight(node):
                return True
        elif step.module is not None and step.operation.role in ("weights", "norm"):
            if any(p.requires_grad for p in step.module.parameters()):
                return True
        elif any(graph.is_weight(child) for child, _ in node.next_functions):
            return True
        elif step.operation.role not in ("weights", "norm"):
            stack += step.branches or (step.below,)
    return False


def _shared(graph: Graph, calls: Sequence[Call], layers: Mapping[int, int]) -> set[str]:
    """Names of the operations with weights that have another reader than a normalization."""
    found: set[str] = set()
    alone: Counter[str] = Counter()
    for call in (c for c in calls if id(c.module) in layers and c.top is not None):
        node, others = call.bottom, False
        for step in graph.upstream(call.bottom):
            others |= len(graph.readers.get(node, ())) > 1
            if step.operation.role in ("weights", "norm", "join", "input"):
                if others:
                    found.add(step.operation.name)
                else:
                    alone[step.operation.name] += 1
                break
            node = step.below
    times = Counter(call.name for call in calls)
    return found | {name for name, count in alone.items() if times[name] not in (0, count)}


def _norm_at(node: Any, depth: int = _NODES_IN_A_NORM) -> Any:
    """Return the normalization at or just below a node: a subclass may apply more on top of it."""
    while node is not None and depth:
        role = role_of(node)
        if role == "norm":
            return node
        if role == "weights":
            return None
        following = [n for n, _ in node.next_functions if n is not None and type(n).__name__ != "AccumulateGrad"]
        node, depth = (following[0] if following else None), depth - 1
    return None


def _readers(graph: Graph, node: Any) -> list[Any]:
    """The nodes that read a node's result, also through changes of shape and concatenations."""
    found: list[Any] = []
    for reader in graph.readers.get(node, ()):
        through = role_of(reader) == "shape" or kind_of(reader) in ("cat", "stack")
        found += (_readers(graph, reader) if through else []) or [reader]
    return found
