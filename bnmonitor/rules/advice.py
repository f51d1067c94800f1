"""Advice that several rules share."""

from __future__ import annotations

from bnmonitor._text import number
from bnmonitor.measures import rise
from bnmonitor.window import Window


def retreat(window: Window, step: int, otherwise: str) -> str:
    """Advise to undo a rise of the learning rate if one came shortly before a step, else give other advice."""
    raised = rise(window, step + 1)
    if raised is None:
        return otherwise
    low = number(window.facts.learning_rates[window.steps.index(raised) - 1])
    return f"go back to a learning rate of {low}"
