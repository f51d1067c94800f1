"""A fit in spawned processes: the callback in the main process knows what the first of them has seen."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bnmonitor import BatchNormMonitor
from bnmonitor.lightning.mailbox import Mailbox
from tests.lightning.test_pickling import Small

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not dist.is_gloo_available(), reason="spawns processes that talk over gloo"
)


class Ill(Small):
    """Its loss is NaN at one step, or that step fails."""

    def __init__(self, at: int, *, fails: bool = False) -> None:
        super().__init__()
        self._at, self._fails = at, fails

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        if index == self._at and self._fails:
            raise ZeroDivisionError("on purpose")
        return super().training_step(batch, index) * (torch.nan if index == self._at else 1)


class Witness(pl.Callback):
    """Writes what the monitor of the first process knows at the end."""

    def __init__(self, monitor: BatchNormMonitor, path: Path) -> None:
        self._monitor, self._path = monitor, path

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if trainer.is_global_zero:
            monitor = self._monitor.monitor
            torch.save((monitor.alerts, monitor.steps, monitor.history("net.1", "batch_mean")), self._path)


def fit(callback: BatchNormMonitor, module: nn.Module, folder: Path, *more: pl.Callback, devices: int = 2) -> None:
    loader = DataLoader(TensorDataset(torch.randn(40 * devices, 4)), batch_size=4)
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = pl.Trainer(
        callbacks=[callback, *more],
        max_epochs=1,
        accelerator="cpu",
        strategy="ddp_spawn",
        devices=devices,
        default_root_dir=folder,
        enable_checkpointing=False,
        **quiet,
    )
    trainer.fit(module, loader)  # type: ignore[arg-type]


def left() -> list[Path]:
    folder = Path(os.environ.get("TMPDIR", "/tmp"))
    return [*folder.glob("bnmonitor-*")]


def test_the_main_process_has_the_alerts_and_the_record_of_the_first_process(tmp_path: Path) -> None:
    before = left()
    callback = BatchNormMonitor(sinks=[], include=("net.*",))
    fit(callback, Ill(6), tmp_path, Witness(callback, tmp_path / "seen.pt"))
    alerts, steps, means = torch.load(tmp_path / "seen.pt", weights_only=False)
    assert "BN101" in {alert.code for alert in alerts}
    assert callback.alerts == alerts
    assert (callback.monitor.alerts, callback.monitor.steps) == (alerts, steps)
    assert torch.equal(callback.monitor.history("net.1", "batch_mean").nan_to_num(7), means.nan_to_num(7))
    assert len(callback.monitor.summary().rows) == 1
    assert pickle.loads(pickle.dumps(callback)).alerts == alerts
    assert left() == before


def test_a_fit_that_fails_reports_what_was_seen_before(tmp_path: Path) -> None:
    callback = BatchNormMonitor(sinks=[], check_every_n_steps=1)
    with pytest.raises(torch.multiprocessing.ProcessRaisedException, match="on purpose"):
        fit(callback, Ill(3, fails=True), tmp_path, devices=1)
    assert "BN201" in {alert.code for alert in callback.alerts}
    assert callback.monitor.steps == (0, 1, 2)


def send(mailbox: Mailbox, content: object) -> None:
    assert mailbox.is_away
    assert mailbox.receive() is None, "only the owner receives"
    mailbox.send(content)


def test_a_mailbox_belongs_to_the_process_that_made_it() -> None:
    mailbox = Mailbox()
    assert not mailbox.is_away
    assert mailbox.receive() is None
    for content in ("first", "second"):
        process = multiprocessing.get_context("spawn").Process(target=send, args=(mailbox, content))
        process.start()
        process.join(120)
        assert process.exitcode == 0
    path = mailbox._path
    assert path.stat().st_mode & 0o777 == 0o600
    assert (mailbox.receive(), mailbox.receive()) == ("second", None)
    path.write_bytes(b"late")
    del mailbox
    assert not path.exists()
