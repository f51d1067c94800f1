"""Rules that find nothing and keep every window that they are to judge."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from bnmonitor import Finding, Monitor, Rule, Severity
from bnmonitor.rules.base import Moment
from bnmonitor.window import Window


@dataclass(frozen=True, kw_only=True)
class Windows(Rule):
    """Keeps the windows of all checks."""

    code: ClassVar[str] = "XY901"
    name: ClassVar[str] = "windows"
    severity: ClassVar[Severity] = Severity.INFO
    seen: list[Window] = field(default_factory=list, repr=False)

    def check(self, window: Window) -> list[Finding]:
        self.seen.append(window)
        return []

    @property
    def last_step(self) -> int:
        """The newest step that was judged; -1 before the first."""
        return self.seen[-1].steps[-1] if self.seen else -1


@dataclass(frozen=True, kw_only=True)
class EvaluationWindows(Windows):
    """Keeps the windows that evaluations begin with."""

    code: ClassVar[str] = "XY902"
    name: ClassVar[str] = "evaluation-windows"
    moment: ClassVar[Moment] = "evaluation"


def window_of(monitor: Monitor) -> Window:
    """The window of a monitor that has recorded a step."""
    window = monitor.window()
    assert window is not None
    return window
