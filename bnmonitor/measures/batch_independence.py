"""How much batches differ, compared with batches of independently drawn samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bnmonitor.limits import FLAT
from bnmonitor.measures.batches import samples_normalized
from bnmonitor.measures.learning_rate import rises
from bnmonitor.measures.moments import looked_at
from bnmonitor.measures.reductions import once
from bnmonitor.measures.running_lag import LEAST_WARM_UP, settled
from bnmonitor.window import Window

LAG = 4
"""Steps between the batches that are compared to find blocks of similar batches."""

EDGES_BENT = 1.5
"""Share of a jump in successive differences, over that in second differences: 1 / 2 over 2 / 6."""

DISTANT_LAGS = 16, 24, 32
"""Lags over which weights wander, and at which blocks of batches differ no more than at a lag of four."""

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

EDGE_OF_CHANGE = 1.5 * math.log(3.0)
"""Between 1 and 3: a ratio of variances that is as likely before as after a rise from the one to the other."""

LEAST_PAIRS = 50
"""Least number of differences of batches for a result."""

LEAST_DRAWS = 15
"""Least degrees of freedom of the variance between samples for a result: those of 16 samples."""

FEW_BATCHES = 8
"""Up to so many batches in an epoch, an incomplete last one is too large a part of all to be left out."""


@dataclass(frozen=True)
class Independence:
    """How the batches of each layer that gets the data differ, where that is more than chance explains.

    All ``[L]``, NaN where it is not more, or not known.

    Attributes:
        excess: Variance of the batch mean from batch to batch, over what independent samples would give: about 1 if
            they are.
        chance: The excess that chance may explain, 3.5 standard errors of its log away from 1.
        share: Part of the variance between samples that the batches explain (the intraclass correlation).
        alternation: Correlation of the means of two successive batches, a trend removed.
        since: Position in the window of the first batch that differs from those before it by that much; 0 if all do.
    """

    excess: Tensor
    chance: Tensor
    share: Tensor
    alternation: Tensor
    since: Tensor

    def beyond(self, limit: float, share: float) -> Tensor:
        """``[L]`` bool: the excess is above a limit and above chance, and batches explain more than a share."""
        return (self.excess > self.chance.clamp(min=limit)) & (self.share > share)


@once
def independence(window: Window) -> Independence:
    """Judge the layers without another upstream: their batch means are those of the data.

    Samples that are drawn independently give a batch mean a variance of ``between / N``: ``between`` is the variance of
    the samples' own means, ``N`` their number. The real variance of the batch means follows from successive differences
    (von Neumann 1941), and from second differences at a lag of four steps, in which a drift at any constant speed
    cancels: the weights before the layer move during the window. Blocks of similar batches show in these, at most four
    times as much as in successive ones, since the edge of a block is one pair of neighbors and four pairs at a lag of
    four. More than that is a drift, but for a layer on the input itself, before which nothing moves.

    For any other layer, a variance that grows with the lag is a wander of the weights as well. And where the means are
    far from zero, weights that jump move them, which in the means alone looks like another order of the data: weights
    that turn by a part ``TURN`` of their length move a mean by that part of its distance from zero, and so much counts
    as expected. So data with a large mean hide their order from a layer with weights before it, unless they come in
    blocks, in which most neighbors are similar. And the samples must be from after the layer's warm-up: the part of the
    variance that lies between samples depends on the weights before the layer, which change most in the first steps.
    """
    layers, sample, structure = window.layers, window.sample, window.facts.structure
    rows = torch.full((5, len(layers)), torch.nan, dtype=torch.float64, device="cpu")
    result = Independence(*rows)
    if sample is None or structure is None or not structure.places or len(window) < LEAST_PAIRS + 2 * LAG:
        return result
    sizes = samples_normalized(window)
    judged = structure.roots() & layers.which("normalizes_batch") & settled(window)
    judged &= (window.updates == 1).all(0) & window.training.all(0) & sizes.isfinite() & (sample.calls == 1)
    still = torch.tensor([place.distance == 0 for place in structure.places], device="cpu")
    updates = window.baseline.updates - (window.steps[-1] - sample.step)
    # Weights that begin to jump are not a drift at a constant speed.
    steady = torch.tensor(not rises(window), device="cpu")
    judged &= still | (steady & (updates >= LEAST_WARM_UP))
    for layer in judged.nonzero().flatten().tolist():
        plan, span, size = _plan(window, layer), layers.span(layer), float(sizes[layer])
        one_value = bool(sample.size[layer] == sample.values[layer])
        draws = len(window) * (size - 1) if one_value else looked_at(int(sample.size[layer])) - 1
        if plan is None or draws < LEAST_DRAWS:
            continue
        var = window.batch_var[:, span].double().mean(0)
        between = 1.0 if one_value else sample.between[span].double() / sample.input.var[span].double()
        expected = between / size * plan.factor + _rounding(window, layer) / var
        x = window.batch_mean[:, span].double() / var.sqrt()
        good = (var > FLAT * layers.eps[layer]) & expected.isfinite() & (expected > 0) & x.isfinite().all(0)
        if not good.any():
            continue
        # A variance over n values is off by (kurtosis - 1) / n, relative and squared; successive differences have two
        # thirds of the degrees of freedom of as many independent values.
        tails = float(sample.input.kurtosis[span].double()[good].nan_to_num(3.0).clamp(min=3.0).median())
        chance = math.exp(3.5 * math.sqrt(3 / len(window) + (tails - 1) / draws))
        x, expected = x[:, good], expected[good]
        moved = expected if still[layer] else expected + _stirred(x)
        near = plan.ratio(_steps(x), moved, 2)
        far = plan.ratio(_bends(x, LAG), expected, 3)
        if max(near, far) <= chance:  # as nearly always; without the drift both are still less
            continue
        if not still[layer]:
            near, far = _without_drift(x, expected, moved, plan, near, far)
        excess = max(near, far)
        result.chance[layer], result.excess[layer], result.alternation[layer] = chance, excess, _alternation(x)
        result.since[layer] = _since(_bends(x, LAG) / expected, LAG) if far > near else _since(_steps(x) / moved, 1)
        result.share[layer] = max(excess - 1, 0) / (max(excess - 1, 0) + size)
    return result


@dataclass(frozen=True)
class _Plan:
    """How to treat batches that are smaller than the others.

    Attributes:
        factor: The factor by which they raise the expected variance.
        left_out: How many steps to leave out, as they may have such a batch; None: unknown.
    """

    factor: float
    left_out: int | None

    def ratio(self, squares: Tensor, expected: Tensor, each: int) -> float:
        """Return ``[T, C]`` over its expectation; ``each`` is the number of rows that one step is part of."""
        if self.left_out is None:
            # The median over the steps is not moved by a small batch at the end of each epoch.
            return float((squares.sum(1) / expected.sum()).median())
        ratios = squares / expected
        if self.left_out:
            ratios = ratios[ratios.mean(1).argsort()[: max(1, len(ratios) - each * self.left_out)]]
        return float(ratios.mean(0).median())


def _plan(window: Window, layer: int) -> _Plan | None:
    """Plan by how the loader draws batches; None if an incomplete one is too large a part of all, of unknown size."""
    loader, sample = window.facts.train_loader, window.sample
    if loader is None:
        # Nothing is known of the sizes: a small batch now and then does not move a median over the steps.
        return None if 0 < window.facts.epoch_steps <= FEW_BATCHES else _Plan(1.0, None)
    if loader.batch_size is None:
        # A batch sampler of the user's: usually its batches are of one size, but for the last.
        same = sample is not None and bool(sample.size[layer] == window.baseline.sizes[layer])
        return _Plan(1.0, 1 if same else None)
    left = loader.leftover
    if left is None:
        return _Plan(1.0, 1)
    if not left or loader.batches is None:
        return _Plan(1.0, 0)
    if left < loader.batch_size / 2 and loader.batches > FEW_BATCHES:
        return _Plan(1.0, math.ceil(len(window) / loader.batches))
    return _Plan(1 + (loader.batch_size / left - 1) / loader.batches, 0)


def _bends(x: Tensor, lag: int) -> Tensor:
    """Squares of the second differences of ``[T, C]``, which have the variance of independent rows as their mean."""
    return (x[2 * lag :] - 2 * x[lag:-lag] + x[: -2 * lag]).square() / 6


def _steps(x: Tensor, lag: int = 1) -> Tensor:
    """Squares of the first differences of ``[T, C]``, which have the variance of independent rows as their mean."""
    return (x[lag:] - x[:-lag]).square() / 2


def _without_drift(
    x: Tensor, expected: Tensor, moved: Tensor, plan: _Plan, near: float, far: float
) -> tuple[float, float]:
    """Subtract the drift of the weights from the excess of ``[T, C]`` at lags of one and of four steps.

    Second differences of neighbors are free of constant speed; their growth from one step to two is that of a random
    walk. Of the excess at a lag of four, blocks of batches explain no more than their edges; most neighbors in a block
    differ like independent batches, and batches at a larger lag differ no more than those at four.
    """
    steps, bends = _steps(x), _bends(x, 1)
    bent, quiet = plan.ratio(bends, moved, 3), float((steps.sum(1) / expected.sum()).quantile(QUIET))
    walk = float(((moved - expected) / moved).median()) * 2 / 3
    near = min(near, bent) - min(walk, max(0.0, plan.ratio(_bends(x, 2), moved, 3) - bent))
    if quiet > 1:
        return near, near
    if plan.left_out is None:  # a median over the steps would lose the edges of blocks
        edges, turns = (float((d.mean(0) / expected).median()) for d in (steps, bends))
    else:
        edges, turns = (plan.ratio(d, expected, n) for d, n in ((steps, 2), (bends, 3)))
    distant = sum(plan.ratio(_steps(x, lag), expected, 2) for lag in DISTANT_LAGS) / len(DISTANT_LAGS)
    far -= max(0.0, distant - plan.ratio(_steps(x, LAG), expected, 2))
    return near, min(far, 1 + LAG * (min(edges, EDGES_BENT * turns) - 1))


def _stirred(x: Tensor) -> Tensor:
    """Variance that weights may give to successive batch means ``[T, C]`` by turning.

    Weights move within the span of their inputs; the mean has a part ``a / (1 + a)`` of it, where ``a`` is the square
    of its distance from zero in deviations.
    """
    away = x.mean(0).square().mean()
    return TURN**2 / 2 * away * away / (1 + away)


def _since(ratios: Tensor, lag: int) -> float:
    """Position at which ``[T, C]`` ratios of variances rose, by the sum from there to the end (Page 1954)."""
    gain = (ratios.mean(1) - EDGE_OF_CHANGE).flip(0).cumsum(0).flip(0)
    at = int(gain.argmax())
    return float(at + lag if at else 0)


def _rounding(window: Window, layer: int) -> Tensor:
    """Variance that the rounding of the running mean leaves in the batch mean that was recovered from it: ``[C]``."""
    momentum = float(window.momentum[-1, layer])
    weight = momentum if momentum > 0 else 1 / max(1, int(window.baseline.updates[layer]))
    span = window.layers.span(layer)
    return (torch.finfo(torch.float32).eps * window.running_mean[-1, span].double() / weight).square()


def _alternation(x: Tensor) -> float:
    """Lag-1 correlation of ``[T, C]`` over all channels, a linear trend of each removed."""
    time = torch.linspace(-1, 1, len(x), dtype=x.dtype, device="cpu")[:, None]
    x = x - x.mean(0)
    x = x - time * (time * x).sum(0) / time.square().sum()
    return float((x[1:] * x[:-1]).sum() / x.square().sum().clamp(min=1e-300))
