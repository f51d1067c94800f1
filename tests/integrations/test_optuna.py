"""Trials that are ill are pruned: with Optuna where it is installed, else with what stands for it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from bnmonitor import BatchNormMonitor, Monitor
from tests.watching import diverging


class Trial:
    """A trial that keeps its attributes."""

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}

    def set_user_attr(self, name: str, value: Any) -> None:
        self.attributes[name] = value


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    try:
        importlib.import_module("optuna")
    except ImportError:
        stand_in = ModuleType("optuna")
        stand_in.TrialPruned = type("TrialPruned", (Exception,), {})  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "optuna", stand_in)
    yield importlib.import_module("bnmonitor.integrations.optuna")
    sys.modules.pop("bnmonitor.integrations.optuna")


def trained(rate: float) -> Monitor:
    return diverging([], steps=30, rate=rate)


def test_a_loop_of_its_own(adapter: Any) -> None:
    sound, ill = Trial(), Trial()
    adapter.PruneIll(sound).check(trained(0.05))
    assert sound.attributes == {}
    with pytest.raises(adapter.optuna.TrialPruned, match="learning rate 500 is too high"):
        adapter.PruneIll(ill).check(trained(500.0))
    assert ill.attributes == {
        "bn_incident": "learning-rate-too-high",
        "bn_layer": "1",
        "bn_since": 0,
        "bn_health": 20.0,
    }


def test_lightning_is_pruned_at_the_batch(adapter: Any) -> None:
    import pytorch_lightning as pl

    class Module(pl.LightningModule):
        def __init__(self, rate: float) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8))
            self.rate = rate

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), (batch[0][:, 0] > 0).long())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=self.rate)

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(1280, 8)), 32)

    def fit(rate: float, *callbacks: Any) -> int:
        pl.seed_everything(0, verbose=False)
        quiet: dict[str, Any] = dict.fromkeys(
            ["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False
        )
        trainer = pl.Trainer(max_epochs=1, accelerator="cpu", callbacks=[*callbacks], **quiet)
        try:
            trainer.fit(Module(rate), loader)
        except adapter.optuna.TrialPruned:
            return -trainer.global_step
        return trainer.global_step

    assert fit(0.05, BatchNormMonitor(sinks=[]), adapter.PruneIll(Trial())) == 40
    assert -40 < fit(500.0, BatchNormMonitor(sinks=[], on_alert="log"), adapter.PruneIll(Trial())) < 0
    with pytest.raises(ValueError, match="PruneIll needs a BatchNormMonitor"):
        fit(0.05, adapter.PruneIll(Trial()))


def test_what_is_not_accepted_is_said(adapter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"level must be 'warning' or 'error', got 'eror'; did you mean 'error'"):
        adapter.PruneIll(SimpleNamespace(), level="eror")
    sys.modules.pop("bnmonitor.integrations.optuna")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"bnmonitor.integrations.optuna needs Optuna: pip install optuna"):
        importlib.import_module("bnmonitor.integrations.optuna")
    sys.modules["bnmonitor.integrations.optuna"] = adapter
