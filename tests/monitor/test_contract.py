"""A plain loop with the monitor keeps the contract of integrations."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import nn

from bnmonitor import Monitor
from bnmonitor.testing.contracts import IntegrationContract
from bnmonitor.testing.contracts.integrations import Batch


class TestPlainLoop(IntegrationContract):
    def fit(
        self, model: nn.Module, batches: Sequence[Batch], *, watch: bool, held_out: Sequence[Batch] = ()
    ) -> Monitor | None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        settings = {"sinks": [], "on_alert": "log", "sample_every_n_steps": 1}
        monitor = Monitor(model, optimizer=optimizer, **settings) if watch else None  # type: ignore[arg-type]
        with monitor or contextlib.nullcontext():
            for x, y in batches:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
                if monitor is not None:
                    monitor.step()
            with monitor.evaluation() if monitor is not None else contextlib.nullcontext(), torch.no_grad():
                model.eval()
                for x, _ in held_out:
                    model(x)
        return monitor
