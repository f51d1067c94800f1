"""How much batches differ, compared with batches of independently drawn samples."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bnmonitor.measures.batch_differences import changed_for_good, plan_of
from bnmonitor.measures.batch_means import means_of_batches
from bnmonitor.measures.batch_samples import LAG, Found, of_one_shape, stirred_by_updates
from bnmonitor.measures.batch_variances import variances_of_batches
from bnmonitor.measures.batches import samples_normalized
from bnmonitor.measures.learning_rate import rises
from bnmonitor.measures.reductions import once
from bnmonitor.measures.running_lag import LEAST_WARM_UP, settled
from bnmonitor.window import Window

MIXED = 2.0
"""Most that the variance of independent batch means can be above what mixed samples in a batch show."""

SUPPORT = 3.0
"""Excess of the means from which that of the variances is believed before it is known that images have one size."""

NOTHING = Found(0.0, 1.0, 0.0, 0.0, 0.0)
"""Stands for the means where they are not known, as of a batch whose variance is far below the running one."""

LEAST_PAIRS = 50
"""Least number of differences of batches for a result."""


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
        once: Whether one change of level in the window explains it.
    """

    excess: Tensor
    by_variance: Tensor
    chance: Tensor
    share: Tensor
    alternation: Tensor
    turns: Tensor
    turns_by_variance: Tensor
    since: Tensor
    once: Tensor

    def beyond(self, limits: Tensor, share: float) -> Tensor:
        """``[L]`` bool: the excess is above limits ``[L]`` and above chance, and batches explain more than a share."""
        return (self.excess > torch.maximum(self.chance, limits)) & (self.share > share)


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
    rows = torch.full((9, len(layers)), torch.nan, dtype=torch.float64, device="cpu")
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
        if plan is None or changed_for_good(window, layer):
            continue
        unmoved = torch.zeros(1, 2, layers.channels[layer], device="cpu")
        stirred = unmoved if still[layer] else stirred_by_updates(window, layer)
        mean = means_of_batches(window, layer, plan, size, still=bool(still[layer]), stirred=stirred[:, 0])
        variance = variances_of_batches(window, layer, plan, size, stirred[:, 1])
        if mean is None and variance is None:
            continue
        mean = NOTHING if mean is None else mean
        if variance is not None and variance.common:
            # Mixed samples are no longer independent of one another: at most as much as pairs of equal ones.
            mean = replace(mean, excess=mean.excess / MIXED, turns=mean.turns / MIXED)
        # Sizes of images are drawn anew for each batch: they do not take turns.
        believed = variance is not None and (mean.excess >= SUPPORT or of_one_shape(window, layer))
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
        result.since[layer], result.once[layer] = dated.since, found.once
        most = max(found.excess, turning.turns) - 1
        result.share[layer] = max(most, 0) / (max(most, 0) + size)
    return result
