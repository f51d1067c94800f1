"""The learning rate that an advice names: what incidents derive is kept as their text, in memory and in histories."""

from __future__ import annotations

import re

_NAMED = re.compile(r"(?:lower the|go back to a) learning rate (?:of|to) (?:about )?(\d[\d.]*(?:e[-+]?\d+)?)")
_PART = re.compile(r"lower the learning rate to a (third|tenth)")
_PARTS = {"third": 1 / 3, "tenth": 0.1}


def advised_rate(advice: str, rate: float) -> float | None:
    """Return the learning rate that an advice names; None if it names none, or none below the one in force.

    Args:
        advice: The advice of an alert or of an incident.
        rate: The learning rate in force, which an advice may name a part of; NaN if it is unknown.

    >>> advised_rate("lower the learning rate to about 0.05, or clip gradients", 3.0)
    0.05
    >>> advised_rate("go back to a learning rate of 1e-04, or raise it step by step", 0.1)
    0.0001
    >>> advised_rate("lower the learning rate to a tenth, or clip gradients", 0.5)
    0.05
    >>> advised_rate("use a larger batch", 0.5)
    """
    named, part = _NAMED.search(advice), _PART.search(advice)
    if named is not None:
        advised = float(named[1].rstrip("."))
    elif part is not None and rate == rate:
        advised = rate * _PARTS[part[1]]
    else:
        return None
    return advised if advised > 0 and not advised >= rate else None
