"""Numbers per layer that rules judge and sinks show: each a function of a window, ``[L]``."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import TypeVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from bnmonitor.frame import Window
from bnmonitor.statistics import mean_over_steps, middle_over_steps

R = TypeVar("R")

LEAST_WARM_UP = 30
"""Updates before which no layer is judged."""

LEAST_HELD_OUT = 64
"""Samples of a validation below which its variance says little."""

FLAT = 10
"""A variance below so many eps is decided by eps: the output is a twentieth smaller than it should be."""


def once(measure: Callable[[Window], R]) -> Callable[[Window], R]:
    """Compute a measure once for a window, whoever asks for it."""

    @wraps(measure)
    def remembered(window: Window) -> R:
        if measure.__name__ not in window.memo:
            window.memo[measure.__name__] = measure(window)
        value: R = window.memo[measure.__name__]
        return value

    return remembered


@once
def typical_variance(window: Window) -> Tensor:
    """Robust middle of each channel's batch variance over the new steps: ``[C]``."""
    return middle_over_steps(window.batch_var[-max(1, window.fresh) :])


def median(values: Tensor, window: Window) -> Tensor:
    """Middle channel of each layer: ``[C]`` to ``[L]``."""
    return window.layers.segments.median(values)


def may_exceed(values: Tensor, limit: float, window: Window) -> bool:
    """Whether the middle channel of a layer may be above a limit: False rules it out, for a third of its cost."""
    segments = window.layers.segments
    return bool((2 * segments.count(~(values <= limit)) >= segments.sizes).any())


def mean(values: Tensor, window: Window) -> Tensor:
    """Mean of each layer's channels, those with NaN left out: ``[C]`` to ``[L]``; NaN where there is no other."""
    return window.layers.segments.sum(values) / window.layers.segments.count(~values.isnan())


def share(mask: Tensor, window: Window) -> Tensor:
    """Share of each layer's channels that are set in a ``[C]`` mask: ``[L]``."""
    return window.layers.segments.count(mask).double() / window.layers.segments.sizes


@once
def averages(window: Window) -> tuple[Tensor, Tensor, Tensor]:
    """Means over the window, ``[C]`` each: of the shift, of the batch variance, and of the running one before it."""
    return (
        mean_over_steps(window.shift),
        mean_over_steps(window.batch_var[1:]),
        mean_over_steps(window.running_var[:-1]),
    )


@once
def lag(window: Window) -> tuple[Tensor, Tensor]:
    """How far the running statistics lag behind the batches, noise averaged out.

    Returns:
        The middle channel's average distance of batch mean and running mean, in deviations, and its half log ratio of
        average batch variance and average running variance; both ``[L]``, without sign. The variances are averaged
        before the log: the log of a small batch's variance is biased, which would look like a lag. Channels whose
        variance eps decides are left out of it.
    """
    return median(averages(window)[0].abs(), window), median(_log_ratio(window).abs(), window)


def may_lag(window: Window, mean: float, log_ratio: float) -> bool:
    """Whether a number of :func:`lag` may be above its limit in any layer: False rules it out, at a lower cost."""
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


@once
def forgetting(window: Window) -> Tensor:
    """How much of their past each step makes the running statistics forget: ``[T, L]``, as minus a log.

    An update with momentum ``m`` leaves ``1 - m`` of what was; a cumulative average (None) starts from nothing.
    """
    rate = -torch.log1p(-window.momentum.double().nan_to_num(1.0).clamp(0.0, 1 - 1e-9))
    return rate * window.updates.clamp(min=0)


def initial_weight(window: Window) -> Tensor:
    """Weight that mean 0 and variance 1, which they began with, still have in the running statistics: ``[L]``."""
    return window.baseline.initial.double() * (-window.baseline.forgotten.double()).exp()


@once
def warm(window: Window) -> Tensor:
    """Which layers were warm before each step, and after the last: ``[T + 1, L]`` bool.

    A layer is warm after 30 updates, once its initial statistics weigh under 5 %. They weigh ``(1 - m)^k`` after ``k``
    updates, so that takes 29 updates at momentum .1, 299 at .01, 2995 at .001.
    """

    def before(each_step: Tensor, total: Tensor) -> Tensor:
        return total - F.pad(each_step.flip(0).cumsum(0).flip(0), (0, 0, 0, 1))

    forgotten = before(forgetting(window), window.baseline.forgotten.double())
    updates = before(window.updates.clamp(min=0), window.baseline.updates)
    return (forgotten >= -math.log(0.05)) & (updates >= LEAST_WARM_UP)


def settled(window: Window) -> Tensor:
    """Layers whose whole window lies after their warm-up, so that a lag in it is one: ``[L]`` bool."""
    return warm(window)[0]


@once
def normalizing(window: Window) -> Tensor:
    """Layers that normalize with their batch's own statistics now, as far as their updates or samples tell: ``[L]``."""
    ran = torch.where(window.layers.tracked, (window.updates > 0).any(0), window.baseline.sizes.isfinite())
    return ran & window.training[-1] & window.layers.of_family("batch")


@once
def together(window: Window) -> Tensor:
    """Samples that each layer normalizes together, on one process or, if synchronized, on all: ``[L]``; NaN: unknown.

    The middle of what the samples taken say; without any, what the training loader says.
    """
    loader = window.facts.train_loader
    told = float(loader.batch_size) if loader is not None and loader.batch_size else torch.nan
    sizes = window.baseline.sizes
    return torch.where(sizes.isnan(), told, sizes) * processes(window)


def processes(window: Window) -> Tensor | int:
    """How many processes' batches each layer normalizes together: ``[L]``, or one number for all."""
    return torch.where(synced(window), window.facts.world_size, 1) if window.facts.world_size > 1 else 1


def synced(window: Window) -> Tensor:
    """Layers that normalize over all processes: ``[L]`` bool."""
    mask = torch.zeros(len(window.layers), dtype=torch.bool, device="cpu")
    mask[list(window.layers.synced)] = True
    return mask


def trunk(window: Window, judged: Tensor) -> Tensor:
    """Those of the layers ``[L]`` that see several positions of each sample; all of them if none does."""
    spread = judged & (window.baseline.values > window.baseline.sizes)
    return spread if spread.any() else judged


def _some(values: Tensor, window: Window) -> Tensor:
    """The channels that stand for their layers: ``[..., C]`` to ``[..., S]``."""
    some = window.layers.some
    return values if some is None else values.index_select(-1, some[0])


def _median_of_some(values: Tensor, window: Window) -> Tensor:
    """Middle one of these channels: ``[S]`` to ``[L]``."""
    some = window.layers.some
    return (window.layers.segments if some is None else some[1]).median(values)


SHORT = 10
"""Steps over which a layer's unrest is measured, if fewer are new."""


@once
def unrest(window: Window) -> Tensor:
    """How far the batches are from the running statistics, in the middle channel and the middle of the new steps.

    In deviations, the larger of the distance of the means and the log ratio of the deviations (as its hyperbolic sine,
    which needs no logarithm), of some channels of each layer: ``[L]``.
    """
    ratio, shift = (_some(rows[-max(SHORT, window.fresh) :], window) for rows in (window.ratio, window.shift))
    apart = ratio.reciprocal()
    torch.sub(ratio, apart, out=apart).abs_().div_(2)
    return _median_of_some(middle_over_steps(torch.maximum(shift.abs(), apart, out=apart)), window)


@once
def jump(window: Window) -> Tensor:
    """How far the batch mean moves from one step to the next, in deviations; the middle likewise: ``[L]``."""
    if len(window) < 2:
        return torch.full((len(window.layers),), torch.nan, device="cpu")
    recent = _some(window.batch_mean[-max(SHORT, window.fresh) - 1 :], window)
    var = _some(window.running_var[-1] + window.layers.eps_by_channel, window)
    return _median_of_some(middle_over_steps(recent.diff(dim=0).abs_()) / var.sqrt(), window)


def noise(window: Window) -> Tensor:
    """Spread of the batch mean around the running mean from step to step, in deviations; the middle of some."""
    return _median_of_some(_deviation(_some(window.shift, window)), window)


def variance_noise(window: Window) -> Tensor:
    """Spread of the log of the batch deviation against the running one from step to step; the middle of some."""
    least = torch.finfo(torch.float32).tiny
    return _median_of_some(_deviation(_some(window.ratio, window).clamp(min=least).log_()), window)


def _deviation(rows: Tensor) -> Tensor:
    """Standard deviation over the steps: ``[T, C]`` to ``[C]``."""
    variance = mean_over_steps(rows.square()) - mean_over_steps(rows).square()
    return variance.clamp(min=0).sqrt()


def covariate_shift(window: Window) -> Tensor:
    """How much the distribution of a layer's input has moved over the window, in nats; the middle channel.

    The symmetric Kullback-Leibler divergence of the channel's Gaussian at the first and the last step, by the running
    statistics: ``(v1 / v0 + v0 / v1 - 2 + (m1 - m0)^2 (1 / v0 + 1 / v1)) / 2``. It is what batch normalization was
    invented to tame (Ioffe and Szegedy 2015).
    """
    eps = window.layers.eps_by_channel
    v0, v1 = window.running_var[0] + eps, window.running_var[-1] + eps
    moved = (window.running_mean[-1] - window.running_mean[0]).square()
    return median(0.5 * (v1 / v0 + v0 / v1 - 2 + moved * (1 / v0 + 1 / v1)), window)


@once
def offset(window: Window) -> Tensor:
    """Distance of the running mean from zero, in deviations, in the middle channel at the last step.

    Channels whose variance eps decides are left out: their deviation says nothing.
    """
    return median(offsets(window), window)


def offsets(window: Window) -> Tensor:
    """The same channel by channel: ``[C]``; NaN for the channels that are left out."""
    var, eps = window.running_var[-1], window.layers.eps_by_channel
    return (window.running_mean[-1].abs() / (var + eps).sqrt()).where(var > FLAT * eps, torch.nan)


def batch_offset(window: Window) -> Tensor:
    """Distance of the last batch's mean from zero, in running deviations; the middle channel."""
    var, eps = window.running_var[-1], window.layers.eps_by_channel
    away = window.batch_mean[-1].abs() / (var + eps).sqrt()
    return median(away.where(var > FLAT * eps, torch.nan), window)


def gamma_update(window: Window, steps: int = 8) -> Tensor:
    """Change of gamma in a step over gamma's size, mean of the last steps; the middle channel."""
    gamma = window.gamma[-steps - 1 :]
    if len(gamma) < 2:
        return torch.full((len(window.layers),), torch.nan, device="cpu")
    return median(gamma.diff(dim=0).abs().mean(0) / gamma[-1].abs(), window)


def dead(window: Window) -> Tensor:
    """Share of channels that gamma or beta switched off at the last step.

    Gamma is below a hundredth of its start, or beta is so far below zero (3.1 times gamma: one value in a thousand is
    positive) that a ReLU that alone reads the output lets nothing through. A gamma that starts at zero is not dead.
    """
    gamma, beta = window.gamma[-1].abs(), window.beta[-1]
    off = gamma < 0.01 * window.baseline.gamma.abs()
    if window.facts.structure is not None:
        off |= window.facts.structure.relu_only()[window.layers.owner] & (beta < -3.1 * gamma)
    return share(off, window)


@once
def held_out_ratio(window: Window) -> Tensor:
    """Variance of each layer's input in the latest validation over the running one, in the middle channel: ``[L]``.

    NaN where it was not measured, or over fewer than 64 samples.
    """
    if not window.facts.held_out:
        return torch.full((len(window.layers),), torch.nan, device="cpu")
    seen, eps = window.facts.held_out[-1], window.layers.eps_by_channel
    ratio = ((seen.var + eps) / (seen.running_var + eps)).where(seen.running_var > FLAT * eps, torch.nan)
    return median(ratio, window).where(seen.size >= LEAST_HELD_OUT, torch.nan)


def silent(window: Window) -> Tensor:
    """Share of channels whose output was never positive in the last sample; NaN without one."""
    if window.sample is None:
        return torch.full((len(window.layers),), torch.nan, device="cpu")
    nonpositive = window.sample.output.nonpositive
    known = share(~nonpositive.isnan(), window) > 0
    return share(nonpositive > 0.999, window).where(known, torch.nan)


def affine_update(window: Window) -> tuple[Tensor, Tensor]:
    """Size of the last update of gamma, and of beta, as a part of gamma's own size: ``[L]`` each.

    Sizes are norms over the layer's channels, so that a gamma that began at 0 does not make them infinite. Both are NaN
    in a window of one step. Healthy training moves a parameter by about a thousandth of itself in a step.
    """
    layers = window.layers
    if len(window) < 2:
        unknown = torch.full((len(layers),), torch.nan, device="cpu")
        return unknown, unknown
    size = layers.segments.sum(window.gamma[-2].square())
    gamma, beta = ((rows[-1] - rows[-2]).square() for rows in (window.gamma, window.beta))
    return (layers.segments.sum(gamma) / size).sqrt(), (layers.segments.sum(beta) / size).sqrt()
