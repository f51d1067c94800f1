"""A run that was stopped and resumed from a checkpoint equals one that was not."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bnmonitor import Monitor
from bnmonitor.history.run import open_history
from bnmonitor.recording.ring import Ring
from bnmonitor.recording.window_state import LIMIT, restore_window, save_window
from bnmonitor.sinks import TensorBoard

STEPS = 150
STATISTICS = ("batch_mean", "batch_var", "running_mean", "running_var", "gamma", "beta", "gamma_grad", "shift", "ratio")


class Training:
    """A model, its optimizer and its monitor, which a checkpoint restores."""

    def __init__(self, log_dir: Path, width: int = 8, **settings: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(5, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 6), nn.BatchNorm1d(6, momentum=0.05)
        )
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        given = {"sample_every_n_steps": 20, "log_every_n_steps": 5, "on_alert": "log", **settings}
        self.monitor = Monitor(self.model, optimizer=self.optimizer, sinks=[TensorBoard(log_dir)], **given)

    def batch(self, step: int) -> Tensor:
        make = torch.Generator().manual_seed(step)
        x = torch.randn(32, 5, generator=make)
        return x * 40 if 70 <= step < 90 else x * torch.nan if step == 120 else x

    def run(self, start: int, end: int) -> None:
        with self.monitor:
            for step in range(start, end):
                self.optimizer.zero_grad()
                loss = self.model(self.batch(step)).square().mean()
                loss.backward()
                if bool(loss.isfinite()):
                    self.optimizer.step()
                self.monitor.step(step)

    def save(self) -> bytes:
        file = io.BytesIO()
        parts = {"model": self.model, "optimizer": self.optimizer, "monitor": self.monitor}
        torch.save({name: part.state_dict() for name, part in parts.items()}, file)
        return file.getvalue()

    def load(self, saved: bytes) -> None:
        state = torch.load(io.BytesIO(saved), weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.monitor.load_state_dict(state["monitor"])


def said(training: Training) -> list[dict[str, Any]]:
    return [alert.to_dict() for alert in training.monitor.alerts]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Training, Path]:
    log_dir = tmp_path_factory.mktemp("whole")
    training = Training(log_dir)
    training.run(0, STEPS)
    return training, log_dir


@pytest.mark.parametrize("at", [1, 57, 85, 125])
def test_it_loses_nothing_it_reported_as_kept_when_resumed(
    whole: tuple[Training, Path], tmp_path: Path, at: int
) -> None:
    first = Training(tmp_path)
    with first.monitor:
        saved = b""
        for step in range(at):
            first.optimizer.zero_grad()
            loss = first.model(first.batch(step)).square().mean()
            loss.backward()
            if bool(loss.isfinite()):
                first.optimizer.step()
            first.monitor.step(step)
        saved = first.save()
    second = Training(tmp_path)
    second.load(saved)
    second.run(at, STEPS)

    expected, log_dir = whole
    assert second.monitor.steps == expected.monitor.steps
    for layer in expected.monitor.layers.names:
        for statistic in STATISTICS:
            ours, theirs = (m.history(layer, statistic) for m in (second.monitor, expected.monitor))
            assert torch.equal(ours.nan_to_num(7.0), theirs.nan_to_num(7.0)), (layer, statistic)
    assert said(second) == said(expected)
    ours, theirs = (open_history(path).run(".") for path in (tmp_path, log_dir))
    shared = [i for i, step in enumerate(ours.frames.steps.tolist()) if step in theirs.frames.steps]
    assert ours.frames.steps[shared].tolist() == theirs.frames.steps.tolist()
    # The first run's end is one frame more, unless it was due.
    assert len(ours.frames.steps) - len(theirs.frames.steps) <= 1
    np.testing.assert_array_equal(ours.frames.values[:, :, shared], theirs.frames.values)
    assert [a["code"] for a in ours.alerts] == [a["code"] for a in theirs.alerts]
    assert ours.incidents == theirs.incidents == expected.monitor.incidents


def test_a_checkpoint_from_before_the_monitor_loads(tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.run(30, 60)
    assert training.monitor.steps == tuple(range(30, 60))


def test_another_batch_size_continues_with_the_same_window(tmp_path: Path) -> None:
    first = Training(tmp_path)
    first.run(0, 60)
    second = Training(tmp_path)
    second.load(first.save())
    whole = second.batch
    second.batch = lambda step: torch.cat([whole(step), whole(1000 + step)])  # type: ignore[method-assign]
    second.run(60, 70)
    kept = range(70 - second.monitor.settings.window, 70)
    assert second.monitor.steps == tuple(kept)
    assert not second.monitor.history("1", "batch_mean").isnan().any()
    assert {a["code"] for a in said(second)} == {a["code"] for a in said(first)}


def test_other_layers_start_over_and_the_rest_continues(tmp_path: Path) -> None:
    first = Training(tmp_path)
    first.run(0, 60)
    state = first.monitor.state_dict()
    second = Training(tmp_path, width=10)
    second.monitor.load_state_dict(copy.deepcopy(state))
    second.run(60, 70)
    assert second.monitor.steps == tuple(range(60, 70))
    updates = second.monitor.summary().window.baseline.updates.tolist()  # type: ignore[union-attr]
    assert updates == [10, 70]


def test_a_smaller_window_takes_the_newest_steps(tmp_path: Path) -> None:
    first = Training(tmp_path)
    first.run(0, 60)
    second = Training(tmp_path, window=16)
    second.monitor.load_state_dict(first.monitor.state_dict())
    second.run(60, 65)
    assert second.monitor.steps == tuple(range(49, 65))


def test_a_state_of_an_older_version_loads(tmp_path: Path) -> None:
    first = Training(tmp_path)
    first.run(0, 60)
    state = first.monitor.state_dict()
    for name in ("window", "fresh", "epoch_steps"):
        del state["watch"][name]
    second = Training(tmp_path)
    second.monitor.load_state_dict(state)
    second.run(60, 65)
    assert second.monitor.steps == tuple(range(60, 65))


def test_a_large_window_stays_out_of_the_checkpoint(tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.run(0, 30)
    saved = training.monitor.state_dict()["watch"]["window"]
    assert saved is not None
    ring = Ring(training.monitor.layers, 64, torch.float32)
    samples = restore_window(saved, ring)
    assert save_window(ring, samples) is not None
    assert save_window(ring, samples, limit=100) is None
    assert LIMIT == 32 * 2**20
