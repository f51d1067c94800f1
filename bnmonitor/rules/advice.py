"""Advice that several rules share."""

from __future__ import annotations

import math

from bnmonitor._text import number
from bnmonitor.measures import rise
from bnmonitor.window import Window

EARLY = 20
"""Step up to which a training has hardly saved anything to go back to, nor much to lose."""


def restart(step: int) -> str:
    """Advise where to go on from, after what began at a step has done lasting damage.

    >>> restart(0), restart(500)
    ('start again', 'go back to a checkpoint from before step 500')
    """
    return "start again" if step <= EARLY else f"go back to a checkpoint from before step {step}"


def retreat(window: Window, step: int, otherwise: str) -> str:
    """Advise to undo a rise of the learning rate if one came shortly before a step, else give other advice."""
    raised = rise(window, step + 1)
    if raised is None:
        return otherwise
    low = number(window.facts.learning_rates[window.steps.index(raised) - 1])
    return f"go back to a learning rate of {low}"


def slower(rate: float, moved: float, before: float) -> str:
    """Advise a learning rate: the one before it was raised, or one at which gamma moves by about half its scale.

    Args:
        rate: The learning rate in force; NaN where unknown.
        moved: How far gamma moved, relative to its scale.
        before: The learning rate before it was raised at once; 0 if it was not.
    """
    clip = "or clip gradients: Trainer(gradient_clip_val=1.0)"
    if before > 0:
        return f"go back to a learning rate of {number(before)}, {clip}"
    if not rate > 0:
        return f"lower the learning rate to a tenth, {clip}"
    lower = rate * min(1 / 3, max(0.01, 0.5 / moved))
    digit = 10.0 ** math.floor(math.log10(lower))
    leading = max(each for each in (1, 2, 5) if each <= max(1.0, lower / digit))
    return f"lower the learning rate to about {number(leading * digit)}, {clip}"
