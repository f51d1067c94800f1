"""Hundreds of runs in a directory, and runs that lie elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bnmonitor
from bnmonitor import BatchNormMonitor, Monitor
from bnmonitor.history.entry import ENTRY
from bnmonitor.runs import runs as module
from bnmonitor.runs.index import entries
from tests.histories import write
from tests.runs.test_monitor_views import trained


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    return place


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the event files that were read."""
    seen: list[str] = []
    source = module.Files

    def spy(path: Path, files: Any) -> Any:
        seen.extend(name for name, _ in files)
        return source(path, files)

    monkeypatch.setattr(module, "Files", spy)
    return seen


def some_runs(logs: Path, count: int = 6) -> None:
    for i in range(count):
        write(logs / f"run-{i}", ("a", "b"), range(0, 50, 5), sick=(1,) if i % 2 else (), channels=4)


def test_runs_that_have_not_changed_are_listed_without_reading_them(tmp_path: Path, read: list[str]) -> None:
    some_runs(tmp_path)
    first = repr(bnmonitor.open(tmp_path))
    assert sorted(set(read)) == [f"run-{i}" for i in range(6)]
    read.clear()
    assert repr(bnmonitor.open(tmp_path)) == first
    assert read == []
    write(tmp_path / "run-3", ("a", "b"), range(50, 100, 5), channels=4)
    write(tmp_path / "run-9", ("a",), range(0, 10, 5), channels=4)
    again = bnmonitor.open(tmp_path)
    assert "'run-3': 2 layers, last step 95" in repr(again)
    assert sorted(set(read)) == ["run-3", "run-9"]
    shutil.rmtree(tmp_path / "run-0")
    assert "run-0" not in bnmonitor.open(tmp_path)


def test_what_is_listed_is_what_the_run_says(tmp_path: Path) -> None:
    some_runs(tmp_path)
    bnmonitor.open(tmp_path)._repr_html_()
    runs = bnmonitor.open(tmp_path)
    listed = entries(tmp_path, runs._files, lambda name: pytest.fail(f"{name} was read again"))
    assert {name: each.verdict for name, each in listed.items()} == {name: run.verdict for name, run in runs.items()}
    assert all(listed[name].last_step == run.steps[-1] for name, run in runs.items())


@pytest.mark.parametrize("damage", [b"", b"{", b'{"version": 1}', b'{"version": "0", "runs": {}}', b"[]", b"\xff"])
def test_a_damaged_index_is_made_anew(tmp_path: Path, cache: Path, damage: bytes) -> None:
    some_runs(tmp_path, 2)
    said = repr(bnmonitor.open(tmp_path))
    [index] = (cache / "bnmonitor").iterdir()
    index.write_bytes(damage)
    assert repr(bnmonitor.open(tmp_path)) == said
    assert repr(bnmonitor.open(tmp_path)) == said


def test_a_single_run_is_opened_without_an_index(tmp_path: Path, cache: Path, read: list[str]) -> None:
    some_runs(tmp_path)
    runs = bnmonitor.open(tmp_path)
    assert "run-1" in runs
    assert "run-7" not in runs
    assert runs["run-1"].verdict
    assert read == ["run-1"]
    assert not list(cache.iterdir())


def test_without_a_place_for_the_index_runs_are_listed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some_runs(tmp_path / "logs", 2)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(bnmonitor.open(tmp_path / "logs")) == 2


def test_a_run_elsewhere_is_read_as_one_here(tmp_path: Path, cache: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    trained(tmp_path / "one")
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path), "/logs", recursive=True)
    here = bnmonitor.open(tmp_path)["one"]
    there = bnmonitor.open("memory://logs")["one"]
    assert there.verdict == here.verdict
    np.testing.assert_array_equal(there.loss, here.loss)
    assert not list((there.directory).rglob("*.page"))
    assert "'one': 2 layers" in repr(bnmonitor.open("memory://logs"))
    [file] = (tmp_path / "one").glob("*tfevents*")
    alone = bnmonitor.open(f"memory://logs/one/{file.name}").only
    np.testing.assert_array_equal(alone.loss, here.loss)
    assert not list(cache.iterdir())
    for got, want in zip(there.history("1", "gamma"), here.history("1", "gamma"), strict=True):
        np.testing.assert_array_equal(got, want)


def test_an_address_that_leads_nowhere_is_one_sentence() -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(FileNotFoundError, match="there is no file or directory 'memory://nothing'"):
        bnmonitor.open("memory://nothing")
    with pytest.raises(ValueError, match="foo"):
        bnmonitor.open("foo://logs")


@pytest.mark.parametrize("what", ["sound", "open", "resolved", "error"])
def test_a_run_that_has_ended_is_listed_without_reading_its_history(
    tmp_path: Path, read: list[str], cache: Path, what: str
) -> None:
    torch.manual_seed(0)
    layer = nn.BatchNorm1d(8, momentum=0.9 if what == "error" else 0.1)
    model = nn.Sequential(nn.Linear(4, 8), layer, nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Monitor(model, optimizer=optimizer, log_dir=tmp_path / "one", on_alert="log") as monitor:
        for step in range(200):
            size = 2 if what == "open" or (what == "resolved" and step < 40) else 32
            loss = model(torch.randn(size, 4)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(loss=loss)
    assert any(i.state == "open" for i in monitor.incidents) == (what in ("open", "error"))
    listed = bnmonitor.open(tmp_path)._entries()
    assert read == []
    (tmp_path / "one" / ENTRY).unlink()
    shutil.rmtree(cache)
    assert bnmonitor.open(tmp_path)._entries() == listed
    assert read == ["one"]


def test_numbers_that_others_add_at_the_end_leave_the_entry_and_those_of_bnmonitor_do_not(
    tmp_path: Path, read: list[str], cache: Path
) -> None:
    trained(tmp_path / "one")
    [file] = (tmp_path / "one").glob("*tfevents*")
    whole = file.read_bytes()
    for written, again in (
        (whole, False),
        (whole + b"a number", False),
        (whole + b"bnmonitor", True),
        (whole[:-9], True),
    ):
        file.write_bytes(written)
        read.clear()
        assert "one" in bnmonitor.open(tmp_path)._entries()
        assert bool(read) is again, written[-20:]
        shutil.rmtree(cache, ignore_errors=True)


def test_a_run_of_lightning_is_listed_without_reading_it_until_it_goes_on(tmp_path: Path, read: list[str]) -> None:
    class Net(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
            self.save_hyperparameters({"width": 8})

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = self.net(batch[0]).square().mean()
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    def fit(version: int) -> None:
        trainer = Trainer(
            max_epochs=2,
            logger=TensorBoardLogger(tmp_path, name="", version=version),
            callbacks=[BatchNormMonitor(on_alert="log")],
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=10,
        )
        trainer.fit(Net(), DataLoader(TensorDataset(torch.randn(960, 4)), batch_size=32))

    fit(0)
    assert (tmp_path / "version_0" / ENTRY).exists()
    first = bnmonitor.open(tmp_path)._entries()["version_0"]
    assert read == []
    assert first.last_step == 59
    fit(0)
    assert bnmonitor.open(tmp_path)._entries()["version_0"].last_step == 59
    assert set(read) == {"version_0"}, "two sessions make one run, which is read"
