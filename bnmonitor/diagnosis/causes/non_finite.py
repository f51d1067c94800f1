"""The cause ``non-finite-statistics``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor.diagnosis.base import Case, Cause
from bnmonitor.diagnosis.course import repair

EFFECTS = frozenset({"BN1", "BN303", "BN304", "BN305", "BN405", "BN6", "BN701", "BN702", "BN704", "BN706", "BN707"})
"""What follows from a NaN: whatever is judged by numbers."""


@dataclass(frozen=True, kw_only=True)
class NonFinite(Cause):
    """A NaN or an infinity began within the network.

    ## What it is
    The weights or the statistics of one layer are not finite. Neither the data nor half precision nor the learning rate
    explains it.

    ## What follows
    Every layer after it is NaN in the same step, and after one optimizer step the whole network.

    ## What to do
    Look at the layer that the incident names. If only the running statistics are NaN,
    ``bnmonitor.remedies.restore_last_finite(model, monitor)`` sets them back; if the weights are too, go back to the
    newest checkpoint in which they are finite.

    ## Example
    Wrong::

        x = x / x.norm(dim=1, keepdim=True)  # 0 / 0 for an empty sample

    Right::

        x = x / x.norm(dim=1, keepdim=True).clamp(min=1e-6)

        # afterwards, if the weights are finite:
        bnmonitor.remedies.restore_last_finite(model, monitor)

    A window of such a training:

    >>> from bnmonitor.testing import diagnose, make_window
    >>> [incident] = diagnose(make_window(running_var=[1.0, float("inf"), 1.0]))
    >>> incident.cause, str(incident.severity)
    ('non-finite-statistics', 'error')
    """

    name: ClassVar[str] = "non-finite-statistics"
    leads: ClassVar[tuple[str, ...]] = ("BN101",)
    explains: ClassVar[frozenset[str]] = EFFECTS

    def advice(self, case: Case) -> str:
        """Say whether the weights are finite, and how to go on."""
        return repair(case.window, case.lead.advice)

    def lasts(self, case: Case) -> bool:
        """Whether the training is lost."""
        return case.lost
