"""Pure tensor functions over the flat channel axis: recovery, segments, robust reductions.

Shapes: ``C`` channels of all layers end to end, ``L`` layers, ``T`` steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


class Recovery(IntEnum):
    """Whether the batch statistics of a layer and step could be recovered, and if not, why."""

    EXACT = 0
    AVERAGED = 1
    OBSERVED = 2
    NO_UPDATE = 3
    NO_BUFFERS = 4
    PRECISION = 5
    FOREIGN = 6
    NO_MOMENTUM = 7
    NON_FINITE = 8

    @property
    def known(self) -> bool:
        """Whether there are batch statistics."""
        return self <= Recovery.OBSERVED

    @property
    def reason(self) -> str:
        """One sentence for people."""
        return _REASONS[self]


_REASONS = {
    Recovery.EXACT: "recovered from one update of the running statistics",
    Recovery.AVERAGED: "several batches between two reads: their weighted average",
    Recovery.OBSERVED: "the layer keeps no running statistics: read from its forward",
    Recovery.NO_UPDATE: "the running statistics were not updated in this step",
    Recovery.NO_BUFFERS: "the layer keeps no running statistics, and its forward was not observed",
    Recovery.PRECISION: "momentum is too small for the precision of the running statistics",
    Recovery.FOREIGN: "something other than this layer's forward wrote its running statistics",
    Recovery.NON_FINITE: "the running statistics are not finite",
    Recovery.NO_MOMENTUM: "momentum is 0: the running statistics carry nothing of the batch",
}


def update_weight(momentum: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Weight of everything new in a running statistic after its updates.

    One update with momentum ``m`` gives ``new = (1 - m) old + m batch``; ``k`` updates give the new
    batches the weight ``1 - (1 - m)^k`` together. With a cumulative average (momentum None) the weight is
    the share of new batches among all (``torch.nn.BatchNorm2d``: ``1 / num_batches_tracked``).

    Args:
        momentum: ``[..., L]``, NaN where the average is cumulative.
        before: ``[..., L]`` number of updates before.
        after: ``[..., L]`` number of updates after.

    Returns:
        ``[..., L]`` float64; 0 where nothing was updated.
    """
    updates = (after - before).double()
    exponential = 1 - (1 - momentum.double()).pow(updates.clamp(min=0))
    cumulative = updates / after.double().clamp(min=1)
    return torch.where(momentum.isnan(), cumulative, exponential).where(updates > 0, 0.0)


def recover(
    before: Tensor, after: Tensor, weight: Tensor, *, moved: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """Batch statistic that turned the running statistic ``before`` into ``after``.

    Solves ``after = before + weight (batch - before)``. The difference is taken first: for close numbers it is
    exact, so that float32 loses nothing beyond what the buffer itself had rounded away.

    Args:
        before: ``[..., C]`` running statistic before the update.
        after: ``[..., C]`` the same after it.
        weight: ``[..., C]`` from :func:`update_weight`.
        moved: Where ``batch - before`` is written.
        out: Where the result is written.

    Returns:
        ``[..., C]``; NaN where the weight is 0. Its rounding error is about ``ulp(after) / (2 weight)``.
    """
    moved = torch.sub(after, before, out=moved).div_(weight.where(weight > 0, torch.nan).to(after.dtype))
    return torch.add(before, moved, out=out)


def mean_over_steps(rows: Tensor) -> Tensor:
    """Mean of ``[T, C]`` over the steps, NaN passed over; one pass where nothing is NaN."""
    mean = rows.mean(0)
    holes = mean.isnan()
    if holes.any():
        mean[holes] = rows[:, holes].nanmean(0)
    return mean


def middle_over_steps(rows: Tensor) -> Tensor:
    """Robust middle of ``[T, C]`` over the steps, NaN passed over.

    Medians of three of medians of three (Tukey's ninther, The Ninther, 1978), down to one: every fourth of the rows may
    be wild, and it costs a few passes where a median would sort each column.
    """
    # What passes NaN over is several times slower.
    low, high = (torch.minimum, torch.maximum) if _complete(rows) else (torch.fmin, torch.fmax)
    while len(rows) > 2:
        third = len(rows) // 3
        a, b, c = rows[:third], rows[third : 2 * third], rows[2 * third : 3 * third]
        rows = high(low(a, b), low(high(a, b), c))
    return low(rows[0], rows[-1])


class Segments:
    """Reductions over the channels of each layer, for layers laid end to end: ``[..., C]`` to ``[..., L]``.

    Args:
        channels: Number of channels of each layer.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        counts = torch.tensor(channels, dtype=torch.int64, device="cpu")
        self._layers, self._total = len(channels), int(counts.sum())
        self._offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        self.sizes = counts.clamp(min=1)
        """Channels of each layer, 1 at least: ``[L]`` int64."""
        # Layers of one width are one matrix, so that a median is one call for all of them.
        self._by_width: list[tuple[Tensor, Tensor]] = []
        for width in sorted(set(channels) - {0}):
            same = (counts == width).nonzero().flatten()
            at = self._offsets[same, None] + torch.arange(width, device="cpu")
            self._by_width.append((same, at))

    def count(self, mask: Tensor) -> Tensor:
        """How many channels of each layer are set in a mask: int64."""
        ends = F.pad(mask.cumsum(-1, dtype=torch.int32), (1, 0))[..., self._offsets]
        return ends.diff(dim=-1).long()

    def any(self, mask: Tensor) -> Tensor:
        """Whether a channel of each layer is set in a mask."""
        return self.count(mask) > 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum of each layer's values. NaN is passed over."""
        return self._reduce(values if _complete(values) else values.where(~values.isnan(), 0.0), "sum", 0.0)

    def mean(self, values: Tensor) -> Tensor:
        """Mean of each layer's values. NaN is passed over; a layer of only NaN gives NaN."""
        if _complete(values):
            return (self._reduce(values, "sum", 0.0) / self.sizes).where(self._offsets.diff() > 0, torch.nan)
        known = self.count(~values.isnan())
        return (self.sum(values) / known.clamp(min=1)).where(known > 0, torch.nan)

    def max(self, values: Tensor) -> Tensor:
        """Largest value of each layer. NaN is passed over; a layer of only NaN gives NaN."""
        if _complete(values):
            return self._reduce(values, "max", -torch.inf).where(self._offsets.diff() > 0, torch.nan)
        known = ~values.isnan()
        top = self._reduce(values.where(known, -torch.inf), "max", -torch.inf)
        return top.where(self.any(known), torch.nan)

    def median(self, values: Tensor) -> Tensor:
        """Middle value of each layer, the lower of two: ``[C]`` to ``[L]``. NaN is passed over; only NaN gives NaN."""
        out = values.new_full((self._layers,), torch.nan)
        complete = _complete(values)
        for layers, at in self._by_width:
            rows = values[at]
            out[layers] = _middle(rows) if complete else rows.nanmedian(1).values
        return out

    def _reduce(self, values: Tensor, how: str, initial: float) -> Tensor:
        lead = values.shape[:-1]
        if not self._total:
            return values.new_full((*lead, self._layers), initial)
        offsets = self._offsets.expand(*lead, -1).contiguous()
        return torch.segment_reduce(values.contiguous(), how, offsets=offsets, axis=-1 % values.dim(), initial=initial)


def _complete(values: Tensor) -> bool:
    """Whether no value is NaN. A sum that is no NaN has no NaN in it: that costs a tenth of looking for one."""
    return not bool(values.sum().isnan())


def _middle(rows: Tensor) -> Tensor:
    """Lower middle of each row of a matrix without NaN; NumPy's partition is several times faster than a median."""
    import numpy as np

    at = (rows.shape[1] - 1) // 2
    return torch.from_numpy(np.partition(rows.detach().numpy(), at, axis=1)[:, at].copy())
