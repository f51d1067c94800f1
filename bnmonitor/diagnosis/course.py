"""What the loss and the statistics have done since a step, in words."""

from __future__ import annotations

import math

from bnmonitor._text import number
from bnmonitor.measures import loss_level
from bnmonitor.window import Window

LEVEL = 10
"""Steps over which the median of the loss is its level."""

NO_BETTER = 0.9
"""Share of its first level above which a loss counts as no better than at the start."""


def loss_is_back(window: Window) -> bool | None:
    """Return whether the loss is better than at its start; None where it is unknown or the training is too young."""
    level, start = loss_level(window, LEVEL), window.facts.loss_start
    if level != level or start != start or len(window) < 2 * LEVEL:
        return None
    return level < start - (1 - NO_BETTER) * abs(start)


def loss_course(window: Window) -> str:
    """Describe where the loss came from and where it is: ``loss 2.3 → 8.1e+05``; empty where it is unknown."""
    level, start, best = loss_level(window, LEVEL), window.facts.loss_start, window.facts.loss_best
    known = [value for value in (start, best) if math.isfinite(value)]
    if level != level or not known:
        return ""
    now = window.facts.losses[-1]
    shown = now if now != now else level
    return f"loss {number(min(known))} → {number(shown)}"


def growth(window: Window, since: int) -> str:
    """Describe how far variances and gammas have grown since a step: ``batch variance ×2.1e+04 and γ ×31 in 30 steps``.

    Args:
        window: The steps.
        since: The step; if the window does not reach back to it, the first of the window.
    """
    steps = list(window.steps)
    begin = max(0, steps.index(since) - 1) if since in steps else 0
    if begin >= len(steps) - 1:
        return ""
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
