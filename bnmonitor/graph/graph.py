"""The autograd graph of one step, read as a network: operations, what is upstream of them, and what reads them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

from bnmonitor.window import Operation, Role

_KINDS = {"addmm": "linear", "mm": "linear", "maxpool2dwithindices": "maxpool2d", "mkldnnrnnlayer": "rnn"}
_WITH_WEIGHTS = re.compile(r".*Conv(olution|\dd)|Addmm|MmB|Bmm|Linear|Embedding|.*Rnn|.*Lstm|.*Gru")
_NORM = re.compile(r".*(Batch|Group|Layer|Rms|RMS|Instance)Norm")
_SHAPE = re.compile(
    r".*(View|Reshape|Squeeze|Transpose|Permute|Clone|ToCopy|Slice|Select|Expand|Alias|AsStrided|Split|Unbind|Shuffle)"
    r"|Unsafe|TBackward|Unfold|Flip|RegisterPostBackward"
)
_POOLING = re.compile(r".*Pool|Mean|Amax|Upsample|GridSampler")
_NONLINEAR = re.compile(
    r"(?i:.*(elu|silu|mish|hardtanh|hardswish|sigmoid|tanh|soft|glu|threshold|shrink))"
    r"|Clamp|Maximum|Minimum|(Abs|Exp|Expm1|Log|Log1p|Log2|Pow|Sqrt|Rsqrt|Sign)B"
)
_ROLES: tuple[tuple[re.Pattern[str], Role], ...] = (
    (re.compile(r".*Dropout"), "dropout"),
    (_NORM, "norm"),
    (_WITH_WEIGHTS, "weights"),
    (_NONLINEAR, "nonlinearity"),
    (_POOLING, "pooling"),
    (_SHAPE, "shape"),
)
_PARAMETER = "AccumulateGrad"
WHOLE = (_ConvNd, nn.Linear, nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.LayerNorm, nn.GroupNorm)
"""Modules that are one operation, however many nodes it takes."""


def tensors_of(value: Any) -> list[Tensor]:
    """Return every tensor with a graph in a nest of mappings and sequences."""
    if isinstance(value, Tensor):
        return [value] if value.grad_fn is not None else []
    if isinstance(value, Mapping):
        return [t for v in value.values() for t in tensors_of(v)]
    if isinstance(value, list | tuple):
        return [t for v in value for t in tensors_of(v)]
    return []


def kind_of(node: Any) -> str:
    """Return the name of a node's operation, in lower case."""
    name = re.sub(r"Backward\d*$", "", type(node).__name__).lower()
    # ReLU6 is a clamp from 0 to 6.
    return "relu6" if name == "hardtanh" and getattr(node, "_saved_min_val", None) == 0 else name


def role_of(node: Any) -> Role:
    """Return the role of a node as a normalization sees it, by the name of the node alone."""
    name = type(node).__name__
    return next((role for pattern, role in _ROLES if pattern.match(name)), "other")


@dataclass(frozen=True)
class Origin:
    """The calls without a graph that made a tensor.

    Attributes:
        normalized: Whether a layer in training mode is among them.
        weighted: Whether an operation with weights, or a layer, is among them.
        path: A number for the modules in their order: equal for the same ones; 0 for none.
    """

    normalized: bool = False
    weighted: bool = False
    path: int = 0


DATA = Origin()
"""Of a tensor that no call in the step is known to have made."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """One call of a module in a sampled step.

    Attributes:
        module: The module.
        name: Its dotted path.
        top: Node of its output; None without a graph.
        bottom: Node of its input; None where the input has no graph.
        shape: Shape of its input.
        features: Size of the last axis of its output.
        training: Whether it was in training mode.
        graded: Whether gradients were on. A call without a graph then has nothing to train in it or before it.
        origin: What its input, if that has no graph, came from within the step.
    """

    module: nn.Module
    name: str
    top: Any
    bottom: Any
    shape: tuple[int, ...]
    features: int
    training: bool
    graded: bool = True
    origin: Origin = DATA


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """The operation at a node, and where its data comes from.

    Attributes:
        operation: The operation.
        below: The node that the data comes from; None at the input, and at a join.
        branches: The nodes that a join reads.
        layer: Position of the layer, if the node is one of the table's.
        module: The module that the node belongs to, if known.
        call: The call that ends at the node, if known.
    """

    operation: Operation
    below: Any = None
    branches: tuple[Any, ...] = ()
    layer: int | None = None
    module: nn.Module | None = None
    call: Call | None = None


_INPUT = Step(operation=Operation(kind="input", role="input"))


class Graph:
    """The graph between the ends of a step and its inputs.

    Args:
        ends: Nodes to walk from.
        layers: Position of each layer of the table, by ``id(module)``.
        calls: Calls of layers and of other modules without children, in their order.
        owners: Name and module of each parameter's owner, by ``id(parameter)``.
    """

    def __init__(
        self,
        ends: Iterable[Any],
        layers: Mapping[int, int],
        calls: Sequence[Call],
        owners: Mapping[int, tuple[str, nn.Module]],
    ) -> None:
        self._owners = owners
        self.readers: dict[Any, list[Any]] = {}
        """The nodes that read each node's result."""
        self._tops = {c.top: (layers[id(c.module)], c) for c in calls if id(c.module) in layers and c.top is not None}
        self._leaves = {c.top: c for c in calls if id(c.module) not in layers and c.top not in (None, c.bottom)}
        self._steps: dict[Any, Step] = {}
        self._weights: set[Any] = set()
        self.order = self._sort(ends)
        """Every node, each after those it reads."""
        for node in self.order:
            if self._made_of_weights(node):
                self._weights.add(node)

    def at(self, node: Any) -> Step:
        """Return the step at a node; the network's input for None, and for a node made of parameters only."""
        if node is None or node in self._weights or type(node).__name__ == _PARAMETER:
            return _INPUT
        if node not in self._steps:
            self._steps[node] = self._look(node)
        return self._steps[node]

    def is_weight(self, node: Any) -> bool:
        """Whether a node is a parameter, or made of parameters only."""
        return node in self._weights

    def upstream(self, node: Any) -> Iterator[Step]:
        """Yield the steps upstream of a node, itself included, to the first join or the input, which is the last."""
        while True:
            step = self.at(node)
            yield step
            if step.branches or step.operation.role == "input":
                return
            node = step.below

    def parameters(self, node: Any) -> Iterator[tuple[str, nn.Module]]:
        """Yield the owners of the parameters that a node reads."""
        for child, _ in node.next_functions:
            while child is not None and child in self._weights:
                if type(child).__name__ == _PARAMETER:
                    owner = self._owners.get(id(child.variable))
                    if owner is not None:
                        yield owner
                child = next((c for c, _ in child.next_functions if c is not None), None)

    # -- the parts -----------------------------------------------------------------------------------------------------

    def _sort(self, ends: Iterable[Any]) -> list[Any]:
        order: list[Any] = []
        seen: set[Any] = set()
        stack = [(node, False) for node in ends]
        while stack:
            node, done = stack.pop()
            if done:
                order.append(node)
            elif node not in seen:
                seen.add(node)
                stack.append((node, True))
                for child, _ in node.next_functions:
                    if child is not None:
                        self.readers.setdefault(child, []).append(node)
                        stack.append((child, False))
        return order

    def _made_of_weights(self, node: Any) -> bool:
        name = type(node).__name__
        if name == _PARAMETER:
            return isinstance(node.variable, nn.Parameter)
        children = [child for child, _ in node.next_functions]
        known = [child for child in children if child is not None]
        operation = _WITH_WEIGHTS.match(name) or _NORM.match(name)
        if operation and len(known) < max(2, len(children)):
            return False  # its input has no graph, where a product of weights has one for each operand
        return bool(known) and all(child in self._weights for child in known)

    def _data(self, node: Any) -> list[Any]:
        """The nodes that a node reads data from, each once."""
        read = (child for child, _ in node.next_functions if child is not None and child not in self._weights)
        return list(dict.fromkeys(read))

    def _look(self, node: Any) -> Step:
        if node in self._tops:
            layer, call = self._tops[node]
            norm = Operation(kind="batchnorm", role="norm", name=call.name)
            return Step(operation=norm, below=call.bottom, layer=layer, module=call.module, call=call)
        call_here = self._leaves.get(node)
        return (self._of_module(call_here) if call_here is not None else None) or self._of_node(node, call_here)

    def _of_module(self, call: Call) -> Step | None:
        """The step of a module without children, where its own node does not show what it does."""
        name = type(call.module).__name__.lower()
        role: Role
        if isinstance(call.module, _DropoutNd):
            role = "dropout"
        elif isinstance(call.module, WHOLE):
            role = "norm" if "norm" in name else "weights"
            name = "convolution" if isinstance(call.module, _ConvNd) else name
        elif call.module._parameters or self._data(call.top) in ([], [call.bottom]):
            return None
        else:
            role = self._role_within(call)
        operation = Operation(kind=name, role=role, name=call.name)
        return Step(operation=operation, below=call.bottom, module=call.module, call=call)

    def _role_within(self, call: Call) -> Role:
        """The role that several operations of one module have together."""
        inside: list[Any] = []
        stack = [call.top]
        while stack and len(inside) < 64:
            node = stack.pop()
            if node is not call.bottom and node not in inside:
                inside.append(node)
                stack += self._data(node)
        roles = {"nonlinearity" if len(self._data(node)) > 1 else role_of(node) for node in inside}
        order: tuple[Role, ...] = ("nonlinearity", "dropout", "pooling", "other")
        return next((role for role in order if role in roles), "shape")

    def _of_node(self, node: Any, call: Call | None) -> Step:
        kind, role, data = kind_of(node), role_of(node), self._data(node)
        name, module = ("", None) if call is None else (call.name, call.module)
        operation = Operation(kind=_KINDS.get(kind, kind), role=role, name=name)
        if len(data) > 1:
            meeting = self._meeting(data)
            if meeting is None:
                return Step(operation=replace(operation, role="join"), branches=tuple(data))
            # The branches differ by no weights: the join is a function of their common input, such as x * sigmoid(x).
            return Step(operation=replace(operation, role="nonlinearity"), below=meeting, module=module)
        if module is None and role in ("weights", "norm"):
            name, module = next(self.parameters(node), ("", None))
            operation = replace(operation, name=name)
        return Step(operation=operation, below=data[0] if data else None, module=module, call=call)

    def _meeting(self, data: Sequence[Any]) -> Any:
        """The node that all branches come from by operations without weights; None if they have none in common."""
        paths = [self._plain(node) for node in data]
        return next((node for node in paths[0] if all(node in path for path in paths[1:])), None)

    def _plain(self, node: Any) -> list[Any]:
        """Nodes from one upstream to the first that has weights, is a layer, a join or the input, all included."""
        path = [node]
        while role_of(node) not in ("weights", "norm") and node not in self._tops:
            data = self._data(node)
            if len(data) != 1:
                break
            node = data[0]
            path.append(node)
        return path
