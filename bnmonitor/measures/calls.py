"""Distance between the inputs of several calls of one layer in one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist

import torch
from torch import Tensor

from bnmonitor.measures.reductions import median, once
from bnmonitor.measures.robust import mean_over_steps
from bnmonitor.window import Sample, Window

MOST_CALLS = 8
"""Most calls of a layer in one step that are compared."""

NOISE_STEPS = 64
"""Most steps that the noise of the calls is taken from."""

LEAST_STEPS = 16
"""Least number of changes from step to step that it is taken from."""

MOST_UNEVEN = 0.5
"""From this unevenness on a few samples dominate a variance, and a part of the samples does not show its noise."""


@dataclass(frozen=True)
class CallMoments:
    """Moments of the input of one call.

    Attributes:
        samples: Number of samples.
        reduced: The result of :func:`~bnmonitor.measures.reduce`.
        between: The result of :func:`~bnmonitor.measures.between`.
        unevenness: The result of :func:`~bnmonitor.measures.unevenness`; None for few samples, for samples of one
            value, and for the first call of a step, which may be the only one.
    """

    samples: int
    reduced: Tensor
    between: Tensor
    unevenness: Tensor | None = None

    def narrowed(self, width: int) -> CallMoments:
        """Return the same of the first channels."""
        uneven = None if self.unevenness is None else self.unevenness[:width]
        return CallMoments(self.samples, self.reduced[:, :width], self.between[:, :width], uneven)


def call_distances(calls: Sequence[CallMoments]) -> tuple[float, float, float, float]:
    """Compare the calls pair by pair, in the middle channel.

    Returns:
        For the pair with the most different means: the difference in deviations, and in multiples of the sampling
        noise. For the pair with the most different variances: the absolute log of their ratio, and that in multiples of
        its noise. All NaN for a single call. The noise of a mean follows from the samples' means. The noise of a
        variance follows from the variances of the samples of the later call, if they are alike, and otherwise from the
        kurtosis of all calls together, as a few samples do not show the tails of their distribution. Of many pairs the
        most different ones differ more by chance: their noise is so much larger that three of it stay as rare.
    """
    if len(calls) < 2:
        return float("nan"), 0.0, float("nan"), 0.0
    tails, wider = _pooled_kurtosis(calls[:MOST_CALLS]), _of_the_most_different(len(calls[:MOST_CALLS]))
    shifts, ratios = [(float("nan"), 0.0)], [(float("nan"), 0.0)]
    for a, b in combinations(calls[:MOST_CALLS], 2):
        width = min(a.reduced.shape[1], b.reduced.shape[1])  # a network of several widths uses the first channels
        a, b = a.narrowed(width), b.narrowed(width)
        (n, mean, squares), (m, other, more) = a.between.cpu().double(), b.between.cpu().double()
        first, second = _second(a.reduced), _second(b.reduced)
        sigma = ((first + second) / 2).sqrt()
        noise = wider * (squares / (n - 1) / n + more / (m - 1) / m).sqrt()
        gap = (mean - other).abs()
        alive = sigma > 0
        if alive.any() and bool((n > 1).all() and (m > 1).all()):
            shifts.append((_middle((gap / sigma)[alive]), _middle((gap / noise)[alive])))
            log_ratio = (first / second).log().abs()
            wide = ((tails[:width] - 1) * (1 / a.samples + 1 / b.samples)).sqrt()
            if b.unevenness is not None:
                uneven = b.unevenness.cpu().double()
                wide = (uneven * (1 / a.samples + 1 / b.samples)).sqrt().where(uneven < MOST_UNEVEN, wide)
            ratios.append((_middle(log_ratio[alive]), _middle((log_ratio / wide)[alive]) / wider))
    return (*max(shifts[1:] or shifts), *max(ratios[1:] or ratios))


def call_gaps(
    samples: Sequence[Sample], layers: int, least_noise: float, *, side: bool = False
) -> tuple[Tensor, Tensor]:
    """Return how far apart the inputs of each layer's calls are in the middle of some samples, where it is no chance.

    Args:
        samples: The samples. Their batches are drawn independently, so the noise of all is less than that of one.
        layers: Number of layers.
        least_noise: The multiple of the sampling noise from which on a difference counts.
        side: Compare the calls under ``no_grad`` with the others, instead of the others with each other.

    Returns:
        ``[L]`` each: the distance of the means in deviations and the absolute log of the ratio of the variances; 0
        where that is not beyond noise, or a sample has no two calls.
    """
    nothing = torch.zeros(layers, dtype=torch.float64, device="cpu")
    if not any(sample.side_noise > 0 if side else sample.noise > 0 for sample in samples):
        return nothing, nothing  # as nearly always: no layer is called twice
    rows = torch.stack([(s.side_distance if side else s.distance).expand(4, layers).double() for s in samples])
    if not (rows[:, 1::2] > max(least_noise, 0.0) / len(samples)).any():  # no layer is called twice
        return nothing, nothing
    shift, shift_noise, ratio, ratio_noise = rows.unbind(1)
    root = len(samples) ** 0.5

    def beyond(gap: Tensor, noise: Tensor) -> Tensor:
        # A NaN makes the comparison false; of an even number of samples the median is the lower one.
        return gap.median(0).values.where(noise.mean(0) * root > least_noise, nothing).nan_to_num(0.0)

    return beyond(shift, shift_noise), beyond(ratio, ratio_noise)


@once
def call_noise(window: Window) -> Tensor:
    """Noise of the log of the ratio of two calls' variances, as the steps show it, in the middle channel: ``[L]``.

    A step's variance is an average over its calls, each kind in each step: it varies from one step to the next as calls
    of one kind do, whatever the tails of their distribution. NaN where too few steps are known.
    """
    rows = window.batch_var[-NOISE_STEPS:].double()
    change = rows.where(rows > 0, torch.nan).log_().diff(dim=0)
    known = change.isfinite().sum(0) >= LEAST_STEPS
    average = (mean_over_steps(change.square()) / 2).where(known, torch.nan)
    calls = window.updates[-NOISE_STEPS:].double().mean(0)  # that the average is over, with about the same weights
    noise: Tensor = (2 * calls * median(average, window)).sqrt()
    return noise


def _second(reduced: Tensor) -> Tensor:
    return torch.div(reduced[2], reduced[0]).cpu().double()


def _pooled_kurtosis(calls: Sequence[CallMoments]) -> Tensor:
    """The kurtosis of all calls as one, each around its own mean, at least that of a normal distribution: ``[C]``.

    Calls of fewer channels count in those that they have. Where the variances of the calls differ in truth, the result
    is too large, for two calls by a factor of at most 2.
    """
    width = max((call.reduced.shape[1] for call in calls), default=0)
    count, second, fourth = torch.zeros(3, width, dtype=torch.float64, device="cpu")
    for call in calls:
        rows = call.reduced.cpu().double()
        for total, row in ((count, rows[0]), (second, rows[2]), (fourth, rows[4])):
            total[: rows.shape[1]] += row
    return torch.div(count * fourth, second.square()).nan_to_num(3.0).clamp(min=3.0)


def _of_the_most_different(calls: int) -> float:
    """How many times the noise of one pair is that of the most different pair, by Bonferroni, for normal noise."""
    pairs = max(1, calls * (calls - 1) // 2)
    normal = NormalDist()
    return normal.inv_cdf(1 - normal.cdf(-3.0) / pairs) / 3.0


def _middle(values: Tensor) -> float:
    known = values[values.isfinite()]
    return float(torch.quantile(known, 0.5)) if len(known) else 0.0
