"""Activation statistics of sampled steps, through hooks that exist only while a step is sampled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bnmonitor.graph import Tracer, UnregisteredNorms
from bnmonitor.layers import Hooks, LayerTable, as_normalized, recomputing
from bnmonitor.measures import (
    MOST_CALLS,
    CallMoments,
    between,
    call_distances,
    carried,
    finish,
    merge,
    merge_between,
    padding,
    paired,
    reduce,
    samples_reduced,
    scale,
    unevenness,
    unevenness_beyond,
)
from bnmonitor.sampling.autograd import affine_of, agrees, batch_of, data_of
from bnmonitor.sampling.probe import Probe
from bnmonitor.sampling.stirring import Stirring
from bnmonitor.window import Moments, Sample, Structure


@dataclass
class _Seen:
    """What the hook of one layer has recorded in a step."""

    calls: int = 0
    eval_calls: int = 0
    idle: int = 0
    recomputed: int = 0
    size: int = 0
    values: int = 0
    dtype: torch.dtype | None = None
    reduced: dict[str, Tensor] = field(default_factory=dict)
    between: Tensor | None = None
    inputs: list[CallMoments] = field(default_factory=list)
    unevenness: tuple[Tensor, Tensor] | None = None
    paired: Tensor | None = None
    stirring: Stirring | None = None
    padding: Tensor | None = None
    data: Tensor | None = None
    looked: int = 0
    witness: Tensor | None = None

    def add(self, side: str, new: Tensor) -> None:
        """Add the moments of one call; of calls with fewer channels than others only the others count."""
        old = self.reduced.get(side)
        if old is None or old.shape[1] < new.shape[1]:
            self.reduced[side] = new
        elif old.shape[1] == new.shape[1]:
            self.reduced[side] = merge(old, new)

    def spread(self, new: Tensor) -> None:
        """Add the spread of the samples of one call, likewise."""
        if self.between is None or self.between.shape[1] < new.shape[1]:
            self.between = new
        elif self.between.shape[1] == new.shape[1]:
            self.between = merge_between(self.between, new)

    def forget(self) -> None:
        """Drop all but the counts."""
        self.reduced, self.inputs = {}, []
        self.between = self.witness = self.unevenness = self.paired = self.stirring = self.data = self.padding = None

    def pooled(self) -> list[CallMoments]:
        """The inputs of all calls as one."""
        reduced = self.reduced.get("input")
        if reduced is None or self.between is None or not self.inputs:
            return []
        return [CallMoments(sum(call.samples for call in self.inputs), reduced, self.between)]


class Sampler:
    """Places hooks on every layer for one step and reduces inputs and outputs on their device."""

    def __init__(self, unregistered: UnregisteredNorms | None = None, probe: Probe | None = None) -> None:
        self.unregistered, self.probe = unregistered, probe
        self._hooks = Hooks(on_compilation=self._interrupt)
        self._seen: dict[int, _Seen] = {}
        self._aside: dict[int, _Seen] = {}
        self._momentum: dict[int, Any] = {}
        self._first: set[int] = set()
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
        called once has them; NaN for others. None without a sample."""

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
        seen = self._seen.setdefault(id(module), _Seen())
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
            seen = self._aside.setdefault(id(module), _Seen())
        seen.calls += 1
        seen.eval_calls += not module.training
        seen.size, seen.dtype = x.shape[0], x.dtype
        seen.values = x.numel() // max(1, x.shape[1])
        if id(module) in self.failures:
            return
        if x.numel() and output.numel():
            self._moments(seen, module, x, as_normalized(module, output))
        seen.data = None if data is None or not data.is_floating_point() or not data.numel() else scale(data)
        if x.dim() == 3 and x.numel():
            ends = padding(x)
            seen.padding = ends if seen.padding is None else seen.padding + ends

    def _moments(self, seen: _Seen, module: nn.Module, x: Tensor, output: Tensor) -> None:
        reduced, through, spread = reduce(x), affine_of(module, x, output), between(x)
        if through is None:
            passed = reduce(output)
        else:
            passed = carried(reduced, through, output).where(agrees(through, x, output), torch.nan)
        seen.looked += samples_reduced(x)
        # Of several batches the running statistics show only an average.
        seen.witness = batch_of(module, x, output, reduced) if seen.calls == 1 else None
        seen.add("input", reduced)
        seen.add("output", passed)
        seen.spread(spread)
        if module.training and len(seen.inputs) < MOST_CALLS:
            first = id(module) in self._first and not seen.inputs
            seen.unevenness = unevenness_beyond(x) if first else None
            seen.paired = paired(x) if first else None
            seen.stirring = Stirring.before(x) if first else None
            uneven = unevenness(x) if seen.inputs else None
            seen.inputs.append(CallMoments(x.shape[0], reduced, spread, uneven))

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
        if self.unregistered is not None:
            self.unregistered.walk(output)

    def collect(self, step: int, layers: LayerTable, modules: Sequence[nn.Module]) -> Sample | None:
        """Remove the hooks and return the sample, in the order of ``modules``.

        None if no layer was called, or if a compilation or an error ended the sample before its end.
        """
        if not self.interrupted:
            self._tracer.collect(modules, layers.names)
        self.detach()
        pairs = [_divided(self._seen.get(id(m), _Seen()), self._aside.get(id(m), _Seen())) for m in modules]
        seen, aside = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        cut, self.interrupted, self._seen, self._aside = self.interrupted, False, {}, {}
        self.witness = None
        if cut or not any(s.calls for s in seen):
            return None
        self.witness = _flat(layers, [s.witness for s in seen], 2)
        spread = _flat(layers, [s.between for s in seen], 3)
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
            between=_unbiased(spread),
            level=spread[1].clone(),
            unevenness=_flat(layers, [None if s.unevenness is None else s.unevenness[0][None] for s in seen], 1)[0],
            uneven_beyond=_columns([None if s.unevenness is None else s.unevenness[1] for s in seen]),
            paired=torch.tensor([torch.nan if s.paired is None else float(s.paired) for s in seen], device="cpu"),
            stirred=_flat(layers, [None if s.stirring is None else s.stirring.measure() for s in seen], 2),
            looked=torch.tensor([s.looked for s in seen], device="cpu"),
            padding=_shares([s.padding for s in seen]),
            data=_columns([s.data for s in seen]),
            input_dtypes=tuple(s.dtype for s in seen),
            distance=_distances([s.inputs for s in seen]),
            side_calls=torch.tensor([s.calls for s in aside], device="cpu"),
            side_size=torch.tensor([s.size for s in aside], device="cpu"),
            side_distance=_distances([[*s.pooled(), *a.pooled()] for s, a in pairs]),
        )


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def _divided(seen: _Seen, aside: _Seen) -> tuple[_Seen, _Seen]:
    """Divide the calls of a layer into those that train it, and those without a gradient beside them.

    Without a gradient runs a reentrant checkpoint as well, or a part that is not trained: such calls are all there are.
    """
    if seen.calls or not aside.calls:
        return seen, aside
    aside.idle, aside.recomputed = seen.idle, seen.recomputed
    return aside, _Seen()


def _distances(inputs: Sequence[Sequence[CallMoments]]) -> Tensor:
    return torch.tensor([call_distances(calls) for calls in inputs], dtype=torch.float64, device="cpu").T


def _flat(layers: LayerTable, parts: Sequence[Tensor | None], rows: int) -> Tensor:
    """Lay the numbers of all layers end to end on the CPU, ``[rows, C]``; NaN for a layer without a call."""
    blank = {c: torch.full((rows, c), torch.nan, device="cpu") for c in set(layers.channels)}
    # Without buffers and parameters PyTorch accepts any number of channels, whatever num_features says.
    known = [
        blank[c] if r is None or r.shape[1] != c else r.float().cpu()
        for r, c in zip(parts, layers.channels, strict=True)
    ]
    return torch.cat(known, 1)


def _shares(counts: Sequence[Tensor | None]) -> Tensor:
    """The first of each two numbers over the second, NaN for None: ``[L]``."""
    return torch.tensor([torch.nan if c is None else float(c[0] / c[1]) for c in counts], device="cpu")


def _columns(pairs: Sequence[Tensor | None]) -> Tensor:
    """The two numbers of each layer, NaN for None: ``[2, L]``."""
    return torch.tensor([[torch.nan] * 2 if pair is None else pair.tolist() for pair in pairs], device="cpu").T


def _unbiased(spread: Tensor) -> Tensor:
    """Variance of what :func:`bnmonitor.measures.between` reduced; NaN for a single sample."""
    return spread[2] / (spread[0] - 1).where(spread[0] > 1, torch.nan)
