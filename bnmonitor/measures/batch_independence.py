"""How much batches differ, compared with batches of independently drawn samples."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bnmonitor.limits import FLAT
from bnmonitor.measures.batch_differences import Plan, bends, plan_of, rounding, since_when, steps
from bnmonitor.measures.batches import samples_normalized
from bnmonitor.measures.learning_rate import rises
from bnmonitor.measures.moments import looked_at
from bnmonitor.measures.reductions import once
from bnmonitor.measures.running_lag import LEAST_WARM_UP, settled
from bnmonitor.window import Sample, Window

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

OUTDATED = 1.25
"""How many times more is due to chance where no sample is from the window itself.

Weights go on, and with them what samples have in common: in a one-cycle run the ratio doubled within 70 steps."""

TURNS = 2, 3, 4
"""Kinds of batches that may take turns."""

DISTANCES = 2, 4, 8, 16, 24
"""Lags at which blocks of batches are looked for, where it is known how far the weights move."""

ALLOWED = 4.0
"""How many times the variance that one sampled update of the weights makes is granted to any update."""

LEAST_CHANNELS = 6
"""Channels from which the variances of a layer show more than one factor."""

LEAST_REST = 0.15
"""Least part of the changes that one common factor must leave."""

LEAST_BEYOND = 0.5
"""Least part of what is expected of independent samples that one common factor is taken to leave.

One far sample among those that were seen looks like a factor that all channels have in common."""

MIXED = 2.0
"""Most that the variance of independent batch means can be above what mixed samples in a batch show."""

EVEN = -0.5
"""Alternation above which batches do not take turns."""

HEAVY = 8.0
"""Kurtosis of the samples' own variances from which on their variances are not judged.

That of 32 values is 32 at most: so large a one says that the next samples will show a larger one."""

SUPPORT = 3.0
"""Excess of the means from which that of the variances is believed before it is known that images have one size."""

LEAST_SHAPES = 3
"""Samples that must have the same number of values to show that images have one size."""

LEAST_PAIRS = 50
"""Least number of differences of batches for a result."""

LEAST_DRAWS = 15
"""Least degrees of freedom of the variance between samples for a result: those of 16 samples."""


@dataclass(frozen=True)
class Independence:
    """How the batches of each layer that gets the data differ, where that is more than chance explains.

    All ``[L]``, NaN where it is not more, or not known.

    Attributes:
        excess: Variance of the batch mean from batch to batch, over what independent samples would give: about 1 if
            they are. Or the same of the log of the batch variance, where that is larger.
        by_variance: Whether it is that of the variance.
        chance: The excess that chance may explain, 3.5 standard errors of its log away from 1.
        share: Part of the variance between samples that the batches explain (the intraclass correlation).
        alternation: Of batches that take turns, how much less those of the same turn differ than successive ones, as a
            share, with a minus sign: 0 if they differ as much, -1 if not at all.
        turns: The excess of what takes turns from one batch to the next.
        turns_by_variance: Whether it is that of the variance.
        since: Position in the window of the first batch that differs from those before it by that much; 0 if all do.
    """

    excess: Tensor
    by_variance: Tensor
    chance: Tensor
    share: Tensor
    alternation: Tensor
    turns: Tensor
    turns_by_variance: Tensor
    since: Tensor

    def beyond(self, limit: float, share: float) -> Tensor:
        """``[L]`` bool: the excess is above a limit and above chance, and batches explain more than a share."""
        return (self.excess > self.chance.clamp(min=limit)) & (self.share > share)


@dataclass(frozen=True)
class _Found:
    """What one statistic shows of one layer: fields as in :class:`Independence`.

    Attributes:
        common: Whether what changes from batch to batch is mostly one factor that all channels have in common.
    """

    excess: float
    chance: float
    since: float
    alternation: float
    turns: float
    common: bool = False


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
    rows = torch.full((8, len(layers)), torch.nan, dtype=torch.float64, device="cpu")
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
        plan, size = plan_of(window, layer), float(sizes[layer])
        if plan is None:
            continue
        stirred = torch.zeros(2, device="cpu") if still[layer] else _stirred_by_update(window, layer)
        mean = _of_means(window, layer, plan, size, still=bool(still[layer]), stirred=float(stirred[0]))
        if mean is None:
            continue
        variance = variances_of_batches(window, layer, plan, size, float(stirred[1]))
        if variance is not None and variance.common:
            # Mixed samples are no longer independent of one another: at most as much as pairs of equal ones.
            mean = replace(mean, excess=mean.excess / MIXED, turns=mean.turns / MIXED)
        # Sizes of images are drawn anew for each batch: they do not take turns.
        believed = variance is not None and (mean.excess >= SUPPORT or _of_one_shape(window, layer))
        found = mean
        if believed and variance is not None and variance.excess > max(variance.chance, mean.excess):
            found = variance
        turning = found
        for other in (mean, variance):
            if other is not None and other.alternation < 0 and other.turns > other.chance:
                turning = min(turning, other, key=lambda f: f.alternation if f.turns > f.chance else 0.0)
        if max(found.excess, turning.turns) <= found.chance:  # as nearly always
            continue
        result.chance[layer], result.excess[layer] = found.chance, found.excess
        result.by_variance[layer], result.turns_by_variance[layer] = found is variance, turning is variance
        result.alternation[layer], result.turns[layer] = turning.alternation, turning.turns
        # Differences of the means date the beginning best: what they show is known of each batch.
        dated = mean if mean.excess > mean.chance else found if found.excess >= turning.turns else turning
        result.since[layer] = dated.since
        most = max(found.excess, turning.turns) - 1
        result.share[layer] = max(most, 0) / (max(most, 0) + size)
    return result


def _of_means(window: Window, layer: int, plan: Plan, size: float, *, still: bool, stirred: float) -> _Found | None:
    """Judge the batch means of a layer; None where too little is known."""
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
    expected = between * twins(window, layer) / size * plan.factor + rounding(window, layer) / var
    x = window.batch_mean[:, span].double() / var.sqrt()
    good = (var > FLAT * layers.eps[layer]) & expected.isfinite() & (expected > 0) & x.isfinite().all(0)
    if not good.any():
        return None
    # A variance over n values is off by (kurtosis - 1) / n, relative and squared; successive differences have two
    # thirds of the degrees of freedom of as many independent values.
    tails = float(sample.input.kurtosis[span].double()[good].nan_to_num(3.0).clamp(min=3.0).median())
    # Channels that vary independently share out the noise; samples that are far from zero are so in all channels.
    channels = _independent_channels(x[:, good] / expected[good].sqrt())
    chance = math.exp(3.5 * math.sqrt((3 / len(window) + 2 / draws) / channels + (tails - 3) / draws))
    if not still and sample.step < window.steps[0]:
        chance *= OUTDATED
    x, expected = x[:, good], expected[good]
    moved = expected if still else expected + _stirred(x)
    near = plan.ratio(steps(x), moved, 2)
    alternation = min(plan.ratio(steps(x, lag), moved, 2) for lag in TURNS) / max(near, 1e-12) - 1
    turns = near
    # Without the drift both are still less.
    far = plan.ratio(bends(x, LAG), expected, 3)
    lag, blocks_chance = LAG, chance
    if max(near, far) > chance and not still:
        near, far = _without_drift(x, expected, moved, plan, near, far)
    if not still and stirred == stirred:
        # What the weights moved in one step they move by so many times that in as many steps, at most. One update
        # may have been a small one.
        turn = 0.0 if _updates_seen(window, layer) > 1 else _stirred(x)
        # Neighbors that differ less than expected show what independent samples give better than one sample does.
        alike = plan.ratio(steps(x), expected, 2)
        if alike < 1:
            blocks_chance = math.exp(3.5 * math.sqrt(2 * 3 / len(window) / channels))
        for k in DISTANCES:
            by_weights = turn + k * k * ALLOWED * stirred
            other = plan.ratio(steps(x, k), expected * min(alike, 1.0) + by_weights, 2)
            if other > far:
                far, lag = other, k
    excess = max(near, far)
    if far > near and lag != LAG:
        chance = blocks_chance
    if excess <= chance:
        return _Found(excess, chance, 0.0, min(alternation, 0.0), turns)
    blocks = bends(x, LAG) if lag == LAG else steps(x, lag)
    since = since_when(blocks / expected, lag) if far > near else since_when(steps(x) / moved, 1)
    return _Found(excess, chance, since, min(alternation, 0.0), turns)


def variances_of_batches(window: Window, layer: int, plan: Plan, size: float, stirred: float) -> _Found | None:
    """Judge the logs of the batch variances of a layer; None where too little is known.

    Weights hardly move them, however far the data is from zero. But what changes a batch as a whole does: the share by
    which its samples are mixed, its exposure. That is a factor that all channels have in common, so the first principal
    component of the changes is left out, in what is seen and in what is expected. It counts only if it takes turns.
    """
    samples = [s for s in samples_after_warm_up(window, layer) if s.unevenness is not None]
    span, layers = window.layers.span(layer), window.layers
    if not samples or size < LEAST_DRAWS + 1:
        return None
    uneven = torch.stack([s.unevenness[span].double() for s in samples if s.unevenness is not None]).nanmean(0)
    known = [s.uneven_beyond[:, layer].double() for s in samples if s.uneven_beyond is not None]
    share = float(torch.stack(known).nanmean(0)[0]) if known else math.nan
    # Few samples show less of heavy tails than there is.
    tails = max((float(each[1]) for each in known), default=math.nan)
    var = window.batch_var[:, span].double()
    good = (var.mean(0) > FLAT * layers.eps[layer]) & (uneven > 0) & uneven.isfinite()
    good &= ((var > 0) & var.isfinite()).all(0)
    if int(good.sum()) < LEAST_CHANNELS or share != share or tails > HEAVY:
        return None
    beyond = max(LEAST_BEYOND, share)
    draws = len(samples) * (looked_at(int(samples[-1].size[layer])) - 1)
    # A factor that all channels share is left out below, but not that some samples are far from all others.
    noise, shared = 3 / len(window) + 2 / draws, (max(tails, 3.0) - 3) / draws
    expected = uneven[good] * twins(window, layer) / size * plan.factor
    x = var[:, good].log()
    scaled = (x - x.mean(0)) / expected.sqrt()
    turns = plan.ratio(steps(x), expected, 2)
    alternation = min(plan.ratio(steps(x, lag), expected, 2) for lag in TURNS) / max(turns, 1e-12) - 1
    best, lag, chance, near = 0.0, 1, math.inf, 0.0
    for k in (1, *DISTANCES) if stirred == stirred else (1,):
        rest, ratio, freedom = _beyond_one_factor(scaled, k, plan)
        by_weights = 0.0 if stirred != stirred else ALLOWED * k * k * stirred
        excess = rest / (beyond + by_weights) if ratio >= LEAST_REST else 0.0
        if k == 1:
            near = rest / max(ratio, 1e-12)
        else:
            # What all channels have in common differs from batch to batch where batches are processed as wholes, and
            # only from block to block where the data comes in blocks.
            excess = max(excess, (rest / max(ratio, 1e-12) - max(0.0, near - 1)) / (1 + by_weights))
        if excess > best:
            best, lag, chance = excess, k, math.exp(3.5 * math.sqrt(noise / freedom + shared))
    if not best:
        chance = math.exp(3.5 * math.sqrt(noise + shared))
    rise = max(best, turns, 3.0)
    edge = rise * math.log(rise) / (rise - 1)
    since = since_when(steps(scaled, lag), lag, edge) if rise > chance else 0.0
    common = turns > chance and alternation > EVEN and _beyond_one_factor(scaled, 1, plan)[1] < LEAST_REST
    return _Found(best, chance, since, min(alternation, 0.0), turns, common)


def _beyond_one_factor(scaled: Tensor, lag: int, plan: Plan) -> tuple[float, float, float]:
    """Variance of the changes of ``[T, C]`` over some steps without their first principal component.

    Returns:
        The variance, its share of the whole, and its degrees of freedom.
    """
    changes = (scaled[lag:] - scaled[:-lag]) / math.sqrt(2)
    # Always without the largest: with heavy tails the samples seen have no outlier of those that the batches had.
    keep = len(changes) - max(len(changes) // 8, 2 * (plan.left_out or 0))
    changes = changes[changes.square().sum(1).argsort()[:keep]]
    # The squares of the singular values are the eigenvalues of the inner products, and these take a third of the time.
    inner = changes @ changes.T if len(changes) <= changes.shape[1] else changes.T @ changes
    strengths = torch.linalg.eigvalsh(inner).flip(0).clamp(min=0) / len(changes) / changes.shape[1]
    rest = float(strengths[1:].sum())
    freedom = rest**2 / max(float(strengths[1:].square().sum()), 1e-30)
    return rest, rest / max(float(strengths.sum()), 1e-30), max(freedom, 1.0)


def twins(window: Window, layer: int) -> float:
    """How many times the variance of independent samples a batch has that holds two views of each sample: 1 to 2."""
    known = [float(s.paired[layer]) for s in samples_after_warm_up(window, layer) if s.paired is not None]
    together = sum(r for r in known if r == r) / max(len(known), 1)
    return 1 + together


def samples_after_warm_up(window: Window, layer: int) -> list[Sample]:
    """The samples of a layer that are from after its warm-up, or the newest if none is."""
    known = [s for s in (*window.earlier, window.sample) if s is not None]
    updates = int(window.baseline.updates[layer]) - window.steps[-1]
    later = [s for s in known if updates + s.step >= LEAST_WARM_UP and int(s.calls[layer]) == 1]
    return later or known[-1:]


def _of_one_shape(window: Window, layer: int) -> bool:
    """Whether all samples, of at least three steps, have as many values each: else the size of the images changes."""
    known = [s for s in (*window.earlier, window.sample) if s is not None and int(s.size[layer]) > 0]
    return len(known) >= LEAST_SHAPES and len({int(s.values[layer]) / int(s.size[layer]) for s in known}) == 1


def _stirred_by_update(window: Window, layer: int) -> Tensor:
    """Variance that one update of the weights gives to mean and log variance in the samples, ``[2]``; NaN if unknown.

    In the units of what independent samples would give for the log variance, and of the layer's variance for the mean.
    """
    found = []
    span, size = window.layers.span(layer), float(samples_normalized(window)[layer])
    for sample in samples_after_warm_up(window, layer):
        if sample.stirred is None or sample.unevenness is None:
            continue
        mean, var = sample.stirred[:, span].double().square() / 2
        found.append(torch.stack([mean.nanmedian(), (var / sample.unevenness[span].double() * size).nanmedian()]))
    found = [pair for pair in found if bool(pair.isfinite().all())]
    if not found:
        return torch.full((2,), torch.nan, device="cpu")
    return torch.stack(found).max(0).values


def _updates_seen(window: Window, layer: int) -> int:
    """How many sampled updates show how far the weights before a layer move its statistics."""
    span, samples = window.layers.span(layer), samples_after_warm_up(window, layer)
    return sum(s.stirred is not None and bool(s.stirred[0, span].isfinite().any()) for s in samples)


def _independent_channels(scaled: Tensor) -> float:
    """How many independent channels change as much from batch to batch as the median of these: ``[T, C]``.

    The number is that of the eigenvalues of their covariance, weighted by size; a median needs 1.57 times as many
    values as a mean to be as exact.
    """
    changes = scaled.diff(dim=0)
    # The eigenvalues' sum is the trace, and that of their squares the sum of all squares.
    products = changes @ changes.T
    number = float(products.trace().square() / products.square().sum().clamp(min=1e-30))
    return max(1.0, number / 1.57)


def _without_drift(
    x: Tensor, expected: Tensor, moved: Tensor, plan: Plan, near: float, far: float
) -> tuple[float, float]:
    """Subtract the drift of the weights from the excess of ``[T, C]`` at lags of one and of four steps.

    Second differences of neighbors are free of constant speed; their growth from one step to two is that of a random
    walk. Of the excess at a lag of four, blocks of batches explain no more than their edges; most neighbors in a block
    differ like independent batches, and batches at a larger lag differ no more than those at four.
    """
    near_by, turned = steps(x), bends(x, 1)
    bent, quiet = plan.ratio(turned, moved, 3), float((near_by.sum(1) / expected.sum()).quantile(QUIET))
    walk = float(((moved - expected) / moved).median()) * 2 / 3
    near = min(near, bent) - min(walk, max(0.0, plan.ratio(bends(x, 2), moved, 3) - bent))
    if quiet > 1:
        return near, near
    if plan.left_out is None:  # a median over the steps would lose the edges of blocks
        edges, turns = (float((d.mean(0) / expected).median()) for d in (near_by, turned))
    else:
        edges, turns = (plan.ratio(d, expected, n) for d, n in ((near_by, 2), (turned, 3)))
    distant = sum(plan.ratio(steps(x, lag), expected, 2) for lag in DISTANT_LAGS) / len(DISTANT_LAGS)
    far -= max(0.0, distant - plan.ratio(steps(x, LAG), expected, 2))
    return near, min(far, 1 + LAG * (min(edges, EDGES_BENT * turns) - 1))


def _stirred(x: Tensor) -> Tensor:
    """Variance that weights may give to successive batch means ``[T, C]`` by turning.

    Weights move within the span of their inputs; the mean has a part ``a / (1 + a)`` of it, where ``a`` is the square
    of its distance from zero in deviations.
    """
    away = x.mean(0).square().mean()
    return TURN**2 / 2 * away * away / (1 + away)
