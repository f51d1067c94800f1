"""Batches that are smaller than they look, by the noise of the statistics of all layers at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from bnmonitor.layers import LayerTable
from bnmonitor.measures.products import eigenvectors, product
from bnmonitor.measures.robust import Array, lower_median
from bnmonitor.window import Window

LEAST_STEPS = 24
"""Steps from which the usual noise of a window is known."""

LEAST_NOISE = 0.1
"""Smallest standard deviation of the log of a step's noise that is believed."""

COLUMNS = 256
"""Channels that are looked at, spread evenly over the layers: what they have in common, a few of each layer show."""

DIRECTIONS = 8
"""Directions in which batches vary most, in each of which a small batch is noisier by the same factor.

Single channels depend on each other, so that a mean over them is that of a few directions, and as uncertain.
"""

FARTHEST = 30.0
"""Most usual distances that one channel counts for."""

PEAKED = 1.3
"""How many times as noisy as the steps beside it: about 1.8 where a batch is small, 1 where a level shifts for good.

Weights that were averaged among clients made up to 1.25."""

ISOLATED = 1.22
"""How many times as noisy as the steps two before and two after a step must be to stand alone."""

AROUND = 7
"""Steps before a step, and after it, of which most must be as noisy as usual, ..."""

CALM = 1.5
"""... at most so many times."""

_CACHED = 8192
"""Channels of a window that are looked at together: a processor's cache holds their rows."""


@dataclass(frozen=True, eq=False)
class StepNoise:
    """How noisy the batch statistics of each step are, compared with the usual noise.

    ``T`` steps are all of the window but the first and the last. A distance is that of a step from the middle between
    the steps before and after it.

    Attributes:
        together: ``[T]`` distance of the batch means over the usual one, in the directions in which they vary most; and
            the same of the logs of the batch variances.
        directions: ``[T, D]`` of each of both, the distance in each direction over the usual one.
        channels: ``[T, C]`` the same of single channels, in the order of the layers.
    """

    together: tuple[Array, Array]
    directions: tuple[Array, Array]
    channels: tuple[Array, Array]

    @property
    def factor(self) -> Array:
        """``[T]`` the distance of the means and that of the variances, together: their geometric mean."""
        found: Array = np.sqrt(self.together[0] * self.together[1])
        return found

    @property
    def errors(self) -> Array:
        """``[T]`` log of the factor, in robust standard deviations over the steps."""
        logs = np.log(self.factor)
        return logs / max(LEAST_NOISE, 1.4826 * float(np.median(np.abs(logs - np.median(logs)))))

    @property
    def alone(self) -> Array:
        """``[T]`` bool: noisier than the steps around it, which are about as noisy as usual before it and after it."""
        factor = self.factor
        around = np.pad(factor, 2)
        beside, beyond = np.maximum(around[1:-3], around[3:-1]), np.maximum(around[:-4], around[4:])
        found: Array = (factor > PEAKED * beside) & (factor > ISOLATED * beyond)
        for at in np.flatnonzero(found).tolist():
            found[at] = calm_around(factor, at)
        return found

    @property
    def times_smaller(self) -> Array:
        """``[T]`` how many times fewer samples a step had than usual: its noise is that of one batch and two halves."""
        return times_smaller(self.factor)

    def calmest(self, at: int) -> float:
        """Distance of a step over the usual one in the calmest third of the layers, by its means or its variances.

        Data of another kind is far off in the first layers, and less so in later ones.
        """
        least = math.inf
        for distances in self.channels:
            for part in np.array_split(np.square(distances), min(3, distances.shape[1]), axis=1):
                size = part.mean(1)
                least = min(least, float(size[at] / max(lower_median(size), 1e-12)))
        return math.sqrt(least)

    def rise(self, at: int) -> float:
        """How much the variances of a step rose together: 1 if all by the same, -1 if they fell so, about 0 if apart.

        A small batch scatters them, and makes them smaller; data of another kind, or an outlier, makes all larger.
        """
        distances = self.channels[1][at]
        return float(distances.mean() / max(math.sqrt(np.square(distances).mean()), 1e-12))

    def likeness(self, one: int, other: int) -> float:
        """Sum of the cosines between two steps' distances, of means and of variances: 2 if these were the same batch.

        The samples of small batches differ, and so the directions in which these are off.
        """
        found = 0.0
        for x in self.directions:
            found += float(x[one] @ x[other]) / max(
                math.sqrt(np.square(x[one]).sum() * np.square(x[other]).sum()), 1e-12
            )
        return found


def calm_around(course: Array, at: int) -> bool:
    """Whether most of the steps before a step, and most after it, are about as far as usual, which is 1."""
    sides = course[max(0, at - AROUND) : at], course[at + 1 : at + 1 + AROUND]
    return all(float(np.median(side)) < CALM for side in sides if len(side))


def times_smaller(factor: Array) -> Array:
    """How many times fewer samples make a step as many times as far from the middle of its neighbors as usual."""
    return 1.5 * np.square(factor) - 0.5


def step_noise(window: Window, layers: Tensor, least: float = 0.0) -> StepNoise | None:
    """Compare the noise of each step with that of the others, over all layers that normalize: ``[L]`` bool.

    The statistics of a batch of ``n`` samples are ``sqrt(N / n)`` times as far from their neighbors as those of ``N``,
    the means and the variances, in every channel, layer and direction alike. Weights that jump, and data of another
    kind, move some directions more than others, or the means alone, or for longer than a step.

    Args:
        window: The window.
        layers: The layers.
        least: The noise is not compared if no step is so many times as far as usual in single channels, which costs
            less to see than directions.

    Returns:
        None where too little is known, or no step is so noisy.
    """
    if len(window) < LEAST_STEPS or not bool((window.updates[:, layers] == 1).all()):
        return None
    index = _chosen(window.layers, tuple(layers.nonzero().flatten().tolist()))
    means = window.batch_mean.detach().index_select(1, index).double().numpy()
    variances = window.batch_var.detach().index_select(1, index).double().clamp_(min=1e-30).log_().numpy()
    first, second = _by_channel(means), _by_channel(variances)
    if first is None or second is None or (least and _largest(first, second) < least):
        return None
    means_apart, variances_apart = _by_direction(first), _by_direction(second)
    if means_apart is None or variances_apart is None:
        return None
    together, directions = zip(means_apart, variances_apart, strict=True)
    return StepNoise(together, directions, (first, second))


@lru_cache(maxsize=8)
def _chosen(table: LayerTable, layers: tuple[int, ...]) -> Tensor:
    """Positions of channels of some layers: :data:`COLUMNS` in all, but two of each layer at least."""
    found = [layer for layer in layers if table.channels[layer]]
    each = max(2, COLUMNS // max(len(found), 1))
    at: list[int] = []
    for layer in found:
        span = range(*table.some_of(layer).indices(table.total))
        at.extend(span if len(span) <= each else [span[k * (len(span) - 1) // (each - 1)] for k in range(each)])
    return torch.tensor(at, device="cpu")


def _by_channel(rows: Array) -> Array | None:
    """Distance of each step ``[T, C]`` over the usual one; channels that do not change are left out."""
    with np.errstate(invalid="ignore"):
        known = math.isfinite(rows.sum())
    if not known:
        rows = rows[:, np.isfinite(rows).all(0)]
    away = rows[1:-1] - (rows[2:] + rows[:-2]) / 2
    usual = 1.4826 * _middle(np.abs(away))
    good = usual > 0
    if not good.all():
        away, usual = away[:, good], usual[good]
    return np.clip(away / usual, -FARTHEST, FARTHEST) if len(usual) else None


def _largest(means: Array, variances: Array) -> float:
    """How many times as far as usual the noisiest step is in single channels, as the factor is in directions.

    By the mean of their squares, or of their absolutes, which a few channels with rare peaks do not fill.
    """
    by_squares, by_size = ([power(rows).mean(1) for rows in (means, variances)] for power in (np.square, np.abs))
    squares, sizes = (_over_usual(one) * _over_usual(other) for one, other in (by_squares, by_size))
    return math.sqrt(max(math.sqrt(squares.max()), sizes.max()))


def _over_usual(size: Array) -> Array:
    found: Array = size / max(float(lower_median(size)), 1e-12)
    return found


def _by_direction(channels: Array) -> tuple[Array, Array] | None:
    """Distance of each step over the usual one, from that by channel: in all, and by direction.

    A direction is one in which most steps vary, each of them counting alike: a step that is far off must not have one
    of its own.
    """
    size = np.square(channels).mean(1)
    alike = channels / np.sqrt(np.maximum(size, 1e-12))[:, None]
    strength, steps = eigenvectors(product(alike, alike.T))
    kept = strength[-DIRECTIONS:] > 1e-9 * strength[-1]
    strength, steps = strength[-DIRECTIONS:][kept], steps[:, -DIRECTIONS:][:, kept]
    directions = product(channels, product(alike.T, steps) / np.sqrt(strength))
    middle = 1.4826 * _middle(np.abs(directions))
    directions = directions[:, middle > 0] / middle[middle > 0]
    if not directions.size:
        return None
    together = np.sqrt(np.maximum(np.square(directions).mean(1), 1e-12))
    return together / np.median(together), directions


def _middle(rows: Array) -> Array:
    """The lower median over the steps: ``[T, C]`` to ``[C]``."""
    found: Array = lower_median(np.ascontiguousarray(rows.T))
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
