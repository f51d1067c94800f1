"""Hooks of a sampled step that record which module each operation of the autograd graph belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.dropout import _DropoutNd

from bnmonitor.graph.graph import DATA, WHOLE, Call, Graph, Origin, tensors_of
from bnmonitor.graph.placement import structure_of
from bnmonitor.layers import Hooks, full_name, recomputing
from bnmonitor.window import Structure


class Tracer:
    """Places hooks on every module without children but the layers for one step, and describes its graph at the end.

    Once every layer is described, it places hooks again only when a mode or a ``requires_grad`` has changed. What a
    step does not show, such as a network that trains every other step, is kept from the steps before.
    """

    def __init__(self) -> None:
        self.structure: Structure | None = None
        """The structure that the graphs have shown so far; None before the first."""
        self._flags: tuple[bool, ...] = ()
        self._watched: set[int] = set()
        self._hooks = Hooks()
        self._clear()

    def _clear(self) -> None:
        self._calls: list[Call] = []
        self._ends: list[Any] = []
        self._doubled: dict[int, bool] = {}
        self._recomputed: set[int] = set()
        self._made: dict[int, tuple[StorageWeakRef, Origin]] = {}
        self._names: dict[int, str] = {}
        self._owners: dict[int, tuple[str, nn.Module]] = {}

    def attach(self, layers: Sequence[nn.Module], models: Mapping[str, nn.Module]) -> None:
        """Place the hooks, and drop what was recorded and not described before."""
        self.detach()
        flags = _flags(models)
        if flags == self._flags and self.structure is not None and not any(p.blind for p in self.structure.places):
            return
        self._flags = flags
        self._watched = watched = {id(module) for module in layers}
        for prefix, model in models.items():
            by_path: dict[str, nn.Module] = {}
            for path, module in model.named_modules():
                by_path[path] = module
                if id(module) not in self._names:
                    self._names[id(module)] = full_name(prefix, path)
                    self._own(module, by_path, path, prefix)
                    simple = isinstance(module, WHOLE) or not any(module._modules.values())
                    if simple and id(module) not in watched:
                        self._hooks.on_forward(module, self.saw)
            self._hooks.on_forward(model, self._finished)

    def _own(self, module: nn.Module, by_path: Mapping[str, nn.Module], path: str, prefix: str) -> None:
        """Record the owner of each parameter of a module; those of a parametrization belong to its parent."""
        if module._parameters:
            owner = path.split(".parametrizations.")[0]
            name = full_name(prefix, owner)
            of = by_path.get(owner, module)
            self._owners |= {id(p): (name, of) for p in module._parameters.values() if p is not None}

    @property
    def seconds(self) -> float:
        """Time spent in the hooks."""
        return self._hooks.seconds

    @property
    def refused(self) -> bool:
        """Whether a module was given no hook."""
        return self._hooks.refused

    def detach(self) -> None:
        """Remove every hook, and release the graph."""
        self._hooks.remove()
        self._clear()

    def walk(self, outputs: Any) -> None:
        """Record the ends of a step's graph: its loss, or the model's outputs."""
        self._ends += [t.grad_fn for t in tensors_of(outputs)]

    def collect(self, layers: Sequence[nn.Module], names: Sequence[str]) -> None:
        """Describe the graph of the step that has just ended, and release it."""
        at = {id(module): i for i, module in enumerate(layers)}
        mine = [call for call in self._calls if id(call.module) in at]
        tops = [call.top for call in mine if call.top is not None]
        if tops or any(call.graded for call in mine):
            graph = Graph([*self._ends, *tops], at, self._calls, self._owners)
            new = structure_of(graph, self._calls, at, names=names, doubled=self._doubled, recomputed=self._recomputed)
            self.structure = new if self.structure is None else new.completed(self.structure)
        self.detach()

    def saw(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Record one call; the sampler, which has hooks on the layers, passes theirs on."""
        if not self._hooks.placed:
            return
        x = args[0] if args else None
        out = output[0] if isinstance(output, tuple) and output else output
        if not isinstance(x, Tensor) or not isinstance(out, Tensor):
            return
        if recomputing():
            self._recomputed.add(id(module))
            return
        if not module.training and isinstance(module, _DropoutNd):
            return
        bottom = _source(module, x, out)
        self._calls.append(
            Call(
                module=module,
                name=self._names[id(module)],
                top=out.grad_fn,
                bottom=bottom,
                shape=tuple(x.shape),
                features=out.shape[-1] if out.dim() else 0,
                training=module.training,
                graded=torch.is_grad_enabled(),
                origin=self._origin(module, x, out) if bottom is None else DATA,
            )
        )
        if out.grad_fn is not None and module.training and module._buffers:
            out.grad_fn.register_prehook(self._watch_double(id(module)))

    def _origin(self, module: nn.Module, x: Tensor, out: Tensor) -> Origin:
        """What an input without a graph came from; what comes out without one is noted as made by this module too."""
        known, came = self._made.get(_storage(x)), DATA
        # A storage that is gone keeps its address until the reference goes, so an address is never another's.
        if known is not None and not known[0].expired():  # type: ignore[no-untyped-call]
            came = known[1]
        if out.grad_fn is None:
            layer = id(module) in self._watched
            weighted = came.weighted or layer or isinstance(module, WHOLE)
            normalized = came.normalized or (layer and module.training)
            if weighted and (address := _storage(out)):
                made = Origin(normalized, weighted, hash((self._names[id(module)], came.path)))
                self._made[address] = StorageWeakRef(out.untyped_storage()), made  # type: ignore[no-untyped-call]
        return came

    def _watch_double(self, key: int) -> Any:
        def before_backward(_: Any) -> None:
            # This runs within the training's backward. The engine runs with gradients on only where the gradient is to
            # have one of its own.
            with suppress(Exception):
                if torch.is_grad_enabled():
                    self._doubled[key] = True

        return before_backward

    def _finished(self, root: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.walk(output)


def _flags(models: Mapping[str, nn.Module]) -> tuple[bool, ...]:
    """The modes and ``requires_grad`` of everything: they decide which parts of the models have which graph."""
    every = [module for model in models.values() for module in model.modules()]
    trained = (p.requires_grad for m in every for p in m._parameters.values() if p is not None)
    return (*(m.training for m in every), *trained)


def _storage(tensor: Tensor) -> int:
    """The address of a tensor's storage; 0 where it has none, as that of a sparse tensor."""
    try:
        address: int = tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return 0
    return address


def _source(module: nn.Module, x: Tensor, out: Tensor) -> Any:
    """The node that made a module's input."""
    if out is x and x.grad_fn is not None and getattr(module, "inplace", False):
        return x.grad_fn.next_functions[0][0]  # in place, its own node has replaced the input's
    return get_gradient_edge(x).node if x.grad_fn is None and x.requires_grad else x.grad_fn
