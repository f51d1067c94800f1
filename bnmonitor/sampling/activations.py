"""Activation statistics of sampled steps, through hooks that exist only while a step is sampled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bnmonitor.graph import Tracer, UnregisteredNorms
from bnmonitor.layers import Hooks, LayerTable, as_normalized, recomputing
from bnmonitor.measures import (
    MOST_CALLS,
    CallMoments,
    between,
    padded_rows,
    padding,
    paired,
    reduce,
    samples_reduced,
    scale,
    unevenness,
    unevenness_beyond,
)
from bnmonitor.sampling.autograd import affine_of, batch_of, data_of, kept_by_autograd, passed, unbiased_variances
from bnmonitor.sampling.probe import Probe
from bnmonitor.sampling.seen import SampleTransfer, Seen, flat
from bnmonitor.sampling.stirring import Stirring
from bnmonitor.window import Structure


class Sampler:
    """Places hooks on every layer for one step and reduces inputs and outputs on their device."""

    def __init__(self, unregistered: UnregisteredNorms | None = None, probe: Probe | None = None) -> None:
        self.unregistered, self.probe = unregistered, probe
        self._hooks = Hooks(on_compilation=self._interrupt)
        self._seen: dict[int, Seen] = {}
        self._aside: dict[int, Seen] = {}
        self._momentum: dict[int, Any] = {}
        self._first: set[int] = set()
        self._fed: list[Tensor] = []
        self._updated: list[tuple[Seen, CallMoments]] = []
        self._tracer = Tracer()
        self.interrupted = False
        """Whether a compilation or an error ended the sample while the hooks were in place."""
        self.refused = False
        """Whether no hook was placed, as a compiled graph may guard those of other code."""
        self.failure = ""
        """The error that following the graph raised; empty without one."""
        self.failures: dict[int, str] = {}
        """The error that reducing an activation of a layer raised, by ``id(module)``: of it only calls are counted."""
        self.witness: Tensor | None = None
        """Mean and variance of the batch in the last sampled step, ``[2, C]``, as the forward of a layer that was
        called once has them; NaN for others. On the layers' device. None without a sample."""
        self.calls: Tensor | None = None
        """How often the last sampled step called each layer, ``[L]``; None without a sample."""
        self.underway = SampleTransfer()
        """Brings the samples from the device."""

    @property
    def attached(self) -> bool:
        """Whether the hooks are in place, or were until a compilation began."""
        return self._hooks.placed or self.interrupted

    @property
    def seconds(self) -> float:
        """Time spent in the hooks."""
        return self._hooks.seconds + self._tracer.seconds

    @property
    def order(self) -> dict[int, int]:
        """Position in the forward by ``id(module)``, of the layers that were called."""
        return {key: position for position, key in enumerate(self._seen)}

    def attach(self, modules: Sequence[nn.Module], models: Mapping[str, nn.Module]) -> None:
        """Place the hooks, and drop what they recorded before.

        Args:
            modules: The layers.
            models: The models by prefix of the layers' names; their autograd graph is described.
        """
        self.detach()
        self._seen, self._aside, self.interrupted = {}, {}, False
        self._momentum = {id(module): getattr(module, "momentum", None) for module in modules}
        structure = self._tracer.structure
        places = () if structure is None or len(structure.places) != len(modules) else structure.places
        self._first = {id(m) for m, place in zip(modules, places, strict=False) if place.root}
        for module in modules:
            self._hooks.on_forward(module, self._saw)
        for root in models.values():
            self._hooks.on_forward(root, self._ended)
        if self.probe is not None:
            self.probe.attach(modules)
        self._tracer.attach(modules, models)
        self.refused = self._hooks.refused or self._tracer.refused or (self.probe is not None and self.probe.refused)
        if self.refused:
            self.detach()

    def detach(self) -> None:
        """Remove every hook."""
        self._hooks.remove()
        if self.probe is not None:
            self.probe.detach()
        self._tracer.detach()
        self._fed.clear()
        self._updated.clear()

    def _interrupt(self) -> None:
        self.interrupted = True
        self.detach()

    def _saw(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        # This runs within the model's forward: a training must not end for an error of ours.
        try:
            self._tracer.saw(module, args, output)
        except Exception as error:
            self.failure = _said(error)
            self._interrupt()
            return
        try:
            self._reduce(module, args, output, graded=torch.is_grad_enabled())
        except Exception as error:
            self.failures[id(module)] = _said(error)
            for each in (self._seen, self._aside):
                if id(module) in each:
                    each[id(module)].forget()

    @torch.no_grad()
    def _reduce(self, module: nn.Module, args: tuple[Any, ...], output: Any, *, graded: bool) -> None:
        if not args or not isinstance(args[0], Tensor) or not isinstance(output, Tensor):
            return
        seen = self._seen.setdefault(id(module), Seen())
        if recomputing():
            seen.recomputed += module.training
            return
        if not module.training and output.grad_fn is None:
            seen.idle += 1  # an evaluation, or a network that is not trained
            return
        data, x = data_of(args[0]), as_normalized(module, args[0])
        if not graded and module.training:
            if getattr(module, "momentum", None) != self._momentum.get(id(module)):
                return  # the statistics are estimated anew
            seen = self._aside.setdefault(id(module), Seen())
        seen.calls += 1
        seen.eval_calls += not module.training
        seen.size, seen.dtype = x.shape[0], x.dtype
        seen.values = x.numel() // max(1, x.shape[1])
        if id(module) in self.failures:
            return
        if x.numel() and output.numel():
            self._moments(seen, module, x, as_normalized(module, output))
        seen.data = None if data is None or not data.is_floating_point() or not data.numel() else scale(data)
        if x.dim() in (2, 3) and x.numel():
            ends = padding(x) if x.dim() == 3 else padded_rows(x)
            seen.padding = ends if seen.padding is None else seen.padding + ends

    def _moments(self, seen: Seen, module: nn.Module, x: Tensor, output: Tensor) -> None:
        kept = kept_by_autograd(x, output.grad_fn) if module.training else None
        through = affine_of(module, x, output, kept)
        given, made = _in_rows(x), _in_rows(output)
        reduced, spread = reduce(given), between(given)
        seen.looked += samples_reduced(given)
        # Of several batches the running statistics show only an average.
        seen.batch = batch_of(module, given, reduced, kept) if seen.calls == 1 else None
        if through is None:
            seen.add(reduced, reduce(made))
        else:
            seen.add(reduced, passed(through, given, made, training=module.training))
        seen.spread(spread)
        version = _version(module)
        seen.version = version if seen.calls == 1 else seen.version
        if module.training and len(seen.inputs) < MOST_CALLS:
            first = id(module) in self._first and not seen.inputs
            seen.unevenness = unevenness_beyond(given) if first else None
            seen.paired = paired(given) if first else None
            seen.stirring = Stirring.before(x) if first else None
            uneven = unevenness(given) if seen.inputs else None
            seen.inputs.append(CallMoments(x.shape[0], reduced, spread, uneven))
            if version != seen.version:
                self._updated.append((seen, seen.inputs[-1]))

    @property
    def structure(self) -> Structure | None:
        """The structure that the graphs have shown so far; None before the first."""
        return self._tracer.structure

    def walk(self, outputs: Any) -> None:
        """Walk the autograd graph from the end of a step, such as its loss, while it exists."""
        if self.attached:
            self._tracer.walk(outputs)
            if self.unregistered is not None:
                self.unregistered.walk(outputs)

    def _ended(self, root: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        tensors = [each for each in args if isinstance(each, Tensor)]
        if tensors and all(any(each is fed for fed in self._fed) for each in tensors):
            # The same input again behind an update, as in a closure of L-BFGS: only the weights make it another.
            for seen, call in self._updated:
                seen.inputs = [each for each in seen.inputs if each is not call]
        self._fed += tensors
        self._updated.clear()
        if self.unregistered is not None:
            self.unregistered.walk(output)

    def collect(self, step: int, layers: LayerTable, modules: Sequence[nn.Module], rate: float = math.nan) -> bool:
        """Remove the hooks, and send the sample on its way, in the order of ``modules``.

        Returns:
            Whether there is one: not if no layer was called, or if a compilation or an error ended it before its end.
        """
        if not self.interrupted:
            self._tracer.collect(modules, layers.names)
        self.detach()
        pairs = [_divided(self._seen.get(id(m), Seen()), self._aside.get(id(m), Seen())) for m in modules]
        cut, self.interrupted, self._seen, self._aside = self.interrupted, False, {}, {}
        self.witness = self.calls = None
        if cut or not any(seen.calls for seen, _ in pairs):
            return False
        self.calls = torch.tensor([seen.calls for seen, _ in pairs], device="cpu")
        batches = [seen.batch for seen, _ in pairs]
        means = [None if batch is None else batch.mean for batch in batches]
        self.witness = torch.stack([flat(layers, each) for each in (means, unbiased_variances(batches))])
        self.underway.send(step, rate, layers, pairs)
        return True


def _in_rows(x: Tensor) -> Tensor:
    """``[N, C, ...]`` as ``[N, C, positions]``, where that copies nothing."""
    x = x.detach()
    try:
        return x.view(*x.shape[:2], -1) if x.dim() > 3 else x
    except RuntimeError:  # as of a transposed image
        return x


def _version(module: nn.Module) -> int | None:
    gamma = module._parameters.get("weight")
    return gamma._version if gamma is not None and not gamma.is_inference() else None


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def _divided(seen: Seen, aside: Seen) -> tuple[Seen, Seen]:
    """Divide the calls of a layer into those that train it, and those without a gradient beside them.

    Without a gradient runs a reentrant checkpoint as well, or a part that is not trained: such calls are all there are.
    """
    if seen.calls or not aside.calls:
        return seen, aside
    aside.idle, aside.recomputed = seen.idle, seen.recomputed
    return aside, Seen()
