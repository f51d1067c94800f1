"""Rules that find nothing and keep every window that they are to judge, and a training that goes wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from bnmonitor import Finding, Monitor, Rule, Severity
from bnmonitor.rules.base import Moment
from bnmonitor.sinks import Sink
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


def diverging(sinks: Sequence[Sink] | None, log_dir: Path | None = None, *, steps: int, rate: float = 30.0) -> Monitor:
    """Train two layers, ``1`` and ``4``, at a rate that is far too high by default, and return the monitor."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(),
        nn.Linear(16, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), rate)
    options: dict[str, Any] = {"log_dir": log_dir, "on_alert": "log", "log_every_n_steps": 10}
    with Monitor(model, optimizer=optimizer, sinks=sinks, **options) as monitor:
        for _ in range(steps):
            x = torch.randn(32, 8)
            loss = nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(loss=loss)
    return monitor
