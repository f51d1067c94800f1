"""Lag of the running statistics behind the batches, and from when on it can be judged."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from bnmonitor.limits import FLAT, INITIAL_WEIGHT
from bnmonitor.measures.reductions import may_exceed, median, once, once_of_rows
from bnmonitor.measures.robust import Array, mean_over_steps, middle_over_steps
from bnmonitor.measures.small_variances import variances
from bnmonitor.window import Window

LEAST_WARM_UP = 30
"""Least number of updates before a layer is judged."""

NEWEST = 10
"""Steps by which it is judged what a layer is like now: what lasts shows in them, and soon."""


def newest(window: Window) -> slice:
    """Return the newest of the new steps, :data:`NEWEST` at most."""
    return slice(-min(max(1, window.fresh), NEWEST), None)


@once_of_rows
def typical_variance(window: Window) -> Tensor:
    """Robust middle of each channel's batch variance over the newest steps: ``[C]``."""
    return middle_over_steps(variances(window, newest(window)))


@once_of_rows
def averages(window: Window) -> tuple[Tensor, Tensor, Tensor]:
    """Means over the window, ``[C]`` each: of the shift, of the batch variance, and of the running one before it."""
    if window.averages is not None:
        return window.averages
    batch = window.batch_var[1:].mean(0)
    if batch.isnan().any():
        batch = mean_over_steps(variances(window, slice(1, None)))
    return mean_over_steps(window.shift), batch, mean_over_steps(window.running_var[:-1])


@once
def lag(window: Window) -> tuple[Tensor, Tensor]:
    """Lag of the running statistics behind the batches, with the noise averaged out.

    Returns:
        The middle channel's average distance of batch mean and running mean, in deviations, and its half log ratio of
        average batch variance and average running variance; both ``[L]``, without sign. The variances are averaged
        before the log: the log of a small batch's variance is biased, which would look like a lag. Channels with a
        variance near eps are left out of it.
    """
    return median(averages(window)[0].abs(), window), median(_log_ratio(window).abs(), window)


def may_lag(window: Window, mean: float, log_ratio: float) -> bool:
    """Whether a number of :func:`lag` may be above its limit in any layer: False is certain, at a lower cost."""
    distances = (averages(window)[0].abs(), mean), (_log_ratio(window).abs(), log_ratio)
    return any(may_exceed(values, limit, window) for values, limit in distances)


@once
def _log_ratio(window: Window) -> Tensor:
    """Log of average batch deviation over average running deviation: ``[C]``."""
    if len(window) < 2:
        return torch.full((window.layers.total,), torch.nan, device="cpu")
    eps = window.layers.eps_by_channel
    _, batch, running = averages(window)
    return (0.5 * ((batch + eps) / (running + eps)).log()).where(batch > FLAT * eps, torch.nan)


def variance_gap(window: Window) -> Tensor:
    """The second number of :func:`lag` with its sign: above 0 the batches vary more than the running variance says."""
    return median(_log_ratio(window), window)


@once_of_rows
def forgetting(window: Window) -> Tensor:
    """How much of their past the running statistics forget at each step: ``[T, L]``, as minus a log.

    An update with momentum ``m`` keeps ``1 - m`` of the old value; a cumulative average (None) keeps nothing of it.
    """
    rate = -torch.log1p(-window.momentum.double().nan_to_num(1.0).clamp(0.0, 1 - 1e-9))
    return rate * window.updates.clamp(min=0)


def initial_weight(window: Window) -> Tensor:
    """Weight that the initial mean 0 and variance 1 still have in the running statistics: ``[L]``."""
    return window.baseline.initial_weight


@once
def warm(window: Window) -> Tensor:
    """Return which layers were warm before each step, and after the last: ``[T + 1, L]`` bool.

    A layer is warm after :data:`LEAST_WARM_UP` updates, once its initial statistics weigh less than
    :data:`bnmonitor.limits.INITIAL_WEIGHT`. They weigh ``(1 - m)^k`` after ``k`` updates: 5 % after 29 updates at
    momentum .1, 299 at .01, 2995 at .001.
    """

    def so_far(each_step: Tensor, total: Tensor) -> Array:
        steps = each_step.numpy()
        later = np.zeros((len(steps) + 1, steps.shape[1]), steps.dtype)
        np.cumsum(steps[::-1], axis=0, out=later[-2::-1])
        before: Array = total.numpy() - later
        return before

    forgotten = so_far(forgetting(window), window.baseline.forgotten)
    updates = so_far(window.updates.clamp(min=0), window.baseline.updates)
    return torch.from_numpy((forgotten >= -math.log(INITIAL_WEIGHT)) & (updates >= LEAST_WARM_UP))


def settled(window: Window) -> Tensor:
    """Layers that were warm in the whole window, so that a lag in it is not the warm-up: ``[L]`` bool."""
    return warm(window)[0]
