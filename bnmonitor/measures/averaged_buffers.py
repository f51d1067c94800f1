"""Averages of a network's buffers: how fast they follow, and what of their initial values is left in them."""

from __future__ import annotations

import torch
from torch import Tensor

from bnmonitor.measures.reductions import once
from bnmonitor.measures.running_lag import forgetting
from bnmonitor.window import Window

_UNEXPLAINED = 0.1
"""Share of a copy's movement that may be another than towards its twin, beyond which it is no average of it."""


@once
def averaged(window: Window) -> Tensor:
    """Layers whose running statistics are made of another layer's, and not of their own batches: ``[L]`` bool."""
    sample = window.sample
    own = torch.zeros_like(window.auxiliary) if sample is None else sample.calls > sample.eval_calls
    return window.auxiliary & ~own & window.layers.tracked & (twins(window) >= 0)


@once
def twins(window: Window) -> Tensor:
    """Of each auxiliary layer the layer in training that it is a copy of, by position, ``[L]``; -1: none."""
    aside = window.auxiliary
    if not aside.any():
        return torch.full((len(window.layers),), -1, dtype=torch.int64, device="cpu")
    return window.layers.twins(aside, ~aside & (window.updates > 0).any(0))


def weight_in_averages(window: Window) -> Tensor | None:
    """What mean 0 and variance 1 weigh in running statistics that are averages of others': ``[L]``, NaN for others.

    At each new step an average moves by the same share of its distance from its twin, which is computed over all
    channels. What of the movement is no such share is another's write, after which nothing is left of 0 and 1.

    Returns:
        None if there is no average.
    """
    if not window.auxiliary.any():
        return None
    which = averaged(window)
    if not which.any() or not window.fresh:
        return None
    layers, base, new = window.layers, window.baseline, min(window.fresh, len(window))
    twin = twins(window)
    at = which[layers.owner].nonzero().flatten()
    owner = layers.owner[at]
    offsets = torch.tensor(layers.offsets[:-1], dtype=torch.int64, device="cpu")
    source = at - offsets[owner] + offsets[twin[owner]]
    kept = [torch.cat([first[None, at], rows[:, at]]).double() for first, rows in _with_start(window)]
    followed = [rows[-new:, source].double() for rows in (window.running_mean, window.running_var)]
    scale = followed[1].abs() + layers.eps_by_channel[at]
    gap = [(live - mine[-new - 1 : -1]) / s for live, mine, s in zip(followed, kept, _scales(scale), strict=True)]
    move = [(mine[-new:] - mine[-new - 1 : -1]) / s for mine, s in zip(kept, _scales(scale), strict=True)]

    def by_layer(values: Tensor) -> Tensor:
        zeros = torch.zeros(new, len(layers), dtype=torch.float64, device="cpu")
        return zeros.index_add_(1, owner, values)

    across = by_layer(move[0] * gap[0] + move[1] * gap[1])
    room = by_layer(gap[0].square() + gap[1].square())
    moved = by_layer(move[0].square() + move[1].square())
    share = (across / room.clamp(min=1e-30)).where(room > 0, 0.0)
    left_over = (moved - share * across).clamp(min=0)
    foreign = ~((left_over <= _UNEXPLAINED * moved) & (share > -1e-3) & (share < 1.001)) & (moved > 0)
    then = base.forgotten.double() - forgetting(window)[-new:].flip(0).cumsum(0).flip(0) + forgetting(window)[-new:]
    live = base.initial.double() * (-then).exp()
    weight = base.initial.double().clone()
    for step in range(new):
        theirs = live[step][twin.clamp(min=0)]
        weight = (weight + share[step] * (theirs - weight)).where(~foreign[step], 0.0)
    return weight.where(which, torch.nan)


def _with_start(window: Window) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The state that the first step of the window began with, where it is known, and the rows after it."""
    base = window.baseline
    rows = window.running_mean, window.running_var
    young = window.fresh >= len(window)
    first = [start if young else each[0] for start, each in zip((base.mean, base.var), rows, strict=True)]
    return (first[0], rows[0]), (first[1], rows[1])


def _scales(var: Tensor) -> tuple[Tensor, Tensor]:
    """What a mean and a variance are measured in."""
    return var.sqrt(), var
