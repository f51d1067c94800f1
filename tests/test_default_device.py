"""A default device that the user has set is not bnmonitor's, which computes on the CPU what it has copied there."""

from __future__ import annotations

import ast
from pathlib import Path

import torch
from torch import nn

import bnmonitor
from bnmonitor import Monitor

_MAKERS = {"arange", "as_tensor", "empty", "eye", "full", "linspace", "ones", "rand", "randn", "tensor", "zeros"}
_BESIDE_TRAININGS = ("audit", "cli", "testing")
"""Rooms that no training runs through."""


def test_every_tensor_that_is_made_says_where() -> None:
    root = Path(bnmonitor.__file__).parent
    found = [
        f"{path.relative_to(root)}:{node.lineno}"
        for path in sorted(root.rglob("*.py"))
        if path.relative_to(root).parts[0] not in _BESIDE_TRAININGS
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in {f"torch.{name}" for name in _MAKERS}
        and not any(keyword.arg == "device" for keyword in node.keywords)
    ]
    assert not found, "write device=..., as another default device may be set"


def test_a_training_is_judged_under_another_default_device() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Monitor(model, optimizer=optimizer, sinks=[], on_alert="log") as monitor:
        for i in range(40):
            x = torch.randn(16, 4) * (100 if i >= 30 else 1)
            optimizer.zero_grad()
            loss = (model(x) - x.repeat(1, 2)).square().mean()
            loss.backward()
            optimizer.step()
            with torch.device("meta"):  # as a wrong device would be
                monitor.step(loss=loss)
    assert not monitor.failure
    assert [alert.code for alert in monitor.alerts if alert.code.startswith("BN0")] == []
    assert any(incident.cause == "changed-input" for incident in monitor.incidents)
