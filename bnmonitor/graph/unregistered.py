"""Finds normalization layers that ran and belong to no model of the monitor, in the autograd graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from bnmonitor.graph.graph import tensors_of
from bnmonitor.layers import ANY_NORM, kind_of

_NORMS = ("NativeBatchNormBackward", "CudnnBatchNormBackward", "MiopenBatchNormBackward", "SyncBatchNormBackward")

_LEAF = "AccumulateGrad"


class UnregisteredNorms:
    """Finds normalization layers that ran and are part of no model, in the autograd graphs of sampled steps.

    It recognizes such a layer by its gamma, which is not a parameter of any model, so a layer without gamma is missed.

    Args:
        models: The models by prefix.
    """

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        self._models = models
        self.functional: dict[str, str] = {}
        """What modules of the models are that called a batch normalization and are no layer, by name."""
        self._found: dict[tuple[int, str], set[int]] = {}

    def walk(self, outputs: Any) -> None:
        """Search the graph behind a step's loss or outputs."""
        owners = {
            id(p): module
            for model in self._models.values()
            for module in model.modules()
            for p in module._parameters.values()
            if p is not None and kind_of(module) is None and not isinstance(module, ANY_NORM)
        }
        names = {
            id(p): ".".join(part for part in (prefix, name.rpartition(".")[0]) if part)
            for prefix, model in self._models.items()
            for name, p in model.named_parameters()
        }
        for node in _nodes(t.grad_fn for t in tensors_of(outputs)):
            gamma = _gamma(node)
            if gamma is not None and id(gamma) not in names:
                self._found.setdefault((gamma.numel(), _owner_above(node, names)), set()).add(id(gamma))
            elif gamma is not None and id(gamma) in owners and names[id(gamma)]:
                owner = owners[id(gamma)]
                self.functional[names[id(gamma)]] = f"a class of its own, {type(owner).__name__}"

    def known(self, trained: set[int]) -> tuple[str, ...]:
        """Describe each layer found in one text, but for those that an optimizer trains: another model has them.

        Args:
            trained: ``id`` of every parameter in an optimizer.
        """
        return tuple(
            f"{channels} channels" + (f", behind {owner}" if owner else "")
            for (channels, owner), gammas in self._found.items()
            if gammas - trained
        )


def _nodes(ends: Iterable[Any]) -> Iterable[Any]:
    """Every node of the graph behind some ends, themselves included."""
    stack = [node for node in ends if node is not None]
    seen = set(stack)
    while stack:
        node = stack.pop()
        yield node
        for child, _ in node.next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                stack.append(child)


def _gamma(node: Any) -> Tensor | None:
    """The gamma of a normalization in training mode; None for anything else, and for one without."""
    if not type(node).__name__.startswith(_NORMS) or getattr(node, "_saved_training", True) is False:
        return None
    operands = [child for child, _ in node.next_functions]
    gamma = operands[1] if len(operands) > 1 else None
    # A gamma that is computed, as by a hypernetwork, has a node of another kind there.
    return gamma.variable if gamma is not None and type(gamma).__name__ == _LEAF else None


def _owner_above(node: Any, names: Mapping[int, str]) -> str:
    """Name of the module that has the nearest parameters upstream."""
    source = node.next_functions[0][0]
    for above in _nodes([source]):
        if type(above).__name__ == _LEAF and id(above.variable) in names:
            return names[id(above.variable)]
    return ""
