"""Batch statistics that jump between a few levels."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import inf, lgamma, log

import torch
from torch import Tensor

from bnmonitor.measures.batches import normalizing
from bnmonitor.measures.reductions import _some, once
from bnmonitor.measures.robust import mean_over_steps
from bnmonitor.measures.running_lag import settled
from bnmonitor.window import Structure, Window

LEAST_SPREAD = 0.1
"""Deviations, or log of a deviation, by which the batches of a layer must vary for a closer look at it."""

CALM = 0.5
"""The part of the distance of two levels by which the layers before may differ between the same steps."""

MOST_LAYERS = 8
"""Most layers that get a closer look."""

LEAST_STEPS = 40
"""Least number of steps with known batch statistics."""

LEAST_MEMBERS = 4
"""Least number of steps at one level."""

MOST_LEVELS = 6
"""Most levels, with outliers; of more, a window holds too few steps of each."""

DIRECTIONS = 3
"""Directions in which the steps vary most, in which levels are looked for."""

NEAR = 0.42
"""Largest distance of a step from the nearest one, as a part of the typical distance, for a closer look."""

AWAY = 4.5
"""Least distance of two levels, in deviations of their own steps: halves of a normal distribution have 2.7, of a
uniform one 3.5."""

OUTLIERS = 0.1
"""Part of the steps that may be at no level."""

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
    spread = _spread(window).nan_to_num(0.0)
    judged &= spread > LEAST_SPREAD
    for layer in spread.where(judged, 0.0).topk(min(MOST_LAYERS, length)).indices.tolist():
        if not judged[layer]:
            continue
        rows, at = _rows(window, layer)
        level = _grouped(rows) if len(rows) >= LEAST_STEPS else None
        if level is None or int(level.max()) == 0:
            continue
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


def _spread(window: Window) -> Tensor:
    """How far the batches of each layer vary from step to step: ``[L]``, in deviations or as a log of them."""
    segments = window.layers.segments if window.layers.some is None else window.layers.some[1]
    scale = _some(window.ratio, window)
    log = (scale - scale.reciprocal()).div_(2).clamp_(-3, 3).square_()
    shift = _some(window.shift, window).clamp(-3, 3)
    lag = mean_over_steps(shift)  # a layer that is seldom called lags behind
    return torch.maximum(
        segments.mean(mean_over_steps(shift.square_()) - lag.square_()), segments.mean(mean_over_steps(log))
    ).sqrt()


def _rows(window: Window, layer: int) -> tuple[Tensor, Tensor]:
    """Means in deviations and halved logs of the variances, ``[t, 2c]``, and the positions of their steps, ``[t]``."""
    span = window.layers.span(layer)
    mean, var = window.batch_mean[:, span].double(), window.batch_var[:, span].double() + window.layers.eps[layer]
    known = (window.updates[:, layer] == 1) & mean.isfinite().any(1) & var.isfinite().any(1)
    mean, log = mean[known], var[known].clamp(min=1e-30).log() / 2
    good = mean.isfinite().all(0) & log.isfinite().all(0)
    mean, log = mean[:, good], log[:, good]
    at = known.nonzero().flatten()
    if not len(at) or not mean.shape[1]:
        return mean[:0], at[:0]
    scale = log.median(0).values.exp()
    rows = torch.cat([mean / scale, log], 1)
    rows = (rows - rows.median(0).values).clamp(-3, 3)
    # The weights move during the window, and not by levels.
    time = torch.linspace(-1, 1, len(rows), dtype=rows.dtype, device="cpu")
    basis = torch.linalg.qr(torch.stack([time**power for power in range(4)], 1)).Q
    return rows - basis @ (basis.T @ rows), at


def _grouped(rows: Tensor) -> Tensor | None:
    """The level of each step, numbered from 0, and -1 for a step at no level: ``[t]``; None without levels."""
    distance = torch.cdist(rows, rows)
    typical = float(distance.mean())
    if float(distance.fill_diagonal_(torch.inf).amin(1).median()) > NEAR * typical:
        return None  # as nearly always: noise of many channels leaves no step near to another
    values, vectors = torch.linalg.eigh(rows @ rows.T)
    points = vectors[:, -DIRECTIONS:] * values[-DIRECTIONS:].clamp(min=0).sqrt()
    best, most = None, AWAY
    for count in range(2, MOST_LEVELS + 1):
        number = _clusters(points, count)
        sizes = number.bincount(minlength=count)
        large = sizes >= LEAST_MEMBERS
        if int(large.sum()) < 2 or float(sizes[~large].sum()) > OUTLIERS * len(rows):
            continue
        level = torch.where(large, large.long().cumsum(0) - 1, -1)[number]
        away = _least_away(points, level)
        if away > most:
            best, most = level, away
    return best


def _clusters(points: Tensor, count: int) -> Tensor:
    """K-means (Lloyd 1982) that begins with points as far from each other as they are: ``[t]`` int64."""
    centers = [points[int(points.square().sum(1).argmax())]]
    for _ in range(count - 1):
        centers.append(points[int(torch.cdist(points, torch.stack(centers)).amin(1).argmax())])
    middle = torch.stack(centers)
    number = torch.cdist(points, middle).argmin(1)
    for _ in range(8):
        members = torch.nn.functional.one_hot(number, count).to(points.dtype)
        middle = (members.T @ points) / members.sum(0).clamp(min=1)[:, None]
        new = torch.cdist(points, middle).argmin(1)
        if torch.equal(new, number):
            break
        number = new
    return number


def _least_away(points: Tensor, level: Tensor) -> float:
    """How far the two nearest levels are apart, in deviations of their own points along the line between them."""
    least = float("inf")
    members = [points[level == i] for i in range(int(level.max()) + 1)]
    for one, other in combinations(members, 2):
        line = one.mean(0) - other.mean(0)
        far = float(line.norm())
        along = torch.cat([(one - one.mean(0)) @ line, (other - other.mean(0)) @ line]) / max(far, 1e-12)
        least = min(least, far / max(float(along.square().mean().sqrt()), 1e-12))
    return least


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
