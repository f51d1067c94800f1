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
