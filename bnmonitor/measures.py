"""Numbers per layer that rules judge and sinks show: each a function of a window, ``[L]``."""

from __future__ import annotations

import torch
from torch import Tensor

from bnmonitor.frame import Window
from bnmonitor.statistics import segment_median, segment_sum


def median(values: Tensor, window: Window) -> Tensor:
    """Middle channel of each layer: ``[C]`` to ``[L]``."""
    return segment_median(values, window.layers.owner, len(window.layers))


def share(mask: Tensor, window: Window) -> Tensor:
    """Share of each layer's channels that are set in a ``[C]`` mask: ``[L]``."""
    sizes = torch.tensor(window.layers.channels, device="cpu")
    return segment_sum(mask, window.layers.owner, len(window.layers)).double() / sizes.clamp(min=1)


def lag(window: Window) -> tuple[Tensor, Tensor]:
    """How far the running statistics lag behind the batches, noise averaged out.

    Returns:
        The middle channel's average distance of batch mean and running mean, in deviations, and its half log ratio of
        average batch variance and average running variance; both ``[L]``, without sign. The variances are averaged
        before the log: the log of a small batch's variance is biased, which would look like a lag.
    """
    eps = window.layers.eps_by_channel
    mean = window.shift.nanmean(0).abs()
    if len(window) < 2:
        return median(mean, window), torch.full((len(window.layers),), torch.nan, device="cpu")
    batch, running = window.batch_var[1:], window.running_var[:-1]
    running = running.where(~batch.isnan(), torch.nan)
    log_ratio = 0.5 * ((batch.nanmean(0) + eps).log() - (running.nanmean(0) + eps).log())
    return median(mean, window), median(log_ratio.abs(), window)


def settled(window: Window) -> Tensor:
    """Layers whose whole window lies after their warm-up, so that a lag in it is one: ``[L]`` bool."""
    seen = window.updates.clamp(min=0).sum(0)
    return window.warm() & (window.baseline.updates - seen >= 30)


def noise(window: Window) -> Tensor:
    """Spread of the batch mean around the running mean from step to step, in deviations."""
    shift = window.shift
    return median((shift.square().nanmean(0) - shift.nanmean(0).square()).clamp(min=0).sqrt(), window)


def offset(window: Window) -> Tensor:
    """Distance of the running mean from zero, in deviations, in the middle channel at the last step."""
    sigma = (window.running_var[-1] + window.layers.eps_by_channel).sqrt()
    return median(window.running_mean[-1].abs() / sigma, window)


def silent(window: Window) -> Tensor:
    """Share of channels whose output was never positive in the last sample; NaN without one."""
    if window.sample is None:
        return torch.full((len(window.layers),), torch.nan, device="cpu")
    nonpositive = window.sample.output.nonpositive
    known = share(~nonpositive.isnan(), window) > 0
    return share(nonpositive > 0.999, window).where(known, torch.nan)


def variance_course(window: Window) -> Tensor:
    """Geometric mean of each layer's batch variances, step by step: ``[T, L]``; NaN where none was recovered."""
    owner, layers = window.layers.owner, len(window.layers)
    logs = (window.batch_var + window.layers.eps_by_channel).log()
    known = segment_sum(logs.isfinite(), owner, layers)
    mean = segment_sum(logs.where(logs.isfinite(), 0.0), owner, layers) / known.clamp(min=1)
    return mean.exp().where(known > 0, torch.nan)
