"""Differences between the batches of a window, and how to treat those that are smaller than the others.

In NumPy: of a layer's window PyTorch takes longer to begin an operation than to compute it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bnmonitor.measures.robust import Array, lower_median
from bnmonitor.measures.small_variances import variances
from bnmonitor.window import Window

EDGE_OF_CHANGE = 1.5 * math.log(3.0)
"""Between 1 and 3: a ratio of variances that is as likely before as after a rise from the one to the other."""

FEW_BATCHES = 8
"""Up to so many batches in an epoch, an incomplete last one is too large a part of all to be left out."""

NEW_LEVEL = math.log(10.0)
"""How far all logs of the variances after a step are from all those before it, where the level changed for good."""

NEW_PLACE = 3.0
"""The same of the means, in standard deviations."""


@dataclass(frozen=True)
class Plan:
    """How to treat batches that are smaller than the others.

    Attributes:
        factor: The factor by which they raise the expected variance.
        left_out: How many steps to leave out, as they may have such a batch; None: unknown.
    """

    factor: float
    left_out: int | None

    def ratio(self, squares: Array, expected: Array, each: int) -> float:
        """Return ``[T, C]`` over its expectation; ``each`` is the number of rows that one step is part of."""
        if self.left_out is None:
            # The median over the steps is not moved by a small batch at the end of each epoch.
            return float(lower_median(squares.sum(1) / expected.sum()))
        ratios = squares / expected
        if self.left_out:
            ratios = ratios[ratios.mean(1).argsort(kind="stable")[: max(1, len(ratios) - each * self.left_out)]]
        return float(lower_median(ratios.mean(0)))


def plan_of(window: Window, layer: int) -> Plan | None:
    """Plan by how the loader draws batches; None if an incomplete one is too large a part of all, of unknown size."""
    loader, sample = window.facts.train_loader, window.sample
    if loader is None:
        # Nothing is known of the sizes: a small batch now and then does not move a median over the steps.
        return None if 0 < window.facts.epoch_steps <= FEW_BATCHES else Plan(1.0, None)
    if loader.batch_size is None:
        # A batch sampler of the user's: usually its batches are of one size, but for the last.
        same = sample is not None and bool(sample.size[layer] == window.baseline.sizes[layer])
        return Plan(1.0, 1 if same else None)
    left = loader.leftover
    if left is None:
        return Plan(1.0, 1)
    if not left or loader.batches is None:
        return Plan(1.0, 0)
    if left < loader.batch_size / 2 and loader.batches > FEW_BATCHES:
        return Plan(1.0, math.ceil(len(window) / loader.batches))
    return Plan(1 + (loader.batch_size / left - 1) / loader.batches, 0)


def bends(x: Array, lag: int) -> Array:
    """Squares of the second differences of ``[T, C]``, which have the variance of independent rows as their mean."""
    squares: Array = np.square(x[2 * lag :] - 2 * x[lag:-lag] + x[: -2 * lag]) / 6
    return squares


def steps(x: Array, lag: int = 1) -> Array:
    """Squares of the first differences of ``[T, C]``, which have the variance of independent rows as their mean."""
    squares: Array = np.square(x[lag:] - x[:-lag]) / 2
    return squares


def since_when(ratios: Array, lag: int, edge: float = EDGE_OF_CHANGE) -> float:
    """Position at which ``[T, C]`` ratios of variances rose, by the sum from there to the end (Page 1954)."""
    # A single wild batch is no beginning.
    gain = (np.minimum(ratios.mean(1), 3 * edge) - edge)[::-1].cumsum()[::-1]
    at = int(gain.argmax())
    return float(at + lag if at else 0)


def rounding(window: Window, layer: int) -> Tensor:
    """Variance that the rounding of the running mean leaves in the batch mean that was recovered from it: ``[C]``."""
    momentum = float(window.momentum[-1, layer])
    weight = momentum if momentum > 0 else 1 / max(1, int(window.baseline.updates[layer]))
    span = window.layers.span(layer)
    return (torch.finfo(torch.float32).eps * window.running_mean[-1, span].double() / weight).square()


def changed_for_good(window: Window, layer: int) -> bool:
    """Whether most channels of a layer have another variance or mean from some step on: not a matter of the order.

    Other weights or other data do that. Batches of several kinds come back to where they were.
    """
    span = window.layers.span(layer)
    var = variances(window, channels=span).double()
    mean = window.batch_mean[:, span].double() / (var + window.layers.eps[layer]).sqrt()
    return _widest_gap(var.log().numpy()) > NEW_LEVEL or _widest_gap(mean.numpy()) > NEW_PLACE


@np.errstate(invalid="ignore")
def _widest_gap(x: Array) -> float:
    """How far all rows of ``[T, C]`` after a step are from all rows before it, at the best step, in the middle channel.

    Negative where the rows after overlap with those before.
    """
    finite = np.isfinite(x)

    def above(x: Array) -> Array:
        after, before = (x, x) if finite.all() else (np.where(finite, x, np.inf), np.where(finite, x, -np.inf))
        gap = np.minimum.accumulate(after[::-1])[::-1][1:] - np.maximum.accumulate(before)[:-1]
        # Infinite where nothing is known on one side.
        return np.where(np.isfinite(gap), gap, -np.inf)

    return float(lower_median(np.maximum(above(x), above(-x))).max())
