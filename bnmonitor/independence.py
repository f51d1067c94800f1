"""How batches differ from one another, against how they would if their samples were drawn independently."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bnmonitor.frame import Window
from bnmonitor.measures import FLAT, once, settled, synced

LAGS = (1, 4)
"""Steps between the batches that are compared; the longer one sees blocks of batches that are alike."""

LEAST_PAIRS = 50
"""Differences of batches that a number rests on."""

FEW_BATCHES = 8
"""Batches in an epoch below which an incomplete last one is too large a part of all."""


@dataclass(frozen=True)
class Independence:
    """How the batches of each layer that sees the data differ; all ``[L]``, NaN where it is not known.

    Attributes:
        excess: Variance of the batch mean from batch to batch, over what independent samples would give: about 1 if
        they
            are, at most, as what is behind a median is a little less.
        alternation: Correlation of the means of two successive batches, a trend removed.
    """

    excess: Tensor
    alternation: Tensor


@once
def independence(window: Window) -> Independence:
    """Judge the layers with no other upstream, whose batch means are the data's own.

    Samples that are drawn independently give a batch mean a variance of ``between / N``: ``between`` is the variance of
    the samples' own means, ``N`` their number. What the batch means really vary by is taken from second differences,
    ``(x[t + k] - 2 x[t] + x[t - k])^2 / 6``, in which a drift at any constant speed cancels: the weights before the
    layer move while it is watched. All channels of a layer are taken together, then the median over the steps, which
    an incomplete batch at the end of each epoch does not move.
    """
    layers, sample, structure = window.layers, window.sample, window.facts.structure
    unknown = torch.full((len(layers),), torch.nan, dtype=torch.float64, device="cpu")
    result = Independence(unknown, unknown.clone())
    if sample is None or structure is None or not structure.places or len(window) < LEAST_PAIRS + 2 * max(LAGS):
        return result
    loader = window.facts.train_loader
    ragged = loader is None or loader.leftover != 0
    if ragged and 0 < ((loader.batches if loader else None) or window.facts.epoch_steps) < FEW_BATCHES:
        return result
    judged = structure.roots() & layers.of_family("batch") & settled(window)
    judged &= (window.updates == 1).all(0) & window.training.all(0) & (sample.calls == 1)
    for layer in judged.nonzero().flatten().tolist():
        span = layers.span(layer)
        size = float(sample.size[layer]) * (window.facts.world_size if synced(window)[layer] else 1)
        var = window.batch_var[:, span].double().mean(0)
        expected = sample.between[span].double() / sample.input.var[span].double() / size
        x = window.batch_mean[:, span].double() / var.sqrt()
        good = (var > FLAT * layers.eps[layer]) & expected.isfinite() & (expected > 0) & x.isfinite().all(0)
        if good.any():
            x, expected = x[:, good], expected[good]
            result.excess[layer] = max(_excess(x, expected, lag) for lag in LAGS)
            result.alternation[layer] = _alternation(x)
    return result


def _excess(x: Tensor, expected: Tensor, lag: int) -> float:
    differences = x[2 * lag :] - 2 * x[lag:-lag] + x[: -2 * lag]
    return float((differences.square().sum(1) / 6 / expected.sum()).median())


def _alternation(x: Tensor) -> float:
    """Lag-1 correlation of ``[T, C]`` over all channels, a linear trend of each removed."""
    time = torch.linspace(-1, 1, len(x), dtype=x.dtype, device="cpu")[:, None]
    x = x - x.mean(0)
    x = x - time * (time * x).sum(0) / time.square().sum()
    return float((x[1:] * x[:-1]).sum() / x.square().sum().clamp(min=1e-300))
