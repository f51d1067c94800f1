"""Finds steps at which the learning rate was raised at once."""

from __future__ import annotations

import math
from statistics import median

import torch
from torch import Tensor

from bnmonitor.window import Window

SUDDEN = 4.0
"""A learning rate of so many times that of the step before was raised at once: no schedule does that."""

SOON = 20
"""Steps after such a rise within which it may be the cause of a NaN."""


def rises(window: Window) -> list[int]:
    """Return the steps of the window at which the learning rate was raised at once."""
    rates = window.facts.learning_rates
    if len(rates) != len(window):
        return []
    return [window.steps[i] for i in range(1, len(rates)) if rates[i] >= SUDDEN * rates[i - 1] > 0]


def rise(window: Window, step: int) -> int | None:
    """Return the latest step shortly before a step at which the learning rate was raised at once; None without one."""
    return max((raised for raised in rises(window) if step - SOON <= raised < step), default=None)


GAMMA_STEPS = 30
"""Steps over which gamma is followed: where it runs away, it does so within a few of them."""

SETTLED_LOSS = 5
"""Steps over which the median of the loss is taken: one batch says little."""


def gamma_run(window: Window, steps: int = GAMMA_STEPS) -> Tensor:
    """Return how far gamma has moved within the newest steps, relative to its scale before them: ``[L]``.

    It is that of the channel that moved most. The scale is the root mean square of the layer's gammas, or of the median
    layer's if that is larger, as some layers begin at zero. NaN where gamma is unknown or not trained, and in a window
    of which too little is known. The newest row in which gamma is finite counts as now.

    Args:
        window: The window.
        steps: How many steps are looked at.
    """
    gamma, layers = window.gamma, window.layers
    known = ~gamma.isnan().all(0)
    finite = gamma.isfinite() | ~known
    rows = finite.all(1).nonzero().flatten().tolist()
    # Before the first step gamma was as the baseline keeps it, if no step has left the window yet.
    whole = bool((window.baseline.updates <= window.updates.clamp(min=0).sum(0)).all())
    if not rows or not (whole or len(window) > 2):
        return torch.full((len(layers),), torch.nan)
    now = rows[-1]
    begin = now - steps
    before = window.baseline.gamma if begin < 0 and whole else gamma[max(0, begin)]
    before = before.to(gamma.dtype)
    scale = layers.segments.mean(before.square()).sqrt()
    usual = scale[scale.isfinite()].median() if scale.isfinite().any() else torch.tensor(1.0)
    scale = torch.maximum(scale, usual).where(torch.maximum(scale, usual) > 0, 1.0)
    moved = layers.segments.max((gamma[now] - before).abs().nan_to_num(nan=0.0)) / scale
    judged = window.facts.affine_trains & layers.segments.any(known)
    return moved.where(judged & torch.tensor(layers.affine), torch.nan)


def loss_level(window: Window, steps: int = SETTLED_LOSS) -> float:
    """Return the median of the newest losses, a NaN among them counting as infinite; NaN where no loss is known."""
    losses = window.facts.losses
    if not any(loss == loss for loss in losses):
        return math.nan
    return median(loss if loss == loss else math.inf for loss in losses[-steps:])
