"""BN003: the training went back to an earlier state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor.results import ROLLED_BACK
from bnmonitor.rules.base import Finding, MonitorFault, Severity


@dataclass(frozen=True, kw_only=True)
class RolledBack(MonitorFault):
    """The training went back to its last calm state, because ``on_alert="rollback"`` asked for it.

    ## What it does
    Writes down each time that weights, optimizer and statistics were set back: to which step, for which incident, and
    at which learning rate training goes on. Also writes down if there was nothing to go back to, or if the run has gone
    back as often as it may.

    ## Why is this bad?
    It is not: it is a note. But the curves before and after it are those of two trainings, and the rate is no longer
    the one that you set. A run that needs it should be started anew with the lower rate.

    ## Example
    >>> finding = RolledBack.report("the weights are those after step 64 again, learning rate 3 → 0.1", "", 0.03, 90)
    >>> print(finding.message)
    the weights are those after step 64 again, learning rate 3 → 0.1

    The engine makes this finding; a check of a window never does:

    >>> from bnmonitor.testing import make_window
    >>> RolledBack().check(make_window())
    []

    ## What to do
    Read the incident that it names. ``run.suggest_lr()`` gives the rate for the next training.
    """

    code: ClassVar[str] = ROLLED_BACK
    name: ClassVar[str] = "rolled-back"
    severity: ClassVar[Severity] = Severity.INFO

    @classmethod
    def report(cls, message: str, advice: str, factor: float, step: int) -> Finding:
        """Return the finding that the training went back.

        Args:
            message: Where to, and why.
            advice: What a person should do.
            factor: What the learning rates were multiplied with.
            step: The step at which it happened.
        """
        return Finding(
            severity=cls.severity,
            layer=None,
            first_step=step,
            value=factor,
            threshold=1.0,
            message=message,
            advice=advice,
        )
