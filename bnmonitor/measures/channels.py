"""Statistics of single channels, and their median in each layer."""

from __future__ import annotations

import torch
from torch import Tensor

from bnmonitor.limits import ALWAYS_ZERO, DEAD_BETA, DEAD_GAMMA, FLAT
from bnmonitor.measures.gathered import with_affine
from bnmonitor.measures.reductions import median, once, share
from bnmonitor.window import Window


def covariate_shift(window: Window) -> Tensor:
    """Move of the distribution of a layer's input over the window, in nats, in the middle channel.

    The symmetric Kullback-Leibler divergence of the channel's Gaussian at the first and the last step, by the running
    statistics: ``(v1 / v0 + v0 / v1 - 2 + (m1 - m0)^2 (1 / v0 + 1 / v1)) / 2``. Batch normalization was invented to
    reduce it (Ioffe and Szegedy 2015).
    """
    eps = window.layers.eps_by_channel
    v0, v1 = window.running_var[0] + eps, window.running_var[-1] + eps
    moved = (window.running_mean[-1] - window.running_mean[0]).square()
    return median(0.5 * (v1 / v0 + v0 / v1 - 2 + moved * (1 / v0 + 1 / v1)), window)


@once
def offset(window: Window) -> Tensor:
    """Distance of the running mean from zero, in deviations, in the middle channel at the last step.

    Channels with a variance near eps are left out: eps decides their deviation.
    """
    return median(offsets(window), window)


def offsets(window: Window) -> Tensor:
    """Distance of the running mean from zero in each channel, in deviations: ``[C]``; NaN near eps."""
    var, eps = window.running_var[-1], window.layers.eps_by_channel
    return (window.running_mean[-1].abs() / (var + eps).sqrt()).where(var > FLAT * eps, torch.nan)


def batch_offset(window: Window) -> Tensor:
    """Distance of the last batch's mean from zero, in running deviations, in the middle channel."""
    var, eps = window.running_var[-1], window.layers.eps_by_channel
    away = window.batch_mean[-1].abs() / (var + eps).sqrt()
    return median(away.where(var > FLAT * eps, torch.nan), window)


def gamma_update(window: Window, steps: int = 8) -> Tensor:
    """Relative change of gamma in a step, mean of the last steps, in the middle channel."""
    gamma = window.gamma[-steps - 1 :]
    if len(gamma) < 2:
        return torch.full((len(window.layers),), torch.nan, device="cpu")
    return median(gamma.diff(dim=0).abs().mean(0) / gamma[-1].abs(), window)


def dead(window: Window) -> Tensor:
    """Share of channels that gamma or beta switched off at the last step.

    Gamma is below :data:`bnmonitor.limits.DEAD_GAMMA` of its start, or beta is below
    :data:`bnmonitor.limits.DEAD_BETA` gammas where a ReLU alone reads the output, so that it lets nothing through. A
    gamma that starts at zero is not dead. NaN where gamma or beta is not known of every channel.
    """
    window = with_affine(window)
    gamma, beta = window.gamma[-1].abs(), window.beta[-1]
    off = gamma < DEAD_GAMMA * window.baseline.gamma.abs()
    if window.facts.structure is not None:
        off |= window.facts.structure.relu_only()[window.layers.owner] & (beta < DEAD_BETA * gamma)
    return share(off, window).where(~window.layers.segments.any(_untold(window)), torch.nan)


def _untold(window: Window) -> Tensor:
    """Channels that no process has told this one of: ``[C]`` bool."""
    return window.layers.split_channels & (window.gamma[-1].isnan() | window.beta[-1].isnan())


def silent(window: Window) -> Tensor:
    """Share of channels with an output that was never positive in the last sample; NaN without one."""
    if window.sample is None:
        return torch.full((len(window.layers),), torch.nan, device="cpu")
    nonpositive = window.sample.output.nonpositive
    known = share(~nonpositive.isnan(), window) > 0
    return share(nonpositive > ALWAYS_ZERO, window).where(known, torch.nan)
