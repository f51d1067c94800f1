"""Updates of the running statistics that only some steps have, besides those that every step has."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bnmonitor.measures.reductions import _median_of_some, _some, once
from bnmonitor.measures.robust import mean_over_steps
from bnmonitor.measures.running_lag import warm
from bnmonitor.window import Window


@dataclass(frozen=True)
class SideUpdates:
    """The updates beyond those of a usual step.

    Attributes:
        extra: ``[L]`` how many there are in the steps that were compared.
        shift: ``[L]`` distance of their batches from the running mean, in deviations, in the middle channel; 0 where it
            is not beyond that of the usual steps.
        ratio: ``[L]`` log of the ratio of their variance to the usual one, likewise.
        weight: ``[L]`` their share in the running statistics at the end of such a step; 0 for a cumulative average.
        since: ``[L]`` int64, position of the first step that has some.
    """

    extra: Tensor
    shift: Tensor
    ratio: Tensor
    weight: Tensor
    since: Tensor


BEYOND = 3.0
"""How many times as far as those of the usual steps a batch must be from the running statistics."""

SMALLEST = 1e-6
"""Smallest ratio of two variances that is told."""


@once
def side_updates(window: Window) -> SideUpdates | None:
    """Compare the steps in which the running statistics were updated more often than usual with the others.

    The batches of such a step come back as one average, of which the usual ones are a part: the others are further
    from the running statistics by the inverse of theirs.

    Returns:
        None if there is no such step, as nearly always.
    """
    updates = window.updates
    usual = updates.median(0).values
    odd = (updates > usual) & (usual > 0) & warm(window)[:-1] & window.training
    if not odd.any():
        return None
    extra = (updates - usual).where(odd, 0)
    part = (extra / updates.clamp(min=1)).clamp(min=torch.finfo(torch.float32).tiny)
    even = (updates == usual) & (usual > 0)
    far = _by_layer(window.shift.abs(), odd, window) / _mean_part(part, odd)
    near = _by_layer(window.shift.abs(), even, window)
    # The variance of a mixture; its log where the usual batches have a log of about 0.
    mixed, normal = (_by_layer(window.ratio.square(), which, window) for which in (odd, even))
    alone = (1 + (mixed / normal - 1) / _mean_part(part, odd)).clamp(min=SMALLEST).log()
    noise = _by_layer(window.ratio.clamp(min=1e-6).log().abs() * 2, even, window)
    return SideUpdates(
        extra=extra.sum(0),
        shift=far.where(far > BEYOND * near, 0.0).nan_to_num(0.0),
        ratio=alone.where(alone.abs() > BEYOND * noise, 0.0).nan_to_num(0.0),
        weight=_mean_part(1 - (1 - window.momentum.double()).clamp(min=0) ** extra, odd).nan_to_num(0.0),
        since=odd.long().argmax(0),
    )


def _by_layer(values: Tensor, which: Tensor, window: Window) -> Tensor:
    """Mean over some steps of each layer, in the middle of some channels: ``[T, C]`` and ``[T, L]`` to ``[L]``."""
    chosen = values.where(which[:, window.layers.owner], torch.nan)
    return _median_of_some(mean_over_steps(_some(chosen, window)), window)


def _mean_part(part: Tensor, which: Tensor) -> Tensor:
    return (part * which).sum(0) / which.sum(0).clamp(min=1)
