"""Activation statistics of sampled steps, through hooks that exist only while a step is sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bnmonitor.compiled import when_compiling
from bnmonitor.dataflow import tensors_of, trace
from bnmonitor.frame import Moments, Sample, Structure
from bnmonitor.hooks import Hook, recomputing
from bnmonitor.layers import LayerTable
from bnmonitor.moments import between, finish, merge, merge_between, reduce


@dataclass
class _Seen:
    """What one layer's hook saw in a step."""

    calls: int = 0
    eval_calls: int = 0
    idle: int = 0
    recomputed: int = 0
    size: int = 0
    values: int = 0
    dtype: torch.dtype | None = None
    node: Any = None
    reduced: dict[str, Tensor] = field(default_factory=dict)
    between: Tensor | None = None


class Sampler:
    """Hooks every layer for one step and reduces what passes, on its device."""

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []
        self._seen: dict[int, _Seen] = {}
        self._modules: tuple[nn.Module, ...] = ()
        self._traced: dict[int, tuple[bool | None, tuple[str, ...] | None]] = {}
        self._forget: Callable[[], None] = lambda: None
        self.interrupted = False
        """Whether a compilation began while the hooks were in place, which ended the sample."""

    @property
    def attached(self) -> bool:
        """Whether the hooks are in place, or were until a compilation began."""
        return bool(self._handles) or self.interrupted

    @property
    def order(self) -> dict[int, int]:
        """Position in the forward by ``id(module)``, of the layers that were called."""
        return {key: position for position, key in enumerate(self._seen)}

    def attach(self, modules: Sequence[nn.Module], roots: Sequence[nn.Module]) -> None:
        """Place the hooks; what was gathered before is gone.

        Args:
            modules: The layers.
            roots: The models, at whose outputs the autograd graph is walked.
        """
        self.detach()
        self._seen, self._modules, self.interrupted = {}, tuple(modules), False
        self._forget = when_compiling(self._interrupt)
        for module in modules:
            self._handles.append(module.register_forward_hook(Hook(module, self._saw)))
        for root in roots:
            self._handles.append(root.register_forward_hook(Hook(root, self._finished)))

    def detach(self) -> None:
        """Take every hook away."""
        self._forget()
        self._release()

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _interrupt(self) -> None:
        # What is traced with hooks in place is guarded by their number, and compiled again once they are gone.
        self.interrupted = True
        self._release()

    @torch.no_grad()
    def _saw(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not args or not isinstance(args[0], Tensor) or not isinstance(output, Tensor):
            return
        seen = self._seen.setdefault(id(module), _Seen())
        if recomputing():
            seen.recomputed += module.training
            return
        if not module.training and output.grad_fn is None:
            seen.idle += 1  # an evaluation, or a network that is not being trained
            return
        x = args[0]
        seen.node = seen.node or output.grad_fn
        seen.calls += 1
        seen.eval_calls += not module.training
        seen.size, seen.dtype = x.shape[0], x.dtype
        seen.values = x.numel() // max(1, x.shape[1])
        for side, tensor in (("input", x), ("output", output)):
            if tensor.numel():
                new, old = reduce(tensor), seen.reduced.get(side)
                seen.reduced[side] = new if old is None else merge(old, new)
        if x.numel():
            spread = between(x)
            seen.between = spread if seen.between is None else merge_between(seen.between, spread)

    def _finished(self, root: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.walk(output)

    def walk(self, outputs: Any) -> None:
        """Walk the autograd graph from the outputs of a step, or its loss, while it is there."""
        if not self.attached:
            return
        ends = tensors_of(outputs)
        nodes = {i: s.node for i, m in enumerate(self._modules) if (s := self._seen.get(id(m))) and s.node is not None}
        if not ends or not nodes:
            return
        structure = trace(ends, nodes, len(self._modules))
        for i, module in enumerate(self._modules):
            if structure.consumers[i] is not None:
                self._traced[id(module)] = (structure.producer_trains[i], structure.consumers[i])

    def structure(self, modules: Sequence[nn.Module]) -> Structure | None:
        """What the graphs told so far of the layers; None if nothing."""
        if not self._traced:
            return None
        known = [self._traced.get(id(m), (None, None)) for m in modules]
        return Structure(producer_trains=tuple(k[0] for k in known), consumers=tuple(k[1] for k in known))

    def take(self, step: int, layers: LayerTable, modules: Sequence[nn.Module]) -> Sample | None:
        """Remove the hooks and return what they saw, in the order of ``modules``.

        None if no layer was called, or if a compilation began before all were.
        """
        self.detach()
        seen = [self._seen.get(id(m), _Seen()) for m in modules]
        cut, self.interrupted, self._seen = self.interrupted, False, {}
        if cut or not any(s.calls for s in seen):
            return None
        return Sample(
            step=step,
            calls=torch.tensor([s.calls for s in seen], device="cpu"),
            eval_calls=torch.tensor([s.eval_calls for s in seen], device="cpu"),
            idle=torch.tensor([s.idle for s in seen], device="cpu"),
            recomputed=torch.tensor([s.recomputed for s in seen], device="cpu"),
            size=torch.tensor([s.size for s in seen], device="cpu"),
            values=torch.tensor([s.values for s in seen], device="cpu"),
            input=Moments(**finish(_flat(layers, [s.reduced.get("input") for s in seen], 11))),
            output=Moments(**finish(_flat(layers, [s.reduced.get("output") for s in seen], 11))),
            between=_unbiased(_flat(layers, [s.between for s in seen], 3)),
            input_dtypes=tuple(s.dtype for s in seen),
        )


def _flat(layers: LayerTable, parts: Sequence[Tensor | None], rows: int) -> Tensor:
    """Lay the numbers of all layers end to end on the CPU, ``[rows, C]``; NaN for a layer that was not called."""
    blank = {c: torch.full((rows, c), torch.nan, device="cpu") for c in set(layers.channels)}
    # Without buffers and parameters PyTorch lets any number of channels through, whatever num_features says.
    known = [
        blank[c] if r is None or r.shape[1] != c else r.float().cpu()
        for r, c in zip(parts, layers.channels, strict=True)
    ]
    return torch.cat(known, 1)


def _unbiased(spread: Tensor) -> Tensor:
    """Variance of what :func:`bnmonitor.moments.between` reduced; NaN for a single sample."""
    return spread[2] / (spread[0] - 1).where(spread[0] > 1, torch.nan)
