"""Batches that are smaller than they look, by the noise of the statistics of every layer at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from bnmonitor.measures.robust import Array
from bnmonitor.window import Window

LEAST_STEPS = 24
"""Steps from which the usual noise of a window is known."""

LEAST_NOISE = 0.1
"""Smallest standard deviation of the log of a step's noise that is believed."""

SCREENED = 7
"""Layers that are looked at after the first one, to rule out that any step was noisy in all."""

ISOLATED = 1.5
"""How many times as noisy as the steps two before and two after a step must be to stand alone."""

PEAKED = 1.25
"""How many times as noisy as the steps beside it: about 1.6 where a batch is small, 1 where a level shifts for good."""

_CACHED = 8192
"""Channels of a window that are looked at together: a processor's cache holds their rows."""


@dataclass(frozen=True)
class StepNoise:
    """How noisy the batch statistics of each step are, compared with the usual noise.

    Attributes:
        factor: ``[T]`` distance from the steps before and after, over the usual one: the geometric mean over the
            layers, of the means or of the variances, whichever is smaller. NaN at the first and last step.
        least: ``[T]`` the same of the calmest layer.
        errors: ``[T]`` log of the factor, in robust standard deviations over the steps.
    """

    factor: Tensor
    least: Tensor
    errors: Tensor

    @property
    def alone(self) -> Tensor:
        """``[T]`` bool: noisier than the steps before and after, and more so than those beyond."""
        around = F.pad(self.factor.nan_to_num(0.0), (2, 2))
        beside = torch.maximum(around[1:-3], around[3:-1])
        beyond = torch.maximum(around[:-4], around[4:])
        return (self.factor > PEAKED * beside) & (self.factor > ISOLATED * beyond)

    @property
    def times_smaller(self) -> Tensor:
        """How many times fewer samples a step had than usual: its noise is that of one batch and two halves."""
        return 1.5 * self.factor.square() - 0.5


def step_noise(window: Window, layers: Tensor, least: float = 0.0) -> StepNoise:
    """Compare the noise of each step with that of the others, over all layers that normalize: ``[L]`` bool.

    The statistics of a batch of ``n`` samples are ``sqrt(N / n)`` times as far from their neighbors as those of ``N``,
    the means and the variances, in every channel and layer alike. Weights that jump, and data of another kind, move
    some layers more than others, and for longer than a step.

    Args:
        window: The window.
        layers: The layers to compare.
        least: A factor of the calmest layer; where no step can have a larger one, everything is left NaN.
    """
    unknown = torch.full((len(window),), torch.nan, dtype=torch.float64, device="cpu")
    result = StepNoise(unknown, unknown.clone(), unknown.clone())
    if len(window) < LEAST_STEPS or not bool((window.updates[:, layers] == 1).all()):
        return result
    noise = _noise(window, layers, least)
    if noise is None:
        return result
    logs = [_beside_usual(by_layer) for by_layer in noise]
    together = torch.minimum(*(each.nanmean(1) for each in logs))
    calmest = torch.minimum(*(each.where(each.isfinite(), torch.inf).amin(1) for each in logs))
    deviation = max(LEAST_NOISE, 1.4826 * float((together - together.nanmedian()).abs().nanmedian()))
    result.factor[1:-1], result.least[1:-1] = together.exp(), calmest.exp()
    result.errors[1:-1] = together / deviation
    return result


def _beside_usual(by_layer: Tensor) -> Tensor:
    """Log of the noise of each step, ``[T-2, L]`` in float64, over that of the layer's usual step."""
    return 0.5 * (by_layer / by_layer.median(0).values).clamp(min=1e-12).log()


def _noise(window: Window, layers: Tensor, least: float) -> Tensor | None:
    """Noise of each step in some layers, by the means and by the variances: ``[2, T - 2, l]`` in float64.

    No layer is calmer than the calmest, so that each one rules out all steps in which it is calm itself, by its means
    alone or by its variances: a few layers nearly always rule out all of them.

    Returns:
        None where the calmest layer of no step can have a factor above a limit.
    """
    found = [layer for layer in layers.nonzero().flatten().tolist() if window.layers.channels[layer]]
    rest = dict.fromkeys(found)
    noise = torch.full((2, len(window) - 2, len(window.layers)), torch.nan, dtype=torch.float64, device="cpu")
    left = torch.ones(len(window) - 2, dtype=torch.bool, device="cpu")
    limit = math.log(least) - 1e-3 if least > 0 else -math.inf  # the order of a sum over channels must not decide
    more = min(SCREENED, len(found) // 2)
    spread = [found[len(found) * (k + 1) // (more + 1)] for k in range(more)]
    for stage in (found[:1], [layer for layer in spread if layer != found[0]]) if least > 0 else ():
        if not stage:
            continue
        for rows, by_layer in zip((window.batch_mean, window.batch_var), noise, strict=True):
            found_here = _distances(window, rows, stage)
            by_layer[:, stage] = found_here
            beside = _beside_usual(found_here)
            left &= (~beside.isfinite() | (beside > limit)).all(1)
            if not left.any():
                return None
        for layer in stage:
            del rest[layer]
    if rest:
        for rows, by_layer in zip((window.batch_mean, window.batch_var), noise, strict=True):
            by_layer[:, list(rest)] = _distances(window, rows, list(rest))
    return noise[:, :, layers]


def _distances(window: Window, statistic: Tensor, layers: Sequence[int]) -> Tensor:
    """Square of each step's distance from the steps before and after, over the usual one: ``[T - 2, l]`` in float64.

    Of the batch mean, or of the log of the batch variance. The usual one is the median over the steps, of each channel;
    where it is 0, the channel is left out.
    """
    at, segments = window.layers.some_in(tuple(layers))
    rows = statistic.detach().index_select(1, at)
    if statistic is window.batch_var:
        rows.clamp_(min=1e-30).log_()
    away = (rows[:-2] + rows[2:]).div_(2)
    away = torch.sub(rows[1:-1], away, out=away).square_()
    usual = torch.from_numpy(_middle(away.numpy()))
    away.div_(usual.where((usual > 0) & ~away.sum(0).isnan(), torch.nan)).clamp_(max=1e3)
    return segments.mean(away).double()


def _middle(squares: Array) -> Array:
    """The median over the steps of numbers that are not negative, the lower of two: ``[T, C]`` to ``[C]``.

    As integers they have the same order, in which NumPy finds it in half the time; any number where one is NaN.
    """
    columns = np.ascontiguousarray(squares.T).view(f"i{squares.itemsize}")
    middle = (columns.shape[1] - 1) // 2
    found: Array = np.partition(columns, middle, -1)[:, middle].view(squares.dtype)
    return found


def samples_by_noise(window: Window, layers: Tensor, enough: float = math.inf) -> float:
    """Number of independent values whose means would be as noisy as those of the batches, in the middle layer.

    At most about the number of samples where a layer has one value of each, and the more above it, the less the samples
    differ.

    Args:
        window: The window.
        layers: The layers, ``[L]`` bool.
        enough: A number that need not be told from larger ones: if half of the layers, which are looked at first, show
            as many, it is infinity.

    Returns:
        The number; NaN where it is not known.
    """
    found = layers.nonzero().flatten().tolist()
    if len(window) < LEAST_STEPS or not found:
        return math.nan
    noise = _noise_of_means(window, found[::2])
    if enough < math.inf and bool((noise * enough <= 1).all()):
        return math.inf
    if len(found) > 1:
        noise = torch.cat([noise, _noise_of_means(window, found[1::2])])
    middle = float(noise.nanmedian())
    return 1 / middle if middle > 0 else math.nan


def _noise_of_means(window: Window, layers: Sequence[int]) -> Tensor:
    """Variance of the batch means from step to step over that within a batch, in the middle channel of some layers."""
    at, segments = window.layers.some_in(tuple(layers))
    found = []
    for some in torch.split(at, _CACHED):
        rows = window.batch_mean.index_select(1, some)
        var = window.batch_var.index_select(1, some).mean(0)
        found.append(rows.diff(dim=0).square_().mean(0).div_(2).div_(var))
    return segments.median(torch.cat(found))
