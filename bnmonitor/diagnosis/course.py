"""What the loss and the statistics have done since a step, in words."""

from __future__ import annotations

import math

from bnmonitor._text import number
from bnmonitor.measures import loss_level, with_affine
from bnmonitor.window import Window

LEVEL = 10
"""Steps over which the median of the loss is its level."""

NO_BETTER = 0.9
"""Share of its start above which a loss counts as no better than at the start."""

BACK = 0.5
"""Share of its start below which a loss that never fell before counts as having come back."""

YOUNG = 50
"""Steps before which the loss has hardly fallen."""


def loss_is_back(window: Window, since: int, share: float = BACK) -> bool | None:
    """Return whether the loss is as good as it should be; None where it is unknown or the training is too young.

    If the loss had fallen before the incident began, it has to come back half of that way; else it has to fall below a
    share of its start.

    Args:
        window: The steps.
        since: The step at which the incident began.
        share: The share of its start.
    """
    level, start, best = loss_level(window, LEVEL), window.facts.loss_start, window.facts.loss_best
    if level != level or start != start or len(window) < 2 * LEVEL:
        return None
    if since > YOUNG and best < start:
        return level < (start + best) / 2
    return level < start - (1 - share) * abs(start)


def loss_course(window: Window, since: int) -> str:
    """Describe where the loss came from and where it is: ``loss 2.3 → 8.1e+05``; empty where it is unknown.

    Args:
        window: The steps.
        since: The step at which the incident began.
    """
    level, start, best = loss_level(window, LEVEL), window.facts.loss_start, window.facts.loss_best
    origin = best if since > YOUNG and math.isfinite(best) else start
    if not window.facts.known_losses or not math.isfinite(origin):
        return ""
    now = window.facts.known_losses[-1]
    return f"loss {number(origin)} → {number(now if now != now else level)}"


def weights_are_lost(window: Window) -> bool | None:
    """Return whether weights are not finite, by gamma, beta and the loss; None where nothing is known of them."""
    window = with_affine(window)
    now = [window.gamma[-1], window.beta[-1]]
    if any(
        bool(each.isnan().any()) and bool(before.isfinite().all())
        for each, before in zip(now, (window.gamma[0], window.beta[0]), strict=True)
    ):
        return True
    if window.facts.known_losses:
        return not math.isfinite(window.facts.known_losses[-1])
    # What is split over the processes was told some steps ago.
    return None if window.layers.split or bool(now[0].isnan().all()) else False


def repair(window: Window | None, otherwise: str) -> str:
    """Advise how to go on after a NaN: by the running statistics alone, or by a checkpoint."""
    lost = None if window is None else weights_are_lost(window)
    if lost is None:
        return otherwise
    if lost:
        return "the weights are NaN too: go back to the newest checkpoint in which they are finite, and clip gradients"
    return (
        "the weights are finite: set the running statistics back with "
        "bnmonitor.remedies.restore_last_finite(model, monitor), and keep such batches out"
    )


def growth(window: Window, since: int) -> str:
    """Describe how far variances and gammas have grown since a step: ``batch variance ×2.1e+04 and γ ×31 in 30 steps``.

    Args:
        window: The steps.
        since: The step; if the window does not reach back to it, nothing is known.
    """
    steps = list(window.steps)
    if since not in steps or since == steps[-1]:
        return ""
    begin = max(0, steps.index(since) - 1)
    found = []
    variance = window.variance[begin:]
    finite = variance.isfinite().all(1)
    if int(finite.sum()) > 1:
        known = variance[finite]
        ratio = float((known[-1] / known[0].clamp(min=1e-12)).nan_to_num(0.0).max())
        if ratio >= 2:
            found.append(f"batch variance ×{number(ratio)}")
    gamma = window.gamma[begin:].abs()
    rows = gamma.isfinite().all(1)
    if int(rows.sum()) > 1 and gamma.shape[1]:
        kept = gamma[rows]
        ratio = float(kept[-1].max() / kept[0].max().clamp(min=1e-12))
        if ratio >= 1.5:
            found.append(f"γ ×{number(ratio)}")
    count = steps[-1] - steps[begin]
    return f"{' and '.join(found)} in {count} steps" if found else ""
