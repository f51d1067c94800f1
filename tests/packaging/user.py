"""A program of a user, which mypy --strict and pyright check against what is installed; nothing runs it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import bnmonitor
from bnmonitor import Alert, BatchNormMonitor, Finding, Incident, Monitor, Rule, Severity, all_rules, remedies
from bnmonitor.notify import Webhook
from bnmonitor.sinks import Console, JsonLines, Sink


def chat(alert: Alert) -> None:
    """Send an alert somewhere."""
    incident: Incident | None = alert.incident
    print(alert.code, alert.layer, alert.channels[:3], incident.cause if incident else "")


def train(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> list[str]:
    """Train under watch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sinks: list[Sink] = [Console(verbosity="quiet"), JsonLines("alerts.jsonl")]
    with Monitor(
        model,
        optimizer=optimizer,
        log_dir="runs/first",
        sinks=sinks,
        on_alert={"error": ["warn", chat], "warning": "log"},
        rules={"small-batch": {"warn_below": 8}},
    ) as monitor:
        for x, y in batches:
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            monitor.step(loss=loss)
        with monitor.evaluation(), torch.no_grad():
            model(batches[0][0])
        if monitor.should_stop:
            print("stopped")
    variances: Tensor = monitor.history("1", "batch_var")
    print(variances.shape, monitor.summary())
    return [incident.title for incident in monitor.incidents if incident.severity is Severity.ERROR]


def callback() -> BatchNormMonitor:
    """Make the callback."""
    return BatchNormMonitor(on_alert=Webhook(url="https://example.org/hook"), ignore=("leaking-freeze",))


def repair(model: nn.Module, loader: list[Tensor]) -> tuple[str, ...]:
    """Repair a model."""
    remedies.recalibrate(model, loader)
    remedies.set_momentum(model, momentum=0.1)
    return tuple(remedies.freeze(model, include=["backbone.*"]))


def read(path: Path) -> list[Incident]:
    """Read recorded runs."""
    runs = bnmonitor.open(path)
    return [incident for name in runs for incident in runs[name].incidents]


def codes(rules: list[Rule], findings: list[Finding]) -> dict[str, int]:
    """Count."""
    return {rule.code: len(findings) for rule in rules or all_rules()}
