"""How much the variances of batches differ, compared with those of independent samples."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from bnmonitor.limits import FLAT
from bnmonitor.measures.batch_differences import Plan, since_when, steps
from bnmonitor.measures.batch_samples import (
    ALLOWED,
    DISTANCES,
    LEAST_DRAWS,
    TURNS,
    Found,
    samples_after_warm_up,
    views_together,
)
from bnmonitor.measures.moments import looked_at
from bnmonitor.measures.products import eigenvalues, product
from bnmonitor.measures.robust import Array
from bnmonitor.measures.small_variances import variances
from bnmonitor.window import Window

LEAST_CHANNELS = 6
"""Channels from which the variances of a layer show more than one factor."""

LEAST_REST = 0.15
"""Least part of the changes that one common factor must leave."""

LEAST_BEYOND = 0.5
"""Least part of what is expected of independent samples that one common factor is taken to leave.

One far sample among those that were seen looks like a factor that all channels have in common."""

EVEN = -0.5
"""Alternation above which batches do not take turns."""

BY_CHANCE = 3.0
"""Standard errors from one half by which more batches must be like that of their turn than like their neighbor."""

RESOLVED = 1e-6
"""Part of the largest variance of a channel in the window below which single precision tells no two variances apart."""

VALID = 0.25
"""Largest variance that is expected of the log of a channel's variance.

The expectation is that of small relative changes. A feature that few samples have, such as a rare category, has none in
some batches, and its variance changes manifold by chance: ten samples with it in a batch make a variance of .1."""

HEAVY = 8.0
"""Kurtosis of the samples' own variances from which on their variances are not judged.

That of 32 values is 32 at most: so large a one says that the next samples will show a larger one."""


def variances_of_batches(window: Window, layer: int, plan: Plan, size: float, stirred: Tensor) -> Found | None:
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
    tails = max((float(each[1]) for each in known if not each[1].isnan()), default=math.nan)
    # What rounding hides beside a variance that is so much larger is about as small as the smallest that it leaves.
    var, hidden = variances(window, channels=span).double(), window.batch_var[:, span].isnan()
    var = torch.where(hidden, var.clamp(min=RESOLVED * var.amax(0)), var)
    good = (var.mean(0) > FLAT * layers.eps[layer]) & (uneven > 0) & uneven.isfinite()
    good &= ((var > 0) & var.isfinite()).all(0)
    # A channel that is constant in batches in which most others vary is a feature that these batches lack.
    good &= ~(hidden & ~(hidden.float().mean(1, keepdim=True) > 0.5)).any(0)
    good &= uneven / size <= VALID
    if int(good.sum()) < LEAST_CHANNELS or share != share or not tails <= HEAVY:
        return None
    beyond = max(LEAST_BEYOND, share)
    draws = len(samples) * (looked_at(int(samples[-1].size[layer])) - 1)
    # A factor that all channels share is left out below, but not that some samples are far from all others.
    noise, shared = 3 / len(window) + 2 / draws, (max(tails, 3.0) - 3) / draws
    expected = (uneven[good] * views_together(window, layer) / size * plan.factor).numpy()
    x = var[:, good].log_().numpy()
    scaled = (x - x.mean(0)) / np.sqrt(expected)
    turns = plan.ratio(steps(x), expected, 2)
    alternation = _alternation(x, expected, plan, turns)
    best, lag, chance, near = 0.0, 1, math.inf, 0.0
    level = _without_trend(scaled)
    moved = float(stirred[:, good].mean(1).max()) if len(stirred) else math.nan
    for k in (1, *DISTANCES) if moved == moved else (1,):
        rest, ratio, freedom = _beyond_one_factor(level, k, plan)
        by_weights = 0.0 if moved != moved else ALLOWED * k * k * moved
        excess = rest / (beyond + by_weights) if ratio >= LEAST_REST else 0.0
        if k == 1:
            near = rest / max(ratio, 1e-12)
        else:
            # What all channels have in common differs from batch to batch where batches are processed as wholes, and
            # only from block to block where the data comes in blocks. One factor differs at two lags by chance.
            varies = max(0.0, near - 1) * (1 + 3.5 * math.sqrt(2 * 3 / len(window)))
            excess = max(excess, (rest / max(ratio, 1e-12) - varies) / (1 + by_weights))
        if excess > best:
            best, lag, chance = excess, k, math.exp(3.5 * math.sqrt(noise / freedom + shared))
    if not best:
        chance = math.exp(3.5 * math.sqrt(noise + shared))
    rise = max(best, turns, 3.0)
    edge = rise * math.log(rise) / (rise - 1)
    dated = 1 if turns > best else lag  # batches that take turns are alike at the lag of a turn
    since = since_when(steps(scaled, dated), dated, edge) if rise > chance else 0.0
    common = turns > chance and alternation > EVEN and _beyond_one_factor(scaled, 1, plan)[1] < LEAST_REST
    return Found(best, chance, since, min(alternation, 0.0), turns, common)


def _without_trend(x: Array) -> Array:
    """``[T, C]`` without each channel's linear trend: data that becomes harder or noisier comes in no blocks."""
    at = np.arange(len(x)) - (len(x) - 1) / 2
    trend: Array = at[:, None] * (at @ x) / (at @ at)
    return x - trend


def _alternation(x: Array, expected: Array, plan: Plan, turns: float) -> float:
    """How much less batches ``[T, C]`` of the same turn differ than successive ones; 0 where that may be chance.

    What all channels have in common, as the share by which a batch is mixed, is one number a step: the middle of some
    sixty of its changes is at one lag half of what it is at another by chance. Where batches take turns, most are more
    like the one of their turn than like their neighbor; of others half are.
    """
    same = {lag: plan.ratio(steps(x, lag), expected, 2) for lag in TURNS}
    lag = min(same, key=lambda k: same[k])
    less = same[lag] / max(turns, 1e-12) - 1
    if less > EVEN:  # as nearly always: that is no taking of turns
        return less
    near, turn = ((steps(x, k) / expected).sum(1) for k in (1, lag))
    alike = float((turn < near[lag - 1 :]).mean())
    if alike < 0.5 + BY_CHANCE * math.sqrt(0.25 / len(turn)):
        return 0.0
    return less


def _beyond_one_factor(scaled: Array, lag: int, plan: Plan) -> tuple[float, float, float]:
    """Variance of the changes of ``[T, C]`` over some steps without their first principal component.

    Returns:
        The variance, its share of the whole, and its degrees of freedom.
    """
    changes = (scaled[lag:] - scaled[:-lag]) / math.sqrt(2)
    # Always without the largest: with heavy tails the samples seen have no outlier of those that the batches had.
    keep = len(changes) - max(len(changes) // 8, 2 * (plan.left_out or 0))
    changes = changes[np.square(changes).sum(1).argsort(kind="stable")[:keep]]
    # The squares of the singular values are the eigenvalues of the inner products, and these take a third of the time.
    inner = product(changes, changes.T) if len(changes) <= changes.shape[1] else product(changes.T, changes)
    strengths = eigenvalues(inner)[::-1].clip(0) / len(changes) / changes.shape[1]
    rest = float(strengths[1:].sum())
    freedom = rest**2 / max(float(np.square(strengths[1:]).sum()), 1e-30)
    return rest, rest / max(float(strengths.sum()), 1e-30), max(freedom, 1.0)
