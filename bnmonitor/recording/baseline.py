"""What each channel is judged against: its own past while it was well."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnmonitor.layers import LayerTable
from bnmonitor.limits import ALIVE
from bnmonitor.measures import (
    NEWEST,
    Array,
    batch_distance,
    forgetting,
    jump,
    middle_over_steps,
    newest,
    offset,
    typical_variance,
    variances,
    warm,
    weight_in_averages,
)
from bnmonitor.window import Baseline, Sample, Window

MEMORY = 500
"""Steps in which a baseline follows a lasting change by two thirds."""

_BY_LAYER = ("offset", "batch_distance", "jump", "rate", "initial", "updates", "forgotten", "sizes", "values")

CALMING = 30
"""Steps in which the level of calm times follows a layer that calms down by two thirds."""

RECENT = 20
"""Steps for which a learning rate counts as new."""


def begin(layers: LayerTable, gamma: Tensor, mean: Tensor, var: Tensor, counts: Tensor) -> Baseline:
    """Return the baseline of layers that nothing is known of but their first state, and how often they were updated."""
    return replace(
        Baseline.blank(layers),
        gamma=gamma.clone(),
        mean=mean.clone(),
        var=var.clone(),
        initial=_initial(layers, mean, var, counts),
    )


def restored(fresh: Baseline, layers: LayerTable, saved: Mapping[str, Any]) -> Baseline:
    """Return a fresh baseline with what an earlier run saved of the layers that are still the same."""
    if saved["baseline"] is None:
        return fresh
    old = dict(zip(saved["layers"], saved["channels"], strict=True))
    ends = list(accumulate(saved["channels"], initial=0))
    new = fresh.save()
    for i, name in enumerate(layers.names):
        if old.get(name) != layers.channels[i]:
            continue
        j = saved["layers"].index(name)
        for key, tensor in new.items():
            kept = saved["baseline"][key]
            if key in _BY_LAYER:
                tensor[i] = kept[j]
            else:
                tensor[layers.span(i)] = kept[ends[j] : ends[j + 1]]
    return Baseline(**new)


def counted(window: Window) -> Baseline:
    """Return the baseline that rules need: new updates are counted, new life is noted, and steps before followed."""
    if not window.fresh:
        return window.baseline
    if window.fresh > NEWEST:  # the newest steps are compared with those just before them, judged or not
        window = window.against(_calm_levels(window, warm(window)[-1], last=False))
    alive = window.baseline.alive | (typical_variance(window) > ALIVE * window.layers.eps_by_channel)
    new = slice(-window.fresh, None)
    counted = replace(
        window.baseline,
        alive=alive,
        updates=window.baseline.updates + window.updates[new].clamp(min=0).sum(0),
        forgotten=window.baseline.forgotten + forgetting(window)[new].sum(0),
    )
    weight = weight_in_averages(window.against(counted))
    if weight is None:
        return counted
    # The counter of an average is copied, or averaged: it says nothing of what the buffers have forgotten.
    average = ~weight.isnan()
    return replace(
        counted, initial=weight.where(average, counted.initial), forgotten=counted.forgotten.where(~average, 0.0)
    )


def followed(window: Window, held: Tensor) -> Baseline:
    """Return the window's baseline after it has followed the new steps.

    Middle and median absolute deviation of the newest steps are taken in log space, so one wild step moves neither; a
    lasting change is followed with a memory of :data:`MEMORY` steps.

    Args:
        window: The window that was judged.
        held: ``[L]`` bool, layers with an open alert, whose baseline stays as it was.
    """
    base, layers = window.baseline, window.layers
    moving = warm(window)[-1] & ~held
    rate = 1 - math.exp(-max(1, window.fresh) / MEMORY)
    least = 1e-3 * layers.eps_by_channel
    middle = typical_variance(window) + least
    # A median goes through a log unchanged: one log per channel will do.
    factor = (variances(window, newest(window)) + least).div_(middle)
    spread = middle_over_steps(torch.maximum(factor, factor.reciprocal(), out=factor)).log()
    by_channel = moving[layers.owner]
    base = _calm_levels(window, moving, last=True)
    highest = max(window.facts.learning_rates[:-RECENT], default=math.nan)
    return replace(
        base,
        log_var=_follow(base.log_var, middle.log().float(), by_channel, rate),
        spread=_follow(base.spread, spread.float(), by_channel, rate),
        offset=_follow(base.offset, offset(window).float(), moving, rate),
        rate=base.rate.fmax(torch.tensor(highest, device="cpu")),
    )


def sampled(base: Baseline, sizes: list[Sample]) -> Baseline:
    """Return the baseline with the batch sizes that the samples taken so far agree on."""
    if not sizes:
        return base
    trained = torch.stack([(s.calls > s.eval_calls) for s in sizes])

    def middle(name: str) -> Tensor:
        seen = torch.stack([getattr(s, name) for s in sizes]).float().where(trained, torch.nan)
        return seen.nanquantile(0.5, dim=0, interpolation="higher")

    return replace(base, sizes=middle("size"), values=middle("values"))


def _initial(layers: LayerTable, mean: Tensor, var: Tensor, counts: Tensor) -> Tensor:
    """Weight of mean 0 and variance 1 in running statistics that were updated so often; set by hand, they have none."""
    momentum = torch.tensor([1.0 if m is None else m for m in layers.momentum], dtype=torch.float64, device="cpu")
    untouched = ~layers.segments.any((mean != 0) | (var != 1))
    left = (1 - momentum).clamp(min=0).pow(counts).where(counts > 0, 0.0)
    return left.where(~untouched, 1.0)


def _calm_levels(window: Window, moving: Tensor, *, last: bool) -> Baseline:
    """Let the batch distance and the jump follow the new steps, a few at a time.

    Each of them is measured over a few steps: of many, the newest alone do not tell how calm all were.

    Args:
        window: The window; its baseline is followed.
        moving: ``[L]`` bool, layers whose baseline follows.
        last: Whether to follow the last few steps, or all before these.
    """
    base, length = window.baseline, len(window)
    distance, jumped = base.batch_distance, base.jump
    begin, end = length - min(length, max(1, window.fresh)), length
    begin, end = (max(begin, end - NEWEST), end) if last else (begin, end - NEWEST)
    thawed = window.facts.thawed
    if thawed is not None and thawed in window.steps[begin : max(end, begin)]:
        # How calm a layer was while it, or what feeds it, stood still says nothing of how calm it is in training.
        distance = torch.full_like(distance, torch.nan)
        jumped, begin = distance.clone(), window.steps.index(thawed)
    for until in reversed(range(end, begin, -NEWEST)):
        part, steps = window if until == length else window.until(until), min(NEWEST, until - begin)
        distance = _calm(distance, batch_distance(part).float(), moving, steps)
        jumped = _calm(jumped, jump(part).float(), moving, steps)
    return replace(base, batch_distance=distance, jump=jumped)


def _calm(old: Tensor, new: Tensor, moving: Tensor, steps: int) -> Tensor:
    """Follow quickly down and slowly up, by so many steps: the level of calm times."""
    down, up = (np.float32(1 - math.exp(-steps / memory)) for memory in (CALMING, MEMORY))
    was, now = old.numpy(), new.numpy()
    with np.errstate(all="ignore"):
        return _moved(was, now, np.where(now < was, down, up), moving)


def _follow(old: Tensor, new: Tensor, moving: Tensor, rate: float) -> Tensor:
    step = new - old
    if bool(moving.all()) and math.isfinite(float(step.sum())):  # the rule: then every value is known
        return step.mul_(rate).add_(old)
    with np.errstate(all="ignore"):
        return _moved(old.numpy(), new.numpy(), np.float32(rate), moving)


def _moved(old: Array, new: Array, rate: Array | np.float32, moving: Tensor) -> Tensor:
    """Go a part of the way to what is known now, and all of it where nothing was known."""
    target = np.where(np.isnan(old), new, old + rate * (new - old))
    return torch.from_numpy(np.where(moving.numpy() & np.isfinite(new), target, old))
