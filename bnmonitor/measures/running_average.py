"""The running average of BatchNorm: the weight of an update, and the batch that made it."""

from __future__ import annotations

import torch
from torch import Tensor


def update_weight(momentum: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Return the weight of all new batches in a running statistic after its updates.

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
    """Return the batch statistic that turned the running statistic ``before`` into ``after``.

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
