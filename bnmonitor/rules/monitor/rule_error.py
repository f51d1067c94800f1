"""BN001: a rule raised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor.rules.base import Finding, MonitorFault


@dataclass(frozen=True, kw_only=True)
class RuleError(MonitorFault):
    """A rule raised an exception; it is switched off, and training goes on.

    ## What it does
    Reports the exception of a rule once. The rule is not run again in this monitor; all others are.

    ## Why is this bad?
    The fault that the rule looks for is not detected any more.

    ## Example
    >>> finding = RuleError.report("BN900", ZeroDivisionError("division by zero"), step=7)
    >>> print(finding.message)
    rule BN900 raised ZeroDivisionError: division by zero

    The engine makes this finding; a check of a window never does:

    >>> from bnmonitor.testing import make_window
    >>> RuleError().check(make_window())
    []

    ## What to do
    Fix the rule if it is yours; report it if it is one of bnmonitor's. ``ignore=("BN900",)`` leaves it out from the
    start.
    """

    code: ClassVar[str] = "BN001"
    name: ClassVar[str] = "rule-error"

    @classmethod
    def report(cls, rule: str, error: Exception, step: int) -> Finding:
        """Return the finding about a rule that raised."""
        advice = f"the rule is switched off and training goes on; leave it out with ignore=({rule!r},)"
        return cls.raised(f"rule {rule}", error, step, advice)
