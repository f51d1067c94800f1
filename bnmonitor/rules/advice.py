"""Advice that several rules give."""

from __future__ import annotations

from bnmonitor._text import number
from bnmonitor.measures import rise
from bnmonitor.window import Window


def retreat(window: Window, step: int, otherwise: str) -> str:
    """What to do first about what began at a step: take back such a rise if it was just before, else something else."""
    raised = rise(window, step + 1)
    if raised is None:
        return otherwise
    low = number(window.facts.learning_rates[window.steps.index(raised) - 1])
    return f"go back to a learning rate of {low}"
