"""Pure tensor functions over the flat channel axis: recovery, segments, robust reductions.

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
    NO_UPDATE = 2
    NO_BUFFERS = 3
    PRECISION = 4
    FOREIGN = 5
    NO_MOMENTUM = 6
    NON_FINITE = 7

    @property
    def reason(self) -> str:
        """One sentence for people."""
        return _REASONS[self]


_REASONS = {
    Recovery.EXACT: "recovered from one update of the running statistics",
    Recovery.AVERAGED: "several updates between two reads: the weighted average of their batches",
    Recovery.NO_UPDATE: "the running statistics were not updated in this step",
    Recovery.NO_BUFFERS: "the layer keeps no running statistics",
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


def recover(before: Tensor, after: Tensor, weight: Tensor) -> Tensor:
    """Batch statistic that turned the running statistic ``before`` into ``after``.

    Solves ``after = before + weight (batch - before)``. The difference is taken first: for close numbers it is
    exact, so that float32 loses nothing beyond what the buffer itself had rounded away.

    Args:
        before: ``[..., C]`` running statistic before the update.
        after: ``[..., C]`` the same after it.
        weight: ``[..., C]`` from :func:`update_weight`.

    Returns:
        ``[..., C]``; NaN where the weight is 0. Its rounding error is about ``ulp(after) / (2 weight)``.
    """
    return before + (after - before) / weight.where(weight > 0, torch.nan).to(after.dtype)


def segment_sum(values: Tensor, owner: Tensor, layers: int) -> Tensor:
    """Sum ``[..., C]`` over the channels of each layer: ``[..., L]``. NaN counts as 0."""
    values = values.where(~values.isnan(), 0.0) if values.is_floating_point() else values.long()
    out = torch.zeros((*values.shape[:-1], layers), dtype=values.dtype, device=values.device)
    return out.index_add_(-1, owner, values)


def segment_max(values: Tensor, owner: Tensor, layers: int) -> Tensor:
    """Largest value of each layer: ``[C]`` to ``[L]``. NaN is passed over; a layer of only NaN gives NaN."""
    low = torch.full((layers,), -torch.inf, dtype=values.dtype, device=values.device)
    known = values.where(~values.isnan(), -torch.inf)
    top = low.scatter_reduce_(0, owner, known, "amax")
    return top.where(segment_sum(~values.isnan(), owner, layers) > 0, torch.nan)


def segment_median(values: Tensor, owner: Tensor, layers: int) -> Tensor:
    """Median over the channels of each layer: ``[C]`` to ``[L]``; the lower of two middle values.

    One sort of all layers together: the layer in the upper half of an integer key, the value, mapped to an
    integer of the same order, in the lower half. NaN is passed over; a layer of only NaN gives NaN.
    """
    values = values.float()
    bits = values.where(~values.isnan(), torch.inf).view(torch.int32).long()
    ordered = torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits) + (1 << 31)
    nan_last = torch.where(values.isnan(), (1 << 32) - 1, ordered)
    order = ((owner.long() << 32) | nan_last).argsort()
    known = segment_sum(~values.isnan(), owner, layers)
    sizes = torch.bincount(owner, minlength=layers)
    middle = sizes.cumsum(0) - sizes + (known - 1).clamp(min=0) // 2
    if not len(values):
        return torch.full((layers,), torch.nan, device=values.device)
    picked = values[order[middle.clamp(max=len(values) - 1)]]
    return picked.where(known > 0, torch.nan)


def trailing_run(mask: Tensor) -> Tensor:
    """Length of the run of True that ends at the last row: ``[T, ...]`` to ``[...]``."""
    return mask.flip(0).long().cumprod(0).sum(0)
