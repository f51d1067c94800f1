"""Size of the batches that a layer normalizes, and how much the batches differ."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bnmonitor.limits import FLAT
from bnmonitor.measures.reductions import _median_of_some, _some, median, once
from bnmonitor.measures.robust import mean_over_steps, middle_over_steps
from bnmonitor.measures.running_lag import NEWEST
from bnmonitor.window import Window

LEAST_HELD_OUT = 64
"""Samples of a validation below which its variance says little."""


@once
def normalizing(window: Window) -> Tensor:
    """Layers that normalize with statistics of their batch now, by their updates or samples: ``[L]`` bool."""
    ran, tracked = (window.updates > 0).any(0), window.layers.tracked
    if not tracked.all():
        ran = torch.where(tracked, ran, window.baseline.sizes.isfinite())
    return ran & window.training[-1] & window.layers.which("normalizes_batch")


@once
def samples_normalized(window: Window) -> Tensor:
    """Number of samples that each layer normalizes as one batch, over all processes if synchronized: ``[L]``.

    The middle of the sampled steps; without one, the batch size of the training loader; NaN where both are unknown.
    """
    loader = window.facts.train_loader
    stated = float(loader.batch_size) if loader is not None and loader.batch_size else torch.nan
    sizes = window.baseline.sizes
    return torch.where(sizes.isnan(), stated, sizes) * processes(window)


def processes(window: Window) -> Tensor | int:
    """Number of processes that each layer normalizes the batches of as one: ``[L]``, or one number for all."""
    return torch.where(window.layers.synced_layers, window.facts.world_size, 1) if window.facts.world_size > 1 else 1


def trunk(window: Window, judged: Tensor) -> Tensor:
    """Those of some layers, ``[L]`` bool, that get several positions of each sample; all of them if none does."""
    spread = judged & (window.baseline.values > window.baseline.sizes)
    return spread if spread.any() else judged


@once
def batch_distance(window: Window) -> Tensor:
    """Distance of the batches from the running statistics, in the middle channel and newest step: ``[L]``.

    The larger of the distance of the means, in deviations, and the log ratio of the deviations (as its hyperbolic sine,
    which needs no logarithm), over some channels of each layer.
    """
    ratio, shift = (_some(rows[-NEWEST:], window).detach().numpy() for rows in (window.ratio, window.shift))
    with np.errstate(all="ignore"):
        spread = 1 / ratio
        np.subtract(ratio, spread, out=spread)
        np.abs(spread, out=spread)
        spread *= 0.5
        np.maximum(np.abs(shift), spread, out=spread)
    return _median_of_some(middle_over_steps(torch.from_numpy(spread)), window)


@once
def jump(window: Window) -> Tensor:
    """Move of the batch mean from one step to the next, in deviations, in the middle channel and step: ``[L]``."""
    if len(window) < 2:
        return torch.full((len(window.layers),), torch.nan, device="cpu")
    recent = _some(window.batch_mean[-NEWEST - 1 :], window)
    var = _some(window.running_var[-1] + window.layers.eps_by_channel, window)
    return _median_of_some(middle_over_steps(recent.diff(dim=0).abs_()) / var.sqrt(), window)


def noise(window: Window) -> Tensor:
    """Spread of the batch mean around the running mean over the steps, in deviations; median of some channels."""
    return _median_of_some(_deviation(_some(window.shift, window)), window)


def variance_noise(window: Window) -> Tensor:
    """Spread of the log ratio of batch and running deviation over the steps; median of some channels."""
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
