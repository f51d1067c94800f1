"""BN001: a rule raised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class RuleError(Rule):
    """A rule raised an exception; it is switched off, and training goes on.

    ## What it does
    Reports the exception of a rule once. The rule is not run again in this monitor; all others are.

    ## Why is this bad?
    What the rule watches for is no longer watched.

    ## Example
    >>> finding = RuleError.report("BN900", ZeroDivisionError("division by zero"), step=7)
    >>> print(finding.message)
    rule BN900 raised ZeroDivisionError: division by zero

    It has nothing to say of a window:

    >>> from bnmonitor.testing import make_window
    >>> RuleError().check(make_window())
    []

    ## What to do
    Mend the rule if it is yours; report it if it is ours. ``ignore=("BN900",)`` leaves it out from the start.
    """

    code: ClassVar[str] = "BN001"
    name: ClassVar[str] = "rule-error"
    severity: ClassVar[Severity] = Severity.WARNING

    def check(self, window: Window) -> list[Finding]:
        """Find nothing: the engine makes these findings, with :meth:`report`."""
        return []

    @classmethod
    def report(cls, rule: str, error: Exception, step: int) -> Finding:
        """Make the finding for a rule that raised."""
        return Finding(
            severity=cls.severity,
            layer=None,
            first_step=step,
            value=1.0,
            threshold=0.0,
            message=f"rule {rule} raised {type(error).__name__}: {error}",
            advice=f"the rule is switched off and training goes on; leave it out with ignore=({rule!r},)",
        )
