"""How much the means of batches differ, compared with those of independent samples."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from bnmonitor.limits import FLAT
from bnmonitor.measures.batch_differences import Plan, bends, rounding, since_when, steps
from bnmonitor.measures.batch_samples import (
    ALLOWED,
    DISTANCES,
    LAG,
    LEAST_DRAWS,
    TURNS,
    Found,
    samples_after_warm_up,
    updates_are_typical,
    views_together,
)
from bnmonitor.measures.moments import looked_at
from bnmonitor.measures.products import product
from bnmonitor.measures.robust import Array, lower_median
from bnmonitor.window import Window

EDGES_BENT = 1.5
"""Share of a jump in successive differences, over that in second differences: 1 / 2 over 2 / 6."""

DISTANT_LAGS = 16, 24, 32
"""Lags over which weights wander, and at which blocks of batches differ no more than at a lag of four."""

TURNING = 0.5
"""Part of what weights move over a lag, squared, that they move it out of its direction within twice the lag.

Successive moves with a correlation ``r`` make second differences of ``2 / 3 * (1 - r)`` of the first. Under a momentum
of .9 that is .27 at eight steps and .41 at sixteen; independent steps make two thirds, but of far less than is granted.
"""

TURN = 0.7
"""Largest part of its distance from zero by which weights may move a batch mean in a step, if they move only the mean.

A filter that turns by an angle moves its product with the mean by the angle times the root of its fan-in, as a part of
what that product typically is: .7 is a turn of 13 degrees of a 3x3 filter. Weights in front of a normalization turn by
about ``sqrt(2 * rate * decay)`` a step once they are in balance (Wan et al. 2021, Spherical Motion Dynamics), a degree
or a few; plain SGD at rates of .2 and .5, on data with a mean of .5 to 5 deviations, made up to .36 of the distance.
"""

QUIET = 0.25
"""Part of the steps that must be as calm as independent batches for a finding of blocks of batches.

In blocks of two, half of all neighbors are of one block; weights that jump do so in every step.
"""

ONE_SAMPLE = 4.5 / 3.5
"""4.5 standard errors instead of 3.5 where one sample tells the spread of samples, and distant batches are compared.

The largest of the ratios at several distances counts, and all are off alike where that sample shows too little."""

ONE_CHANGE = 0.7
"""Part of the log of what chance explains that the excess of blocks is beyond without the largest change of level.

Other data, or another augmentation, changes the level once: then nothing is left. Of eight blocks most is left."""

MOST_OF_IT = 0.2
"""Part of an excess that may be left where one change of level made it: weights follow a large change for some time."""

OUTDATED = 1.25
"""How many times more is due to chance where no sample is from the window itself.

Weights go on, and with them what samples have in common: in a one-cycle run the ratio doubled within 70 steps."""


def means_of_batches(
    window: Window, layer: int, plan: Plan, size: float, *, still: bool, stirred: Tensor
) -> Found | None:
    """Judge the batch means of a layer; None where too little is known.

    Args:
        window: The window.
        layer: Position of the layer.
        plan: How batches of another size are treated.
        size: Samples that are normalized together.
        still: Whether no weights are before the layer.
        stirred: ``[S, C]`` of the layer's channels, variance that each sampled update of the weights gave to a mean.
    """
    layers, sample, span = window.layers, window.sample, window.layers.span(layer)
    assert sample is not None
    one_value = bool(sample.size[layer] == sample.values[layer])
    draws = len(window) * (size - 1) if one_value else looked_at(int(sample.size[layer])) - 1
    if draws < LEAST_DRAWS:
        return None
    var = window.batch_var[:, span].double().mean(0)
    between: float | Tensor = 1.0
    if not one_value:
        ratios = [s.between[span].double() / s.input.var[span].double() for s in samples_after_warm_up(window, layer)]
        between = torch.stack(ratios).nanmean(0)
        draws *= len(ratios)
    expected = between * views_together(window, layer) / size * plan.factor + rounding(window, layer) / var
    rows = window.batch_mean[:, span].double() / var.sqrt()
    good = (var > FLAT * layers.eps[layer]) & expected.isfinite() & (expected > 0) & rows.isfinite().all(0)
    if not good.any():
        return None
    # A variance over n values is off by (kurtosis - 1) / n, relative and squared; successive differences have two
    # thirds of the degrees of freedom of as many independent values.
    tails = float(sample.input.kurtosis[span].double()[good].nan_to_num(3.0).clamp(min=3.0).median())
    # Channels that vary independently share out the noise; samples that are far from zero are so in all channels.
    whole = bool(good.all())
    x, usual = (rows, expected) if whole else (rows[:, good], expected[good])
    # Averaged over the channels as the changes are that it is compared with.
    moved = stirred[:, good].mean(1) if plan.left_out is None else stirred[:, good].median(1).values
    most = float(moved.max()) if len(moved) else math.nan
    return _found(window, layer, plan, x.numpy(), usual.numpy(), tails, draws, still=still, stirred=most)


def _found(
    window: Window,
    layer: int,
    plan: Plan,
    x: Array,
    expected: Array,
    tails: float,
    draws: float,
    *,
    still: bool,
    stirred: float,
) -> Found:
    """Judge the batch means ``[T, C]`` of some channels, in deviations, by the variance that is expected of them."""
    sample = window.sample
    assert sample is not None
    channels = _independent_channels(x / np.sqrt(expected))
    chance = math.exp(3.5 * math.sqrt((3 / len(window) + 2 / draws) / channels + (tails - 3) / draws))
    if not still and sample.step < window.steps[0]:
        chance *= OUTDATED
    moved = expected if still else expected + _stirred(x)
    turns = plan.ratio(steps(x), moved, 2)
    alternation = min(plan.ratio(steps(x, lag), moved, 2) for lag in TURNS) / max(turns, 1e-12) - 1

    def compared(x: Array) -> tuple[float, float, int, float]:
        """Compare batches near to each other and far apart, at which distance; with what chance explains there."""
        # Without the drift both are still less.
        near, far, lag, limit = plan.ratio(steps(x), moved, 2), plan.ratio(bends(x, LAG), expected, 3), LAG, chance
        if max(near, far) > chance and not still:
            near, far = _without_drift(x, expected, moved, plan, near, far)
        if not still and stirred == stirred:
            turn = 0.0 if updates_are_typical(window, layer) else _stirred(x)
            distant, at, by_neighbors = _of_blocks(x, expected, plan, turn, stirred, channels)
            if distant > far:
                spread = bool(sample.values[layer] > sample.size[layer])
                alone = spread and len(samples_after_warm_up(window, layer)) == 1
                far, lag, limit = distant, at, by_neighbors or (chance**ONE_SAMPLE if alone else chance)
        return near, far, lag, limit

    near, far, lag, limit = compared(x)
    chance = limit if far > near else chance
    excess = max(near, far)
    if excess <= chance:
        return Found(excess, chance, 0.0, min(alternation, 0.0), turns)
    blocks = bends(x, LAG) if lag == LAG else steps(x, lag)
    since = since_when(blocks / expected, lag) if far > near else since_when(steps(x) / moved, 1)
    left = compared(_without_change(x, expected))[1] if far > near else excess
    once = left <= max(chance**ONE_CHANGE, 1 + MOST_OF_IT * (excess - 1))
    return Found(excess, chance, since, min(alternation, 0.0), turns, once=once)


def _of_blocks(
    x: Array, expected: Array, plan: Plan, turn: float, stirred: float, channels: float
) -> tuple[float, int, float | None]:
    """Compare distant batches ``[T, C]``, which differ from block to block where the data comes in blocks.

    What the weights moved in one step they move by so many times that in as many steps, at most. In second differences
    most of that cancels, while blocks differ as much.

    Returns:
        The largest excess, its distance, and the excess that chance explains, where neighbors tell; else None.
    """
    # Neighbors that differ less than expected show what independent samples give better than one sample does.
    alike = plan.ratio(steps(x), expected, 2)
    usual, found = expected * min(alike, 1.0) + turn, {}
    for k in DISTANCES:
        moved = k * k * ALLOWED * stirred
        found[k] = plan.ratio(steps(x, k), usual + moved, 2)
        if 6 * k <= len(x):  # enough are left
            found[k] = max(found[k], plan.ratio(bends(x, k), usual + TURNING * moved, 3))
    lag = max(found, key=lambda k: found[k])
    by_neighbors = math.exp(3.5 * math.sqrt(2 * 3 / len(x) / channels)) if alike < 1 else None
    return found[lag], lag, by_neighbors


def _without_change(x: Array, expected: Array) -> Array:
    """``[T, C]`` without the largest change of level: of the means of all rows before and after some row."""
    scaled = (x - x.mean(0)) / np.sqrt(expected)
    rows, before = len(x), np.arange(1, len(x))
    at = int((np.square(scaled.cumsum(0)[:-1]).sum(1) * rows / (before * (rows - before))).argmax()) + 1
    level = np.repeat(np.stack([x[:at].mean(0), x[at:].mean(0)]), [at, rows - at], axis=0)
    changed: Array = x - level + x.mean(0)
    return changed


def _independent_channels(scaled: Array) -> float:
    """How many independent channels change as much from batch to batch as the median of these: ``[T, C]``.

    The number is that of the eigenvalues of their covariance, weighted by size; a median needs 1.57 times as many
    values as a mean to be as exact.
    """
    changes = np.diff(scaled, axis=0)
    # The eigenvalues' sum is the trace, and that of their squares the sum of all squares.
    products = product(changes, changes.T)
    number = float(products.trace() ** 2 / max(np.square(products).sum(), 1e-30))
    return max(1.0, number / 1.57)


def _without_drift(x: Array, expected: Array, moved: Array, plan: Plan, near: float, far: float) -> tuple[float, float]:
    """Subtract the drift of the weights from the excess of ``[T, C]`` at lags of one and of four steps.

    Second differences of neighbors are free of constant speed; their growth from one step to two is that of a random
    walk. Of the excess at a lag of four, blocks of batches explain no more than their edges; most neighbors in a block
    differ like independent batches, and batches at a larger lag differ no more than those at four.
    """
    near_by, turned = steps(x), bends(x, 1)
    bent, quiet = plan.ratio(turned, moved, 3), float(np.quantile(near_by.sum(1) / expected.sum(), QUIET))
    walk = float(lower_median((moved - expected) / moved)) * 2 / 3
    near = min(near, bent) - min(walk, max(0.0, plan.ratio(bends(x, 2), moved, 3) - bent))
    if quiet > 1:
        return near, near
    if plan.left_out is None:  # a median over the steps would lose the edges of blocks
        edges, turns = (float(lower_median(d.mean(0) / expected)) for d in (near_by, turned))
    else:
        edges, turns = (plan.ratio(d, expected, n) for d, n in ((near_by, 2), (turned, 3)))
    distant = sum(plan.ratio(steps(x, lag), expected, 2) for lag in DISTANT_LAGS) / len(DISTANT_LAGS)
    far -= max(0.0, distant - plan.ratio(steps(x, LAG), expected, 2))
    return near, min(far, 1 + LAG * (min(edges, EDGES_BENT * turns) - 1))


def _stirred(x: Array) -> float:
    """Variance that weights may give to successive batch means ``[T, C]`` by turning.

    Weights move within the span of their inputs; the mean has a part ``a / (1 + a)`` of it, where ``a`` is the square
    of its distance from zero in deviations.
    """
    away = float(np.square(x.mean(0)).mean())
    return TURN**2 / 2 * away * away / (1 + away)
