"""Batch statistics that jump between a few levels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, combinations, pairwise
from math import inf, lgamma, log

import numpy as np
import torch
from torch import Tensor

from bnmonitor.layers import LayerTable, Segments
from bnmonitor.measures.batches import normalizing
from bnmonitor.measures.clusters import NEAR, OUTLIERS, clusters, maybe_clustered, take_trend, without_trend
from bnmonitor.measures.products import product
from bnmonitor.measures.reductions import once
from bnmonitor.measures.robust import Array, lower_median
from bnmonitor.measures.running_lag import settled
from bnmonitor.window import Structure, Window

LEAST_SPREAD = 0.1
"""Deviations, or log of a deviation, by which the batches of a layer must vary for a closer look at it."""

CALM = 0.5
"""The part of the distance of two levels by which the layers before may differ between the same steps."""

CHANNELS = 32
"""Most channels of a layer that tell whether it gets a closer look, which takes more of them."""

NEAR_IN_FEW = 0.6
"""Largest distance of a step from the nearest one in so many channels, as a part of the typical one, likewise: more
than in all of them, as it depends on which these are."""

RUNS = 16
"""Runs of neighbors that these channels are."""

RECENT = 16
"""Steps in which the layers that vary most are looked for first: the level changes in every fifth of them at least."""

MOST_LAYERS = 8
"""Most layers that get a closer look."""

LEAST_STEPS = 40
"""Least number of steps with known batch statistics."""

LEAST_SWITCHES = 0.2
"""Part of the steps at which the level must change: it is drawn again and again, and does not change once."""

GOES_WITH = 0.5
"""Least difference between two levels in how often a layer took part, for the layer to have to do with them."""

CHANCE = 1e-3
"""Largest probability by chance that a level comes only with skipped layers, over all layers that are looked at."""

SAME = 1e-3
"""Distance of two batches, in deviations, below which they are one: the recovery of statistics rounds by less."""

UPPER = 0.85
"""Part of the channels that may differ less: widths of a network share only the first of them."""


@dataclass(frozen=True)
class Levels:
    """The levels of the layers whose batch statistics jump; all ``[L]``, zero for others.

    Attributes:
        count: int64, the number of levels.
        shift: Distance between the means of two levels, in deviations, in the middle pair of steps at different levels
            and in a channel of the upper sixth.
        ratio: Absolute log of the ratio of their variances, likewise.
        exclusive: bool, whether a layer is seen to stand in for another as the levels change.
    """

    count: Tensor
    shift: Tensor
    ratio: Tensor
    exclusive: Tensor


@once
def path_levels(window: Window) -> Levels:
    """Find the layers whose batch statistics jump between a few levels, while the layers before them are calm.

    The steps are points, with a coordinate for the mean and one for the variance of each channel. Levels are clusters
    of them that are far from each other compared with their own width. Noise and weights that move make none.

    Left out are levels that come from parts of the network being skipped at random, as by stochastic depth: all steps
    in which no layer is skipped are at one level, or the layer gets at one level just what a layer before it got.
    Evaluation takes one path there, that with all parts, and training has made the network robust against it.
    """
    length = len(window.layers)
    number = torch.zeros(length, dtype=torch.int64, device="cpu")
    shift, ratio = torch.zeros(2, length, dtype=torch.float64, device="cpu")
    exclusive = torch.zeros(length, dtype=torch.bool, device="cpu")
    result = Levels(number, shift, ratio, exclusive)
    structure = window.facts.structure
    if structure is None or len(structure.places) != length or len(window) < LEAST_STEPS:
        return result
    judged = normalizing(window) & settled(window) & ~structure.roots()
    if not judged.any():
        return result
    for layer in _maybe_grouped(window, _varying(window, judged.numpy())):
        found = _grouped(window, layer)
        if found is None:
            continue
        level, at = found
        placed = level[level >= 0]
        if int((placed[1:] != placed[:-1]).sum()) < LEAST_SWITCHES * len(placed):
            continue
        took = _took_part(window)[at]
        pair = _exclusive(took, level)
        if not pair and (_skipped(took, level) or _passed(window, structure, layer, at, level)):
            continue
        apart = _distance(window, layer, at, level)
        before = [_distance(window, i, at, level) for i in structure.places[layer].predecessors if i != layer]
        if all(one < CALM * mine or one < 0.05 for each in before for one, mine in zip(each, apart, strict=True)):
            number[layer] = int(level.max()) + 1
            shift[layer], ratio[layer] = apart
            exclusive[layer] = pair
    return result


def _varying(window: Window, judged: Array) -> list[int]:
    """Those of some layers, ``[L]`` bool, whose batches vary most from step to step, and so much as to be looked at."""
    layers = judged.nonzero()[0]
    if len(layers) > 3 * MOST_LAYERS:
        layers = layers[_spread(window, layers, RECENT).argsort()[: -2 * MOST_LAYERS - 1 : -1]]
    spread = _spread(window, layers, len(window))
    most = spread.argsort()[: -MOST_LAYERS - 1 : -1]
    found: list[int] = layers[most[spread[most] > LEAST_SPREAD]].tolist()
    return found


@lru_cache(maxsize=8)
def _few(table: LayerTable) -> tuple[Array, ...]:
    """Positions of :data:`CHANNELS` channels of each layer, or of all: in runs, as memory is read, evenly spread."""
    some = []
    for start, channels in zip(table.offsets, table.channels, strict=False):
        runs = start + np.arange(RUNS) * channels // RUNS
        few = (runs[:, None] + np.arange(CHANNELS // RUNS)).ravel()
        some.append(few if channels > CHANNELS else np.arange(start, start + channels))
    return tuple(some)


_segments = lru_cache(maxsize=8)(Segments)


@np.errstate(all="ignore")
def _spread(window: Window, layers: Array, steps: int) -> Array:
    """How far the batches of some layers vary in the newest steps: ``[k]``, in deviations or as a log of them."""
    few = _few(window.layers)
    some = [few[layer][::2] for layer in layers.tolist()]
    at, segments = np.concatenate(some), _segments(tuple(map(len, some)))
    shift, scale = (np.ascontiguousarray(rows[-steps:].numpy()[:, at].T) for rows in (window.shift, window.ratio))
    scale -= 1 / scale
    scale /= 2
    lag, varies = _moments(shift)  # a layer that is seldom called lags behind
    both = np.stack([varies - np.square(lag), _moments(scale)[1]])
    spread: Array = np.sqrt(segments.mean(torch.from_numpy(both)).numpy().max(0))
    return np.nan_to_num(spread)


def _moments(rows: Array) -> tuple[Array, Array]:
    """Mean, and mean square, of ``[c, t]`` over the steps, within bounds; NaN is left out."""
    np.clip(rows, -3, 3, out=rows)
    total, squares, known = rows.sum(1), np.einsum("ct,ct->c", rows, rows), rows.shape[1]
    if np.isnan(total.sum()):
        holes = np.isnan(rows)
        rows = np.where(holes, 0, rows)
        total, squares, known = rows.sum(1), np.square(rows).sum(1), rows.shape[1] - holes.sum(1, dtype=rows.dtype)
    return total / known, squares / known


def _maybe_grouped(window: Window, layers: list[int]) -> list[int]:
    """Those of some layers for which :func:`_grouped` may find levels, at a lower cost: it takes all in one go.

    A few channels are looked at first, and more of them only where steps are near to each other in these.
    """
    if not layers:
        return []
    once_a_step = (window.updates.numpy()[:, layers] == 1).all(0).tolist()
    plain = [layer for layer, is_plain in zip(layers, once_a_step, strict=True) if is_plain]
    wide = {layer for layer in plain if window.layers.channels[layer] > CHANNELS}
    few = _few(window.layers)
    limits = [NEAR_IN_FEW if layer in wide else NEAR for layer in plain]
    near = _near(window, plain, [few[layer] for layer in plain], limits)
    again = [layer for layer in near if layer in wide]
    more = [np.arange(at.start, at.stop, at.step) for at in map(window.layers.some_of, again)]
    still = _near(window, again, more, [NEAR] * len(again))
    out = {*plain} - {*near} | {*again} - {*still}
    return [layer for layer in layers if layer not in out]


def _near(window: Window, layers: list[int], some: list[Array], near: list[float]) -> list[int]:
    """Those of some layers of which half of the steps are so near to another one, in some channels of each."""
    if not layers:
        return []
    sizes, at = [*map(len, some)], np.concatenate(some)
    ends = [0, *accumulate(sizes)]
    # The channels first: then each one lies in one piece.
    mean, var = (np.ascontiguousarray(rows.numpy()[:, at].T) for rows in (window.batch_mean, window.batch_var))
    eps = np.array([window.layers.eps[layer] for layer in layers], dtype=var.dtype)
    var += eps.repeat(sizes)[:, None]
    log = torch.from_numpy(np.maximum(var, 1e-30, out=var)).log_().div_(2).numpy()
    if not np.isfinite(mean.sum() + log.sum()):
        return layers
    middle = lower_median(log)[:, None]
    mean -= lower_median(mean)[:, None]
    mean *= np.exp(-middle)
    log -= middle
    # Each layer in one piece: its means, and then its variances.
    points, first = np.empty((2 * len(at), len(window)), mean.dtype), np.array(ends[:-1])
    place = np.arange(len(at)) + first.repeat(sizes)
    points[place], points[place + np.repeat(sizes, sizes)] = mean, log
    np.clip(points, -3, 3, out=points)
    take_trend(points)
    each = (points[2 * a : 2 * b] for a, b in pairwise(ends))
    products = np.stack([product(one.T, one) for one in each])
    found = maybe_clustered(products, np.array(near, dtype=products.dtype)).tolist()
    return [layer for layer, is_near in zip(layers, found, strict=True) if is_near]


def _grouped(window: Window, layer: int) -> tuple[Tensor, Tensor] | None:
    """The level of each step, numbered from 0 and -1 for a step at no level, and the positions of the steps: ``[t]``.

    Of each step count the means of some channels, in deviations, and the halved logs of their variances. None where
    there are no levels.
    """
    some = window.layers.some_of(layer)
    mean, var = (rows[:, some].numpy() for rows in (window.batch_mean, window.batch_var))
    known = (window.updates[:, layer] == 1).numpy() & np.isfinite(mean).any(1) & np.isfinite(var).any(1)
    at = known.nonzero()[0]
    if len(at) < LEAST_STEPS:
        return None
    # The channels first: then each one lies in one piece.
    mean, var = (np.ascontiguousarray((rows if len(at) == len(rows) else rows[at]).T) for rows in (mean, var))
    log = torch.from_numpy(var).add(window.layers.eps[layer]).clamp_(min=1e-30).log_().div_(2).numpy()
    good = np.isfinite(mean).all(1) & np.isfinite(log).all(1)
    if not good.all():
        mean, log = mean[good], log[good]
    if not len(mean):
        return None
    middle = lower_median(log)[:, None]
    rows = (mean - lower_median(mean)[:, None]) * np.exp(-middle), log - middle
    one, other = (product(points.T, points) for points in (each.clip(-3, 3) for each in rows))
    # The weights move during the window, and not by levels.
    level = clusters(without_trend((one + other).astype(np.float64)))
    return None if level is None else (torch.from_numpy(level), torch.from_numpy(at))


@once
def _took_part(window: Window) -> Tensor:
    """Whether the loss came to depend on each layer in each step: ``[T, L]`` bool.

    What a branch puts out may be dropped or multiplied by zero after it ran: its layers get no gradient then, one of
    zeros, or keep the one that was accumulated before. Layers whose gradient never changes take part if they ran.
    """
    segments, changed = window.layers.segments, torch.zeros_like(window.updates, dtype=torch.bool)
    for rows in (window.gamma_grad, window.beta_grad):
        new = rows.isfinite() & (rows != 0)
        new[1:] &= rows[1:] != rows[:-1]
        changed |= segments.any(new)
    return (window.updates > 0) & (changed | ~changed[1:].any(0))


def _exclusive(took: Tensor, level: Tensor) -> bool:
    """Whether of two layers that the levels go with one stands in for the other: they never take part together."""
    ran = took.double()
    shares = torch.stack([ran[level == i].mean(0) for i in range(int(level.max()) + 1)])
    along = ((shares.amax(0) - shares.amin(0)) > GOES_WITH).nonzero().flatten()[:64]
    together = ran[:, along].T @ ran[:, along]
    return bool((together == 0).any())


def _skipped(took: Tensor, level: Tensor) -> bool:
    """Whether all steps in which none of a few layers is skipped are at one level, more than by chance.

    These few are the layers that the levels go with most. The chance is that of a draw without replacement: that the
    steps at other levels all happen to be among those with a skipped layer.
    """
    took, level = took[level >= 0], level[level >= 0]
    ran = took.double()
    shares = torch.stack([ran[level == i].mean(0) for i in range(int(level.max()) + 1)])
    gap = shares.amax(0) - shares.amin(0)
    some = gap.topk(min(MOST_LAYERS, len(gap))).indices
    whole = took[:, some].long().cumprod(1).bool()  # [t, k]: none of the first k is skipped
    for full in whole[:, gap[some] > 0].unbind(1):
        sizes = level[full].bincount(minlength=int(level.max()) + 1)
        most = int(sizes.argmax())
        count, other = int(full.sum()), int((level != most).sum())
        stray = count - int(sizes[most])
        if (
            count
            and stray <= OUTLIERS * other
            and _log_chance(len(level), count, other - stray) < log(CHANCE / len(gap))
        ):
            return True
    return False


def _log_chance(total: int, drawn: int, marked: int) -> float:
    """Log of the probability that of so many in total those that are drawn have none of the marked among them."""
    if drawn + marked > total:
        return -inf
    return (
        lgamma(total - marked + 1) + lgamma(total - drawn + 1) - lgamma(total - marked - drawn + 1) - lgamma(total + 1)
    )


def _passed(window: Window, structure: Structure, layer: int, at: Tensor, level: Tensor) -> bool:
    """Whether the layer gets at one of two levels just what a layer before it got, as what lies between is skipped."""
    if int(level.max()) != 1:
        return False
    before, front = set[int](), {layer}
    for _ in range(MOST_LAYERS):
        front = {i for one in front for i in structure.places[one].predecessors} - before - {layer}
        before |= front
    mean, var = _statistics(window, layer, at)
    for other in sorted(before):
        if window.layers.channels[other] != window.layers.channels[layer]:
            continue
        theirs, spread = _statistics(window, other, at)
        near = ((mean - theirs).abs() < SAME * var.sqrt()) & ((var / spread).log().abs() < SAME)
        same = near.all(1).double()
        shares = sorted(float(same[level == i].mean()) for i in range(2))
        if shares[0] < OUTLIERS and shares[1] > 1 - OUTLIERS:
            return True
    return False


def _statistics(window: Window, layer: int, at: Tensor) -> tuple[Tensor, Tensor]:
    """Means and variances of a layer's batches in some steps: ``[t, c]`` each."""
    span = window.layers.span(layer)
    return window.batch_mean[at, span].double(), window.batch_var[at, span].double() + window.layers.eps[layer]


def _distance(window: Window, layer: int, at: Tensor, level: Tensor) -> tuple[float, float]:
    """How far two levels of a layer are apart: distance of the means in deviations, log ratio of the variances."""
    mean, var = _statistics(window, layer, at)
    known = mean.isfinite().any(1)
    mean, var, level = mean[known], var[known], level[known]
    spread = var.nanmean(0).sqrt()
    members = [level == i for i in range(int(level.max()) + 1)]
    means, logs = ([t[m].nanmean(0) for m in members] for t in (mean, var.log()))
    shifts, ratios, weights = [], [], []
    for a, b in combinations(range(len(members)), 2):
        if not members[a].any() or not members[b].any():
            continue
        shifts.append(_upper((means[a] - means[b]).abs() / spread))
        ratios.append(_upper((logs[a] - logs[b]).abs()))
        weights.append(int(members[a].sum()) * int(members[b].sum()))
    return _middle(shifts, weights), _middle(ratios, weights)


def _upper(values: Tensor) -> float:
    known = values[values.isfinite()]
    return float(torch.quantile(known, UPPER)) if len(known) else 0.0


def _middle(values: list[float], weights: list[int]) -> float:
    """The median of values with weights."""
    half, seen = sum(weights) / 2, 0
    for value, weight in sorted(zip(values, weights, strict=True)):
        seen += weight
        if seen >= half:
            return value
    return 0.0
