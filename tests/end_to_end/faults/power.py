"""How often a fault must be found, from how far beyond its threshold the injected value lies.

A rule that compares a noisy value with a threshold finds a fault whose value lies ``z`` times its noise beyond the
threshold with probability ``Φ(z)`` in a single look; a training is looked at several times, so that this is a bound
from below. Trainings with other seeds are independent, so the number that is found is at least a sum of independent
draws with ``p_i = Φ(z_i)``, which is ``Binomial(n, p)`` where all are equal. The number that must be found is the
largest ``k`` with ``P(found < k) <= RISK``. Without noise it is every one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

RISK = 1e-4
"""Probability that a rule with the power it states finds fewer."""


@dataclass(frozen=True)
class Effect:
    """How strong an injected fault is, measured by the injection itself.

    Attributes:
        value: What the fault made of the value that its rule judges.
        threshold: What the rule compares it with.
        noise: Standard deviation of the value in one look, in the same unit as these two.
    """

    value: float
    threshold: float
    noise: float

    @property
    def sigmas(self) -> float:
        """How many times its noise the value lies above the threshold."""
        return (self.value - self.threshold) / self.noise if self.noise else math.inf

    @classmethod
    def of_logs(cls, value: float, threshold: float, noise: float) -> Effect:
        """An effect of positive numbers whose noise is relative."""
        return cls(math.log(value), math.log(threshold), noise)


CERTAIN = Effect(1.0, 0.0, 0.0)
"""Of a fault that has no noise, or a value so far from its threshold that noise does not matter."""


def least_found(sigmas: Sequence[float], risk: float = RISK) -> int:
    """Return how many trainings must be found at least, of those whose faults are so strong.

    Args:
        sigmas: Of each training, how many times its noise the injected value lies beyond the threshold.
        risk: Largest probability of fewer.
    """
    found = [1.0]
    for z in sigmas:
        p = 0.5 * (1 + math.erf(z / math.sqrt(2)))
        found = [a * (1 - p) + b * p for a, b in zip([*found, 0.0], [0.0, *found], strict=True)]
    fewer, least = 0.0, 0
    for count, probability in enumerate(found[:-1]):
        fewer += probability
        if fewer > risk:
            break
        least = count + 1
    return least


def wilson(found: int, of: int, z: float = 1.96) -> tuple[float, float]:
    """Return the interval of Wilson (1927) for a share, as two shares: honest for few trials and for all of them."""
    if of == 0:
        return 0.0, 1.0
    share, extra = found / of, z * z / of
    middle = (share + extra / 2) / (1 + extra)
    half = z / (1 + extra) * math.sqrt(share * (1 - share) / of + extra / (4 * of))
    return max(0.0, middle - half), min(1.0, middle + half)


def most_expected(count: int, risk: float = 0.05) -> float:
    """Return the largest number of events that is to be expected of which only so many were seen.

    That is the upper end of the one-sided exact interval of a Poisson distribution (Garwood 1936): 3.0 of none, the
    rule of three.
    """

    def at_most(mean: float) -> float:
        return sum(math.exp(-mean + i * math.log(mean) - math.lgamma(i + 1)) for i in range(count + 1))

    low, high = float(count), count + 10 * math.sqrt(count + 1) + 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if middle == 0 or at_most(middle) > risk else (low, middle)
    return high
