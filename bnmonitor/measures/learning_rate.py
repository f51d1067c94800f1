"""Finds steps at which the learning rate was raised at once."""

from __future__ import annotations

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
