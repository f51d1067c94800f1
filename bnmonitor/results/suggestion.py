"""A learning rate for the next training, from the record of one: what is known, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bnmonitor._text import count, number
from bnmonitor.results.advice import advised_rate
from bnmonitor.results.incidents import Incident

SOON = 20
"""Steps after a rate within which it may be the cause of an incident that begins."""

LEAST = 3
"""Logged steps at a rate, or above it, from which on it counts as one at which the statistics stayed calm."""


@dataclass(frozen=True, kw_only=True)
class RateSuggestion:
    """What a record says of the learning rate; at least one of the two rates is known.

    Attributes:
        advised: What the newest incident about the learning rate derived; None if none did.
        calm: The largest rate at which no incident was open, nor began soon after; None if there was none.
        steps: At how many steps of the record the rate was that large, or larger, and calm.
    """

    advised: float | None
    calm: float | None
    steps: int

    @property
    def rate(self) -> float:
        """The smaller one of the rates that are known."""
        return min(rate for rate in (self.advised, self.calm) if rate is not None)

    def __str__(self) -> str:
        parts = [] if self.advised is None else [f"the incident derived {number(self.advised)}"]
        if self.calm is not None:
            parts.append(f"statistics stayed calm up to {number(self.calm)} ({count(self.steps, 'recorded step')})")
        else:
            parts.append("no calm rate is known")
        return f"learning rate {number(self.rate)}: {'; '.join(parts)}"


def suggest_rate(steps: Sequence[int], rates: Sequence[float], incidents: Iterable[Incident]) -> RateSuggestion | None:
    """Return a learning rate for the next training; None if the record holds neither a calm rate nor an advice.

    A rate counts as calm at a step if no incident was open there, and none began within :data:`SOON` steps after it.
    The record says nothing of rates that are larger than any it has seen.

    Args:
        steps: Numbers of the recorded steps, in their order.
        rates: The largest learning rate of all parameter groups at each; NaN where it is unknown.
        incidents: The incidents of the training.
    """
    every = list(incidents)
    spans = [(i.first_step - SOON, math.inf if i.state == "open" else i.last_step) for i in every]
    last = steps[-1] if len(steps) else 0
    calm = [
        rate
        for step, rate in zip(steps, rates, strict=True)
        if rate > 0
        and math.isfinite(rate)
        and step <= last - SOON
        and not any(first <= step <= end for first, end in spans)
    ]
    calm.sort(reverse=True)
    advised = None
    for incident in sorted(every, key=lambda i: i.first_step, reverse=True):
        there = [rate for step, rate in zip(steps, rates, strict=True) if step >= incident.first_step]
        advised = advised_rate(incident.advice, there[0] if there else math.nan)
        if advised is not None:
            break
    largest = calm[LEAST - 1] if len(calm) >= LEAST else None
    if advised is None and largest is None:
        return None
    return RateSuggestion(advised=advised, calm=largest, steps=sum(rate >= (largest or math.inf) for rate in calm))
