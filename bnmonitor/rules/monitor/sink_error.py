"""BN002: a sink raised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor.results import Severity
from bnmonitor.rules.base import Finding, Rule
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class SinkError(Rule):
    """A sink raised an exception; it is switched off, and training goes on.

    ## What it does
    Reports the exception of a sink (the console, TensorBoard, a file, your own), or of the function given as
    ``on_alert``, once. It is not called again; all others are.

    ## Why is this bad?
    What the sink would have shown or kept is lost from this step on. Alerts are still in ``monitor.alerts``.

    ## Example
    >>> finding = SinkError.report("sink TensorBoard", OSError(28, "No space left on device"), step=7)
    >>> print(finding.message)
    sink TensorBoard raised OSError: [Errno 28] No space left on device

    It has nothing to say of a window:

    >>> from bnmonitor.testing import make_window
    >>> SinkError().check(make_window())
    []

    ## What to do
    Look at the exception: a full disk, a directory that went away, a logger that was closed early.
    """

    code: ClassVar[str] = "BN002"
    name: ClassVar[str] = "sink-error"
    severity: ClassVar[Severity] = Severity.WARNING

    def check(self, window: Window) -> list[Finding]:
        """Find nothing: the monitor makes these findings, with :meth:`report`."""
        return []

    @classmethod
    def report(cls, who: str, error: Exception, step: int) -> Finding:
        """Make the finding for a sink, or another function of the user's, that raised."""
        return Finding(
            severity=cls.severity,
            layer=None,
            first_step=step,
            value=1.0,
            threshold=0.0,
            message=f"{who} raised {type(error).__name__}: {error}",
            advice="it is not called again and training goes on; the exception says why: a full disk, a closed logger",
        )
