"""What part of the run each layer plays: in a network that is trained, beside it, or in none that is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from bnmonitor.dataflow import tensors_of
from bnmonitor.sharding import unwrapped

_NORMS = ("NativeBatchNormBackward", "CudnnBatchNormBackward", "MiopenBatchNormBackward", "SyncBatchNormBackward")
_LEAF = "AccumulateGrad"


def auxiliary(models: Mapping[str, nn.Module], modules: Sequence[nn.Module], trained: set[int]) -> tuple[str, ...]:
    """Name the sub-network that each layer belongs to, if none of its parameters is trained; else empty.

    The largest such part counts. It has parameters besides those of normalization layers, and is not all there is.

    Args:
        models: The models by prefix.
        modules: The layers.
        trained: ``id`` of every parameter in an optimizer.
    """
    layers = {id(m) for m in modules}
    found: dict[int, str] = {}
    alone = len(models) == 1

    def walk(module: nn.Module, path: str, root: bool) -> None:
        inside = {id(m): m for m in module.modules()}
        if not root and not any(id(p) in trained for p in module.parameters()):
            if any(m._parameters and i not in layers for i, m in inside.items()):
                found.update(dict.fromkeys(inside, path))
            return
        for name, child in module.named_children():
            walk(child, f"{path}.{name}" if path else name, False)

    for prefix, model in models.items():
        walk(model, prefix, alone)
    return tuple(unwrapped(found.get(id(m), "")) for m in modules)


class Strays:
    """Finds normalization layers that ran and are part of no model, in the autograd graphs of sampled steps.

    A layer is known by its gamma, which is no model's parameter; one without is not seen.

    Args:
        models: The models by prefix.
    """

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        self._models = models
        self._found: dict[tuple[int, str], set[int]] = {}

    def walk(self, outputs: Any) -> None:
        """Look through the graph behind a step's loss or outputs."""
        names = {
            id(p): ".".join(part for part in (prefix, name.rpartition(".")[0]) if part)
            for prefix, model in self._models.items()
            for name, p in model.named_parameters()
        }
        for node in _nodes(t.grad_fn for t in tensors_of(outputs)):
            gamma = _gamma(node)
            if gamma is not None and id(gamma) not in names:
                self._found.setdefault((gamma.numel(), _owner_above(node, names)), set()).add(id(gamma))

    def known(self, trained: set[int]) -> tuple[str, ...]:
        """Describe what was found, one text for each; layers that an optimizer trains are of a model not watched.

        Args:
            trained: ``id`` of every parameter in an optimizer.
        """
        return tuple(
            f"{channels} channels" + (f", behind {owner}" if owner else "")
            for (channels, owner), gammas in self._found.items()
            if gammas - trained
        )


def _nodes(ends: Iterable[Any]) -> Iterable[Any]:
    """Every node of the graph behind some ends."""
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
    # A gamma that is made of something else, as by a hypernetwork, has a node of its own there.
    return gamma.variable if gamma is not None and type(gamma).__name__ == _LEAF else None


def _owner_above(node: Any, names: Mapping[int, str]) -> str:
    """Name of the module whose parameters are nearest upstream."""
    source = node.next_functions[0][0]
    for above in _nodes([source]):
        if type(above).__name__ == _LEAF and id(above.variable) in names:
            return names[id(above.variable)]
    return ""
