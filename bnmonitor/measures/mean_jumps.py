"""Moves of the batch means that happened at once, and stayed."""

from __future__ import annotations

import torch
from torch import Tensor

from bnmonitor.measures.batches import batch_distance
from bnmonitor.measures.reductions import median, once
from bnmonitor.measures.running_lag import NEWEST
from bnmonitor.window import Window

AGREE = 4
"""One in so many of the newest steps may be elsewhere: an odd batch, or the last ones before the move."""


def may_have_moved(window: Window, limit: float) -> bool:
    """Whether :func:`moved_mean` may be above a limit in any layer: False costs next to nothing.

    A running mean that follows has come closer meanwhile, at the usual momentum by a half within the steps.
    """
    return bool((batch_distance(window) > limit / 4).any())


@once
def moved_mean(window: Window) -> Tensor:
    """Deviations by which the batch means of the newest steps are away to one side in the middle channel: ``[L]``.

    Away from the running statistics before these steps; so far, and further, are three quarters of the steps.
    """
    if len(window) <= NEWEST:
        return torch.zeros(len(window.layers), device="cpu")
    return median(_one_sided(_away(window)), window)


def moves(window: Window, layer: int) -> Tensor:
    """How far the batch mean of a layer was to the side to which it moved, in the middle channel: ``[T]``."""
    steps, span = NEWEST, window.layers.span(layer)
    before = window.running_mean[-steps - 1, span]
    scale = (window.running_var[-steps - 1, span] + window.layers.eps[layer]).sqrt()
    away = (window.batch_mean[:, span] - before) / scale
    return (away * away[-steps:].nanmedian(0).values.sign()).nanmedian(1).values


def _away(window: Window) -> Tensor:
    """Distance of the batch means of the newest steps from the running mean before them, in deviations: ``[T, C]``."""
    before, var = window.running_mean[-NEWEST - 1], window.running_var[-NEWEST - 1]
    return (window.batch_mean[-NEWEST:] - before) / (var + window.layers.eps_by_channel).sqrt()


def _one_sided(away: Tensor) -> Tensor:
    """Least distance of all but one in :data:`AGREE` steps, 0 where they are on both sides: ``[T, C]`` to ``[C]``."""
    ordered = away.sort(0).values
    apart = len(away) // AGREE
    return torch.maximum(ordered[apart], -ordered[-1 - apart]).clamp(min=0.0)
