"""Batches that are smaller than they look, by the noise of the statistics of every layer at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from bnmonitor.measures.reductions import _some
from bnmonitor.window import Window

LEAST_STEPS = 24
"""Steps from which the usual noise of a window is known."""

LEAST_NOISE = 0.1
"""Smallest standard deviation of the log of a step's noise that is believed."""


ISOLATED = 1.5
"""How many times as noisy as the steps two before and two after a step must be to stand alone."""


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
        """``[T]`` bool: noisier than the steps before and after, and much more so than those beyond."""
        around = F.pad(self.factor.nan_to_num(0.0), (2, 2))
        beside = torch.maximum(around[1:-3], around[3:-1])
        beyond = torch.maximum(around[:-4], around[4:])
        return (self.factor > beside) & (self.factor > ISOLATED * beyond)

    @property
    def times_smaller(self) -> Tensor:
        """How many times fewer samples a step had than usual: its noise is that of one batch and two halves."""
        return 1.5 * self.factor.square() - 0.5


def step_noise(window: Window, layers: Tensor) -> StepNoise:
    """Compare the noise of each step with that of the others, over all layers that normalize: ``[L]`` bool.

    The statistics of a batch of ``n`` samples are ``sqrt(N / n)`` times as far from their neighbors as those of ``N``,
    the means and the variances, in every channel and layer alike. Weights that jump, and data of another kind, move
    some layers more than others, and for longer than a step.
    """
    unknown = torch.full((len(window),), torch.nan, dtype=torch.float64, device="cpu")
    result = StepNoise(unknown, unknown.clone(), unknown.clone())
    if len(window) < LEAST_STEPS or not bool((window.updates[:, layers] == 1).all()):
        return result
    some = window.layers.some
    segments = window.layers.segments if some is None else some[1]
    logs = []
    for rows in (_some(window.batch_mean, window), _some(window.batch_var, window).clamp(min=1e-30).log()):
        away = (rows[1:-1] - (rows[:-2] + rows[2:]) / 2).square_()
        usual = away.median(0).values
        by_layer = segments.mean((away / usual).where(usual > 0, torch.nan).clamp_(max=1e3))[:, layers].double()
        by_layer = by_layer / by_layer.median(0).values
        logs.append(0.5 * by_layer.clamp(min=1e-12).log())
    together = torch.minimum(*(each.nanmean(1) for each in logs))
    calmest = torch.minimum(*(each.where(each.isfinite(), torch.inf).amin(1) for each in logs))
    deviation = max(LEAST_NOISE, 1.4826 * float((together - together.nanmedian()).abs().nanmedian()))
    result.factor[1:-1], result.least[1:-1] = together.exp(), calmest.exp()
    result.errors[1:-1] = together / deviation
    return result


def samples_by_noise(window: Window, layers: Tensor) -> float:
    """Number of independent values whose means would be as noisy as those of the batches, in the middle layer.

    ``layers`` is ``[L]`` bool. At most about the number of samples where a layer has one value of each, and the more
    above it, the less the samples differ. NaN where it is not known.
    """
    if len(window) < LEAST_STEPS:
        return math.nan
    rows = _some(window.batch_mean, window)
    var = _some(window.batch_var, window).mean(0)
    noise = rows.diff(dim=0).square().mean(0) / 2 / var
    some = window.layers.some
    by_layer = (window.layers.segments if some is None else some[1]).median(noise)[layers]
    middle = float(by_layer.nanmedian()) if len(by_layer) else math.nan
    return 1 / middle if middle > 0 else math.nan
