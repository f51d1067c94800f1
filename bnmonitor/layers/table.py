"""The table of the normalization layers of a model, and the flat channel axis."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from bnmonitor._html import block, plain, table
from bnmonitor._text import count, nearest
from bnmonitor.layers.kinds import Fact, Family, kind_named
from bnmonitor.layers.segments import Segments

FEW = 128
"""Most channels of a layer in a rough median."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One normalization layer.

    Attributes:
        name: Its dotted path.
        channels: How many it has.
        kind: Name of its class.
        eps: The number added to the variance before the square root.
        momentum: Weight of the newest batch in the running average; None for a cumulative average.
        affine: Whether it has a gamma.
        tracking: Whether it has running statistics.
    """

    name: str
    channels: int
    kind: str
    eps: float
    momentum: float | None
    affine: bool
    tracking: bool


@dataclass(frozen=True, kw_only=True)
class LayerTable:
    """Every normalization layer that bnmonitor records, laid end to end on one flat channel axis.

    Layer ``i`` owns the channels ``offsets[i]:offsets[i + 1]`` of every ``[C]`` tensor.

    Attributes:
        names: Dotted path of each layer, in execution order once a forward has been seen,
            in order of definition before.
        channels: Number of channels of each layer.
        kinds: Name of the class of each layer.
        eps: The number added to the variance before the square root.
        momentum: Weight of the newest batch in the running average; None for a cumulative average.
        affine: Whether the layer has a gamma.
        tracking: Whether the layer has running statistics.
        family: What the layer normalizes with: statistics of the batch, of each sample alone, or fixed ones in both
            modes, as torchvision's ``FrozenBatchNorm2d`` does.
        synced: Positions of the layers that normalize over all processes: SyncBatchNorm and its subclasses.
        split: Positions of the layers with gamma and beta split over the processes, so that this one has a part only.
    """

    names: tuple[str, ...]
    channels: tuple[int, ...]
    kinds: tuple[str, ...]
    eps: tuple[float, ...]
    momentum: tuple[float | None, ...]
    affine: tuple[bool, ...]
    tracking: tuple[bool, ...]
    family: tuple[Family, ...]
    synced: tuple[int, ...] = ()
    split: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, layer: str | int) -> Layer:
        """Return a layer by its name or position.

        Raises:
            KeyError: No layer has that name; the message names the nearest one.
            IndexError: There are not so many layers.
        """
        i = self.index(layer) if isinstance(layer, str) else range(len(self))[layer]
        return Layer(
            name=self.names[i],
            channels=self.channels[i],
            kind=self.kinds[i],
            eps=self.eps[i],
            momentum=self.momentum[i],
            affine=self.affine[i],
            tracking=self.tracking[i],
        )

    def __iter__(self) -> Iterator[Layer]:
        return (self[i] for i in range(len(self)))

    def __contains__(self, layer: object) -> bool:
        return layer in self.names or (isinstance(layer, Layer) and layer in tuple(self))

    def __repr__(self) -> str:
        return f"<LayerTable: {count(len(self), 'layer')}, {count(self.total, 'channel')}>"

    def _repr_html_(self) -> str:
        head = ("layer", "class", "channels", "eps", "momentum", "gamma and beta")
        rows = (
            (x.name, x.kind, x.channels, f"{x.eps:g}", x.momentum, "yes" if x.affine else "no") for x in tuple(self)
        )
        return block(plain(repr(self)[1:-1]), table(head, rows))

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Start of each layer on the channel axis, and the total at the end: ``L + 1`` numbers."""
        ends = [0]
        for channels in self.channels:
            ends.append(ends[-1] + channels)
        return tuple(ends)

    @property
    def total(self) -> int:
        """Number of channels of all layers together."""
        return self.offsets[-1]

    @cached_property
    def segments(self) -> Segments:
        """Reductions over the channels of each layer."""
        return Segments(self.channels)

    @cached_property
    def some(self) -> tuple[Tensor, Segments] | None:
        """Channels that stand for their layers in a rough median, and the reductions over them.

        They are at most :data:`FEW` of each layer, evenly spread: ``[S]`` int64 on the CPU; None if no layer has more.
        The median of 128 lies, twice in three times, within 4.4 % of the ranks of the median of all.
        """
        if max(self.channels, default=0) <= FEW:
            return None
        return self.some_in(tuple(range(len(self))))

    def some_of(self, layer: int, most: int = FEW) -> slice:
        """Return channels that stand for a layer, at most so many, evenly spread."""
        start, channels = self.offsets[layer], self.channels[layer]
        return slice(start, start + channels, -(-channels // most) or 1)

    def some_in(self, layers: tuple[int, ...], times: int = 1, most: int = FEW) -> tuple[Tensor, Segments]:
        """Return channels that stand for some layers, and the reductions over them, so many times in a row."""
        key = layers, times, most
        if key not in self._known_some:
            at = [np.arange(s.start, s.stop, s.step) for s in (self.some_of(layer, most) for layer in layers)]
            self._known_some[key] = torch.from_numpy(np.concatenate(at)), Segments([len(each) for each in at] * times)
        return self._known_some[key]

    @cached_property
    def _known_some(self) -> dict[tuple[tuple[int, ...], int, int], tuple[Tensor, Segments]]:
        return {}

    @cached_property
    def owner(self) -> Tensor:
        """Index of the layer that owns each channel: ``[C]`` int64 on the CPU."""
        counts = torch.tensor(self.channels, dtype=torch.int64, device="cpu")
        return torch.repeat_interleave(torch.arange(len(self), device="cpu"), counts)

    @cached_property
    def synced_layers(self) -> Tensor:
        """Whether each layer normalizes over all processes: ``[L]`` bool on the CPU."""
        return self._at(self.synced)

    @cached_property
    def split_channels(self) -> Tensor:
        """Whether gamma and beta of each channel are split over the processes: ``[C]`` bool on the CPU."""
        return self._at(self.split)[self.owner]

    def _at(self, positions: tuple[int, ...]) -> Tensor:
        found = torch.zeros(len(self), dtype=torch.bool, device="cpu")
        found[list(positions)] = True
        return found

    @cached_property
    def eps_by_channel(self) -> Tensor:
        """The eps of each channel's layer: ``[C]`` float32 on the CPU."""
        return torch.tensor(self.eps, dtype=torch.float32, device="cpu")[self.owner]

    @cached_property
    def tracked(self) -> Tensor:
        """Which layers have running statistics: ``[L]`` bool on the CPU."""
        return torch.tensor(self.tracking, dtype=torch.bool, device="cpu")

    @cached_property
    def _known_facts(self) -> dict[Fact, Tensor]:
        return {}

    def which(self, fact: Fact) -> Tensor:
        """Return which layers are of a kind with a fact, such as ``"normalizes_batch"``: ``[L]`` bool on the CPU.

        The facts are the attributes of :class:`bnmonitor.layers.Kind`.
        """
        if fact not in self._known_facts:
            holds = [bool(getattr(kind_named(family), fact)) for family in self.family]
            self._known_facts[fact] = torch.tensor(holds, dtype=torch.bool, device="cpu")
        return self._known_facts[fact]

    def index(self, name: str) -> int:
        """Return the position of a layer.

        Raises:
            KeyError: No layer has that name; the message names the nearest one.
        """
        try:
            return self.names.index(name)
        except ValueError:
            raise KeyError(f"no BatchNorm layer is named {name!r}{nearest(name, self.names)}") from None

    def twins(self, of: Tensor, among: Tensor) -> Tensor:
        """Return for each layer its twin: as many channels, and the longest common end of the names; -1: none.

        Args:
            of: The layers that may have one, ``[L]`` bool.
            among: The layers that may be one, ``[L]`` bool.
        """
        ends: dict[tuple[str, int], int] = {}
        for j in sorted(among.nonzero().flatten().tolist(), key=lambda j: len(self.names[j])):
            for end in _ends(self.names[j]):
                ends.setdefault((end, self.channels[j]), j)
        twin = torch.full((len(self),), -1, dtype=torch.int64, device="cpu")
        for i in of.nonzero().flatten().tolist():
            mine = ((end, self.channels[i]) for end in _ends(self.names[i]))
            twin[i] = next((ends[end] for end in mine if end in ends), -1)
        return twin

    def span(self, layer: int) -> slice:
        """Return the channels of layer ``layer`` as a slice of the channel axis."""
        return slice(self.offsets[layer], self.offsets[layer + 1])

    def locate(self, mask: Tensor, layer: int) -> tuple[int, ...]:
        """Return which channels of ``layer``, counted within it, are set in a ``[C]`` mask."""
        return tuple(mask[self.span(layer)].nonzero().flatten().tolist())


def _ends(name: str) -> list[str]:
    """A dotted name and its ends, the longest first."""
    parts = name.split(".")
    return [".".join(parts[i:]) for i in range(len(parts))]
