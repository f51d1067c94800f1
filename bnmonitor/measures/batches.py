"""What a layer normalizes together, and how far its batches differ."""

from __future__ import annotations

import torch
from torch import Tensor

from bnmonitor.limits import FLAT
from bnmonitor.measures.reductions import _median_of_some, _some, median, once
from bnmonitor.measures.robust import mean_over_steps, middle_over_steps
from bnmonitor.window import Window

LEAST_HELD_OUT = 64
"""Samples of a validation below which its variance says little."""


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


SHORT = 10
"""Steps over which a layer's batch distance is measured, if fewer are new."""


@once
def batch_distance(window: Window) -> Tensor:
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
