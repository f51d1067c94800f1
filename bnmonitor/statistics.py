"""Pure tensor functions over the flat channel axis: recovery and robust reductions over steps.

Shapes: ``C`` channels of all layers end to end, ``L`` layers, ``T`` steps.
"""

from __future__ import annotations

from enum import IntEnum

import torch
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
    low, high = (torch.minimum, torch.maximum) if not rows.sum().isnan() else (torch.fmin, torch.fmax)
    while len(rows) > 2:
        third = len(rows) // 3
        a, b, c = rows[:third], rows[third : 2 * third], rows[2 * third : 3 * third]
        rows = high(low(a, b), low(high(a, b), c))
    return low(rows[0], rows[-1])
