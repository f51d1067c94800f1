"""What the hooks have recorded of a step, and the sample that is made of it when it has arrived from the device."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from bnmonitor.layers import LayerTable
from bnmonitor.measures import Affine, CallMoments, call_distances, finish, merge, merge_between, uneven_beyond
from bnmonitor.sampling.autograd import Batch, Passed
from bnmonitor.sampling.stirring import Stirring
from bnmonitor.transfer import HostTransfer, Unpack, pack
from bnmonitor.window import Moments, Sample


@dataclass
class Seen:
    """What the hook of one layer has recorded in a step."""

    calls: int = 0
    eval_calls: int = 0
    idle: int = 0
    recomputed: int = 0
    size: int = 0
    values: int = 0
    version: int | None = None
    dtype: torch.dtype | None = None
    reduced: dict[str, Tensor] = field(default_factory=dict)
    passed: Passed | None = None
    between: Tensor | None = None
    inputs: list[CallMoments] = field(default_factory=list)
    unevenness: tuple[Tensor, Tensor, Tensor] | None = None
    paired: Tensor | None = None
    stirring: Stirring | None = None
    stirred: Tensor | None = None
    padding: Tensor | None = None
    data: Tensor | None = None
    looked: int = 0
    batch: Batch | None = None

    def add(self, given: Tensor, made: Tensor | Passed) -> None:
        """Add the moments of one call's input and output.

        What a single call passed on is computed when all layers' numbers have arrived; that of several calls here.
        """
        if not self.reduced and isinstance(made, Passed):
            self.reduced["input"], self.passed = given, made
            return
        if self.passed is not None:
            self.reduced["output"], self.passed = self.passed.reduced(self.reduced["input"]), None
        self._merge("input", given)
        self._merge("output", made.reduced(given) if isinstance(made, Passed) else made)

    def _merge(self, side: str, new: Tensor) -> None:
        """Merge the moments of one side; of calls with fewer channels than others only the others count."""
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
        self.reduced, self.inputs, self.passed, self.batch = {}, [], None, None
        self.between = self.unevenness = self.paired = self.stirring = self.data = self.padding = None

    def pooled(self) -> list[CallMoments]:
        """The inputs of all calls as one."""
        reduced = self.reduced.get("input")
        if reduced is None or self.between is None or not self.inputs:
            return []
        return [CallMoments(sum(call.samples for call in self.inputs), reduced, self.between)]

    def measured(self) -> Seen:
        """Return what a sample needs of it, at the end of the step, when the weights have been updated."""
        stirred = None if self.stirring is None else self.stirring.measure()
        return replace(self, stirring=None, stirred=stirred, batch=None)


@dataclass(frozen=True)
class _Taken:
    """A sample whose numbers are on their way from the device.

    Attributes:
        step: The step's number.
        rate: The learning rate in force.
        layers: The table of the layers.
        pairs: What the hooks of each layer have recorded, and beside that what they have without a gradient.
        tensors: The tensors therein, by ``id``; each goes on its way once.
        unpack: Makes the same tensors of what arrives.
        away: Whether they come from another device than a CPU; else they are used as they are.
    """

    step: int
    rate: float
    layers: LayerTable
    pairs: Sequence[tuple[Seen, Seen]]
    tensors: Mapping[int, Tensor]
    unpack: Unpack
    away: bool


class SampleTransfer:
    """Brings samples from the layers' device: one copy for all numbers of a step, which nothing waits for."""

    def __init__(self) -> None:
        self._transfer: HostTransfer[_Taken] | None = None
        self.coming = 0
        """Samples that are on their way."""

    def send(self, step: int, rate: float, layers: LayerTable, pairs: Sequence[tuple[Seen, Seen]]) -> None:
        """Send a sample on its way.

        Args:
            step: The step's number.
            rate: The learning rate in force.
            layers: The table of the layers.
            pairs: Of each layer what was recorded, and what was recorded beside that without a gradient.
        """
        pairs = [(seen.measured(), replace(aside, stirring=None, batch=None)) for seen, aside in pairs]
        tensors = {id(t): t for pair in pairs for seen in pair for t in _tensors(seen)}
        device = next((t.device for t in tensors.values() if t.device.type != "cpu"), torch.device("cpu"))
        if self._transfer is None:
            self._transfer = HostTransfer(device)
        elif self._transfer.device != device:
            self._transfer.follow(device)
        sent, unpack = pack(list(tensors.values()))
        away = device.type != "cpu"
        self._transfer.send(_Taken(step, rate, layers, pairs, tensors, unpack, away), *(sent if away else ()))
        self.coming += 1

    def receive(self, *, wait: bool) -> list[Sample]:
        """Return the samples that have arrived, oldest first; with ``wait``, all that were sent.

        From a CPU they are there at once.
        """
        if self._transfer is None:
            return []
        arrived = self._transfer.receive(wait=wait)
        self.coming -= len(arrived)
        return [_sample(taken, values) for taken, values in arrived]

    def drop(self) -> None:
        """Drop what is on its way."""
        self._transfer, self.coming = None, 0


def _sample(taken: _Taken, values: Sequence[Tensor]) -> Sample:
    """Make a sample of what the hooks have recorded and the values that have arrived."""
    layers, pairs = taken.layers, taken.pairs
    if taken.away:
        here = dict(zip(taken.tensors, taken.unpack(values), strict=True))
        pairs = [(_moved(seen, here), _moved(aside, here)) for seen, aside in pairs]
    seen, aside = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    spread = flat(layers, [s.between for s in seen], 3)
    return Sample(
        step=taken.step,
        rate=taken.rate,
        calls=torch.tensor([s.calls for s in seen], device="cpu"),
        eval_calls=torch.tensor([s.eval_calls for s in seen], device="cpu"),
        idle=torch.tensor([s.idle for s in seen], device="cpu"),
        recomputed=torch.tensor([s.recomputed for s in seen], device="cpu"),
        size=torch.tensor([s.size for s in seen], device="cpu"),
        values=torch.tensor([s.values for s in seen], device="cpu"),
        input=Moments(**finish(flat(layers, [s.reduced.get("input") for s in seen], 11))),
        output=Moments(**finish(_outputs(layers, seen))),
        between=_unbiased(spread),
        level=spread[1].clone(),
        unevenness=flat(layers, [None if s.unevenness is None else s.unevenness[0][None] for s in seen], 1)[0],
        uneven_beyond=_columns([None if s.unevenness is None else uneven_beyond(*s.unevenness[1:]) for s in seen]),
        paired=torch.tensor([torch.nan if s.paired is None else float(s.paired) for s in seen], device="cpu"),
        stirred=flat(layers, [s.stirred for s in seen], 2),
        looked=torch.tensor([s.looked for s in seen], device="cpu"),
        padding=_shares([s.padding for s in seen]),
        data=_columns([s.data for s in seen]),
        input_dtypes=tuple(s.dtype for s in seen),
        distance=_distances([s.inputs for s in seen]),
        side_calls=torch.tensor([s.calls for s in aside], device="cpu"),
        side_size=torch.tensor([s.size for s in aside], device="cpu"),
        side_distance=_distances([[*s.pooled(), *a.pooled()] for s, a in pairs]),
    )


def _tensors(value: Any) -> list[Tensor]:
    """The tensors in what a hook has recorded, however deep, each as often as it is there."""
    if isinstance(value, Tensor):
        return [value]
    return [tensor for part in _parts(value) for tensor in _tensors(part)]


def _parts(value: Any) -> Collection[Any]:
    if isinstance(value, list | tuple):
        return value
    held = vars(value) if isinstance(value, Seen | CallMoments) else value
    return held.values() if isinstance(held, dict) else ()


def _moved(value: Any, here: Mapping[int, Tensor]) -> Any:
    """The same with other tensors in the place of those of an ``id``."""
    if isinstance(value, Tensor):
        return here[id(value)]
    if isinstance(value, Seen | CallMoments):
        return replace(value, **{name: _moved(part, here) for name, part in vars(value).items()})
    if isinstance(value, dict):
        return {key: _moved(part, here) for key, part in value.items()}
    if not isinstance(value, list | tuple):
        return value
    moved = [_moved(part, here) for part in value]
    return type(value)(*moved) if hasattr(value, "_fields") else type(value)(moved)


def _outputs(layers: LayerTable, seen: Sequence[Seen]) -> Tensor:
    """The moments of all outputs, ``[11, C]``; those that layers passed on are computed together."""
    parts = [s.reduced.get("output") for s in seen]
    known = [(i, s.reduced["input"], s.passed) for i, s in enumerate(seen) if s.passed is not None]
    if known:
        given = torch.cat([reduced for _, reduced, _ in known], 1).double()
        ways = [passed for _, _, passed in known]
        maps = (torch.cat(each).double() for each in zip(*(way.through for way in ways), strict=True))
        counts, margin = (torch.cat(each) for each in zip(*(way[1:] for way in ways), strict=True))
        made = Passed(Affine(*maps), counts, margin).reduced(given).float()
        widths = [reduced.shape[1] for _, reduced, _ in known]
        for (i, _, _), part in zip(known, torch.split(made, widths, 1), strict=True):
            parts[i] = part
    return flat(layers, parts, 11)


def _distances(inputs: Sequence[Sequence[CallMoments]]) -> Tensor:
    return torch.tensor([call_distances(calls) for calls in inputs], dtype=torch.float64, device="cpu").T


def flat(layers: LayerTable, parts: Sequence[Tensor | None], *rows: int) -> Tensor:
    """Lay the numbers of all layers end to end, ``[*rows, C]``, where they are; NaN for a layer without a call."""
    device = next((part.device for part in parts if part is not None), torch.device("cpu"))
    blank = {c: torch.full((*rows, c), torch.nan, device=device) for c in set(layers.channels)}
    # Without buffers and parameters PyTorch accepts any number of channels, whatever num_features says.
    known = [
        blank[c] if r is None or r.shape[-1] != c else r.to(device, torch.float32)
        for r, c in zip(parts, layers.channels, strict=True)
    ]
    return torch.cat(known, -1)


def _shares(counts: Sequence[Tensor | None]) -> Tensor:
    """The first of each two numbers over the second, NaN for None: ``[L]``."""
    return torch.tensor([torch.nan if c is None else float(c[0] / c[1]) for c in counts], device="cpu")


def _columns(pairs: Sequence[Tensor | None]) -> Tensor:
    """The two numbers of each layer, NaN for None: ``[2, L]``."""
    return torch.tensor([[torch.nan] * 2 if pair is None else pair.tolist() for pair in pairs], device="cpu").T


def _unbiased(spread: Tensor) -> Tensor:
    """Variance of what :func:`bnmonitor.measures.between` reduced; NaN for a single sample."""
    return spread[2] / (spread[0] - 1).where(spread[0] > 1, torch.nan)
