"""BN002: a sink raised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnmonitor.rules.base import Finding, MonitorFault


@dataclass(frozen=True, kw_only=True)
class SinkError(MonitorFault):
    """A sink raised an exception; it is switched off, and training goes on.

    ## What it does
    Reports the exception of a sink (the console, TensorBoard, a file, your own), or of the function given as
    ``on_alert``, once. It is not called again; all others are.

    ## Why is this bad?
    From this step on, the sink shows and keeps nothing. Alerts are still in ``monitor.alerts``.

    ## Example
    >>> finding = SinkError.report("sink TensorBoard", OSError(28, "No space left on device"), step=7)
    >>> print(finding.message)
    sink TensorBoard raised OSError: [Errno 28] No space left on device

    The engine makes this finding; a check of a window never does:

    >>> from bnmonitor.testing import make_window
    >>> SinkError().check(make_window())
    []

    ## What to do
    Look at the exception: a full disk, a directory that was removed, a logger that was closed early.
    """

    code: ClassVar[str] = "BN002"
    name: ClassVar[str] = "sink-error"

    @classmethod
    def report(cls, who: str, error: Exception, step: int) -> Finding:
        """Return the finding about a sink, or another function of the user, that raised."""
        advice = "it is not called again and training goes on; the exception says why: a full disk, a closed logger"
        return cls.raised(who, error, step, advice)
