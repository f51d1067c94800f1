"""The part of gamma and beta that this process holds where they are split over the processes, to tell the others."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bnmonitor.distributed import OwnAffine
from bnmonitor.layers import LayerTable, local_part, own_part
from bnmonitor.recording.peers import Peers
from bnmonitor.window import GatheredAffine

LEAST_GRADIENTS, GRADIENTS = 10, 30
"""The largest gradient of so many newest steps is told, if it is known of so many of them at least."""

_NAMES = ("weight", "bias")
_NEUTRAL = {"weight": 1.0, "bias": 0.0}
AFFINE = ("gamma", "beta", "gamma_grad", "beta_grad")
"""The rows of a tape that hold what is split, in its order."""


class _Part(NamedTuple):
    """A layer of which this process tells some channels: its position, its parameters, and which channels."""

    layer: int
    parameters: Mapping[str, Any]
    span: slice


class _Frame(NamedTuple):
    """What does not change from step to step of a layer: what stands in the place of the channels of others.

    Attributes:
        layer: Its position.
        parameters: Its parameters.
        span: The own channels.
        before: NaN for the channels before them, if there are any.
        none: NaN for the own channels.
        after: NaN for the channels after them, if there are any.
        neutral: What stands for a parameter that the layer does not have.
    """

    layer: int
    parameters: Mapping[str, Any]
    span: slice
    before: tuple[Tensor, ...]
    none: Tensor
    after: tuple[Tensor, ...]
    neutral: Mapping[str, Tensor]

    @classmethod
    def of(cls, part: _Part, nan: Tensor) -> _Frame:
        before, none, after = nan[: part.span.start], nan[part.span], nan[part.span.stop :]
        neutral = {name: torch.full_like(none, value) for name, value in _NEUTRAL.items()}
        there = [(each,) * bool(each.numel()) for each in (before, after)]
        return cls(*part, before=there[0], none=none, after=there[1], neutral=neutral)

    def own(self, tensor: Tensor | None) -> Tensor:
        """The own channels of a parameter, which FSDP makes whole for a forward, or of its gradient; NaN without."""
        if tensor is None:
            return self.none
        local = local_part(tensor)
        count = local.numel()
        if count == self.none.numel():
            return local
        return (
            local[self.span] if count == sum(t.numel() for t in (*self.before, self.none, *self.after)) else self.none
        )


class HeldAffine:
    """Puts the channels that this process holds on the tape, and keeps the newest state of them for the exchange.

    On the tape the other channels of these layers are NaN. In a window all of them are: a median over a part of the
    channels is not that of the layer.

    Args:
        layers: The table of the layers; those of ``layers.split`` are looked at.
        modules: The layers, in the same order.
    """

    def __init__(self, layers: LayerTable, modules: Sequence[nn.Module]) -> None:
        self._layers = layers
        self.complete = True
        """Whether it is known of each of these layers how it is split."""
        self._parts: list[_Part] = []
        for i in layers.split:
            parameters = modules[i]._parameters
            spans = [own_part(p) for name in _NAMES if (p := parameters.get(name)) is not None]
            if not spans or spans[0] is None or any(span != spans[0] for span in spans):
                self.complete = False
            elif spans[0].start < spans[0].stop:
                self._parts.append(_Part(i, parameters, spans[0]))
        self._own = torch.zeros(layers.total, dtype=torch.bool, device="cpu")
        for part in self._parts:
            self._own[layers.span(part.layer)][part.span] = True
        self._unknown: Sequence[Tensor] | None = None
        self._frames: list[_Frame] = []
        self._newest: tuple[int, Tensor, Tensor] | None = None
        self._gradients: deque[tuple[int, Tensor, Tensor]] = deque()

    def fill(self, source: list[Tensor], unknown: Sequence[Tensor]) -> list[Tensor]:
        """Return the tensors of a row of the tape with the own channels of the split layers in their places.

        Args:
            source: Running mean, running variance, gamma, beta and the gradients of these two of each layer.
            unknown: For each layer as many NaN as it has channels.
        """
        if self._unknown is not unknown:
            self._unknown, self._frames = unknown, [_Frame.of(part, unknown[part.layer]) for part in self._parts]
        count = len(self._layers)
        rows: list[list[Tensor]] = [[], [], [], []]
        ends = [0, 0, 0, 0]
        for frame in self._frames:
            for row, name in enumerate(_NAMES):
                parameter = frame.parameters.get(name)
                if parameter is None:
                    values, gradient = frame.neutral[name], frame.none
                else:
                    values, gradient = frame.own(parameter), frame.own(parameter.grad)
                for at, own in ((row, values), (row + 2, gradient)):
                    begin = (at + 2) * count
                    rows[at] += source[begin + ends[at] : begin + frame.layer]
                    rows[at] += (*frame.before, own, *frame.after)
                    ends[at] = frame.layer + 1
        filled = source[: 2 * count]
        for at, (made, end) in enumerate(zip(rows, ends, strict=True)):
            filled += made
            filled += source[(at + 2) * count + end : (at + 3) * count]
        return filled

    @torch.inference_mode(False)  # the exchange between processes sends what is kept here
    def take(self, rows: Mapping[str, Tensor], step: int) -> None:
        """Take in what has been recorded.

        Args:
            rows: Rows of the tape by name, ``[T, C]`` each, the newest last.
            step: The step of the newest row.
        """
        self._newest = step, rows["gamma"][-1].clone(), rows["beta"][-1].clone()
        gradient = rows["gamma_grad"].abs()
        known = ~gradient.isnan()
        self._gradients.append((len(known), gradient.where(known, 0.0).amax(0), known.sum(0)))
        while sum(steps for steps, *_ in self._gradients) - self._gradients[0][0] >= GRADIENTS:
            self._gradients.popleft()

    def told(self, step: int) -> OwnAffine | None:
        """Return what this process tells the others of a step; None if it is not the newest.

        Args:
            step: The step.
        """
        if self._newest is None or self._newest[0] != step:
            return None
        largest = torch.stack([each for _, each, _ in self._gradients]).amax(0)
        known = torch.stack([count for *_, count in self._gradients]).sum(0) >= LEAST_GRADIENTS
        return OwnAffine(
            own=self._own, gamma=self._newest[1], beta=self._newest[2], gradient=largest.where(known, torch.nan)
        )


def enter(affine: GatheredAffine, steps: Sequence[int], rows: Mapping[str, Tensor]) -> None:
    """Write what the processes have told each other into the row of its step, if that is still there.

    Args:
        affine: Gamma and beta of all channels.
        steps: The steps of the rows.
        rows: The statistics, ``[T, C]`` by name; what is known there stays.
    """
    if affine.step not in steps:
        return
    row = len(steps) - 1 - list(reversed(steps)).index(affine.step)
    for name, values in (("gamma", affine.gamma), ("beta", affine.beta)):
        now = rows[name][row]
        now.copy_(values.where(now.isnan(), now))


def why_untold(layers: LayerTable, held: HeldAffine | None, peers: Peers) -> str:
    """Why gamma and beta are not known of all layers that are split over the processes; empty if they are.

    Args:
        layers: The table of the layers.
        held: What this process holds; None if it is not to be told.
        peers: The other processes.
    """
    if not layers.split:
        return ""
    if held is None:
        return "pass gather_affine=True to have them at log steps, under FSDP2 (fully_shard)"
    if not held.complete:
        return "gather_affine=True gathers what FSDP2 (fully_shard) splits by channels, and nothing else"
    if peers.failure:
        return peers.failure
    if not peers.shared:
        return "call monitor.share_ranks() in each of them"
    affine = None if peers.latest is None else peers.latest.affine
    return "" if affine is not None and bool(affine.known.all()) else "they have not told each other all of them yet"
