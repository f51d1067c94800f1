"""How far gamma runs within a few steps, and what the loss does: evidence that needs no calm times."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from torch import Tensor

from bnmonitor.measures.learning_rate import SOON, rise
from bnmonitor.measures.reductions import once
from bnmonitor.measures.robust import lower_median
from bnmonitor.window import Window

GAMMA_STEPS = 30
"""Steps over which gamma is followed: where it runs away, it does so within a few of them."""

SETTLED_LOSS = 5
"""Steps over which the median of the loss is taken: one batch says little."""


INPUT_JUMP = 30.0
"""Factor by which the batch variance of a layer that sees the data grows at once where the data changes its scale."""

INPUT_SHIFT = 10.0
"""Standard deviations by which the batch mean of such a layer moves at once where the data lost its center."""

UNUSUAL = 3.0
"""How many times as far as in all steps before the mean must move."""

CALM_STEPS = 5
"""Steps before such a jump in which gamma must not have moved: weights that jump have moved gamma one step before."""

CALM_RUN = 0.2
"""Most that gamma may have moved in these steps, as a part of its scale."""

APART = 3.0
"""Gammas of one parameter group that move so many times as far as those of the others point at its rate."""


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
    now = _last_finite(gamma)
    # Before the first step gamma was as the baseline keeps it, if no step has left the window yet.
    whole = is_young(window)
    if now is None or not (whole or len(window) > 2):
        return torch.full((len(layers),), torch.nan, device="cpu")
    begin = now - steps
    first = window.baseline.gamma if begin < 0 and whole else gamma[max(0, begin)]
    before, after = (row.detach().to(gamma.dtype).numpy() for row in (first, gamma[now]))
    judged = window.facts.affine_trains.numpy() & np.array(layers.affine)
    with np.errstate(all="ignore"):
        moved = layers.segments.max_of(np.abs(after - before))
        if layers.split or np.isnan(moved).any():
            unknown = np.isnan(after)
            # What is split over the processes may be known of one step only.
            unknown |= layers.split_channels.numpy() & (np.isnan(before) | (now == 0 and not whole))
            judged &= layers.segments.any(torch.from_numpy(~unknown)).numpy()
        scale = np.sqrt(layers.segments.mean(torch.from_numpy(np.square(before))).numpy())
        finite = np.isfinite(scale)
        scale = np.maximum(scale, lower_median(scale[finite]) if finite.any() else scale.dtype.type(1.0))
        run = np.nan_to_num(moved) / np.where(scale > 0, scale, scale.dtype.type(1.0))
    return torch.from_numpy(np.where(judged, run, run.dtype.type(np.nan)))


def loss_level(window: Window, steps: int = SETTLED_LOSS) -> float:
    """Return the median of the newest losses that are known, a NaN among them counting as infinite; NaN without one."""
    newest = window.facts.known_losses[-steps:]
    return median(loss if loss == loss else math.inf for loss in newest) if newest else math.nan


def _last_finite(gamma: Tensor) -> int | None:
    """The newest row of ``[T, C]`` in which no channel has stopped being finite; None without one."""
    if math.isfinite(float(gamma[-1].sum())):
        return len(gamma) - 1
    never = gamma[0].isnan() & gamma[-1].isnan()
    if bool((gamma[-1].isfinite() | never).all()):
        return len(gamma) - 1
    rows = (gamma.isfinite() | never).all(1).nonzero().flatten()
    return int(rows[-1]) if len(rows) else None


@once
def is_young(window: Window) -> bool:
    """Return whether the window still holds every training step."""
    return bool((window.baseline.updates <= window.updates.clamp(min=0).sum(0)).all())


def changed_at_once(window: Window, layers: Tensor) -> bool:
    """Return whether gamma of some layers, ``[L]`` bool, changed in a single step: other code has written it."""
    path = window.gamma[-GAMMA_STEPS:, layers[window.layers.owner]].diff(dim=0).abs().nan_to_num(0.0).sum(1)
    return len(path) > 2 and float(path.max()) > 0.9 * float(path.sum())


@dataclass(frozen=True)
class InputJump:
    """A step at which the data changed, and not the weights.

    Attributes:
        step: The step.
        layer: The layer that saw it, which sees the data.
        by_variance: Whether its batch variance grew; else its batch mean moved.
        size: The factor by which the variance grew, or the standard deviations by which the mean moved.
    """

    step: int
    layer: int
    by_variance: bool
    size: float


def input_jump(window: Window, began: int) -> InputJump | None:
    """Return the step at which the data jumped, and not the weights, shortly before something began; None without one.

    The batch variance of most channels of a layer that sees the data grew at once beyond all earlier ones, or their
    batch means moved at once by far more than before, with no rise of the learning rate shortly before, and no gamma
    had moved until then. Data that always vary so much do not jump.

    Args:
        window: The window.
        began: The step at which something began that the data may have caused.
    """
    structure = window.facts.structure
    if structure is None or len(structure.places) != len(window.layers):
        return None
    for layer in structure.roots().nonzero().flatten().tolist():
        span = window.layers.span(layer)
        mean, var = window.batch_mean[:, span], window.batch_var[:, span]
        highest = var.nan_to_num(0.0).cummax(0).values[:-1]
        grown = (var[1:] / highest.where(highest > 0, torch.nan)).nanmedian(1).values
        moved = (mean.diff(dim=0).abs() / (var[:-1] + window.layers.eps[layer]).sqrt()).nanmedian(1).values
        usual = torch.cat([torch.zeros(1, device="cpu"), moved.nan_to_num(0.0).cummax(0).values[:-1]])
        shifted = (moved > INPUT_SHIFT) & (moved > UNUSUAL * usual)
        for at in (((grown > INPUT_JUMP) | shifted).nonzero().flatten() + 1).tolist():
            step = window.steps[at]
            if at <= CALM_STEPS or not step - 1 <= began <= step + SOON or rise(window, step) is not None:
                continue
            if not bool((gamma_run(window.until(at), CALM_STEPS) > CALM_RUN).any()):
                by_variance = bool(grown[at - 1] > INPUT_JUMP)
                return InputJump(step, layer, by_variance, float((grown if by_variance else moved)[at - 1]))
    return None


def run_began(window: Window, layer: int) -> int:
    """Return the step at which gamma of a layer began to run, or at which the rate was raised shortly before.

    A rate that is too high in the first steps was so from the first.
    """
    raised = rise(window, window.steps[-1])
    if raised is not None:
        return raised
    begin = max(0, len(window) - GAMMA_STEPS - 1)
    gamma = window.gamma[begin:, window.layers.span(layer)]
    moved = (gamma - gamma[0]).abs().nan_to_num(torch.inf).amax(1)
    if not moved.isfinite().any():
        return window.steps[begin]
    ran = moved > 0.1 * moved[moved.isfinite()].max()
    step = window.steps[begin + max(0, int(ran.long().argmax()) - 1)]
    return window.steps[0] if is_young(window) and step - window.steps[0] <= GAMMA_STEPS else step


def fastest_group(window: Window, moved: Tensor) -> Tensor | None:
    """Return the layers of the parameter group with the highest rate, ``[L]`` bool, if its gammas moved most by far.

    Args:
        window: The window.
        moved: ``[L]``, what :func:`gamma_run` returned.
    """
    facts, known = window.facts, ~moved.isnan()
    # Of a single rate none is the highest.
    if facts.group is None or len(set(facts.group_rates)) < 2 or not known.any():
        return None
    rates = torch.tensor([*facts.group_rates, torch.nan], device="cpu")[facts.group]
    fast = rates == rates[known].nan_to_num(0.0).max()
    others = known & (rates < rates[known].nan_to_num(0.0).max())
    if not others.any() or not (known & fast).any():
        return None
    return fast if float(moved[known & fast].median()) > APART * float(moved[others].median()) else None
