"""A callback that was used: it can be pickled and spawned, and used in a fit within its own fit."""

from __future__ import annotations

import pickle
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bnmonitor import BatchNormMonitor
from bnmonitor.sinks import Console, Loggers, Sink, TensorBoard


class Small(pl.LightningModule):
    def __init__(self, inner: Any = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
        self._inner = [inner]

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        if index == 2 and self._inner[0] is not None:
            self._inner[0]()
        loss: Tensor = self.net(batch[0]).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(callback: BatchNormMonitor, module: Small, folder: Path, **keywords: Any) -> None:
    loader = DataLoader(TensorDataset(torch.ones(24, 4)), batch_size=4)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    settings = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "default_root_dir": folder, **quiet, **keywords}
    pl.Trainer(callbacks=[callback], **settings).fit(module, loader)


@pytest.mark.parametrize("sinks", ["none", "default", "given"])
def test_a_used_callback_pickles_with_its_alerts_and_can_be_used_again(sinks: str, tmp_path: Path) -> None:
    given: dict[str, list[Sink] | None] = {
        "none": [],
        "default": None,
        "given": [Console(), TensorBoard(tmp_path / "history"), Loggers()],
    }
    callback = BatchNormMonitor(sinks=given[sinks], on_alert="log")
    fit(callback, Small(), tmp_path)
    copy = pickle.loads(pickle.dumps(callback))
    assert copy.alerts == callback.alerts
    assert {alert.code for alert in copy.alerts} >= {"BN201"}
    fit(copy, Small(), tmp_path)
    assert (copy.monitor.steps, copy.monitor.failure) == (tuple(range(6)), "")


@pytest.mark.parametrize("fails", [False, True])
def test_a_fit_within_a_fit_has_a_record_of_its_own(fails: bool, tmp_path: Path) -> None:
    callback = BatchNormMonitor(sinks=[], on_alert="log")

    def divide() -> None:
        raise ZeroDivisionError

    def within() -> None:
        with pytest.raises(ZeroDivisionError) if fails else nullcontext():
            fit(callback, Small(divide if fails else None), tmp_path)

    outer = Small(within)
    fit(callback, outer, tmp_path)
    assert callback.monitor.steps == tuple(range(6))
    assert callback.monitor.failure == ""
    assert [m for m in outer.modules() if m._forward_hooks or m._forward_pre_hooks] == []
