"""Where the learning rate was raised at once."""

from __future__ import annotations

from bnmonitor.window import Window

SUDDEN = 4.0
"""A learning rate that is so many times that of the step before was raised at once: no schedule climbs like that."""

SOON = 20
"""Steps after such a rise within which it may be behind a NaN."""


def rises(window: Window) -> list[int]:
    """The steps of the window at which the learning rate was raised at once."""
    rates = window.facts.learning_rates
    if len(rates) != len(window):
        return []
    return [window.steps[i] for i in range(1, len(rates)) if rates[i] >= SUDDEN * rates[i - 1] > 0]


def rise(window: Window, step: int) -> int | None:
    """The latest such step shortly before a step; None: there is none."""
    return max((raised for raised in rises(window) if step - SOON <= raised < step), default=None)
