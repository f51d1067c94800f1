from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bnmonitor import Monitor
from bnmonitor.history.schema import BOXES
from bnmonitor.sinks import BlackBox, read_black_box
from bnmonitor.testing import RecordingSink
from bnmonitor.window import CHANNEL_STATISTICS, LAYER_STATISTICS


def poisoned(log_dir: Path | None, sinks: list[RecordingSink] | None = None) -> Monitor:
    """A training whose 20th batch holds an infinity."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    settings = {"log_dir": log_dir, "sinks": sinks or [], "on_alert": "log", "select": ("BN101",)}
    monitor = Monitor(model, optimizer=optimizer, **settings)
    with monitor:
        for step in range(30):
            x = torch.randn(16, 1, 8, 8)
            if step == 20:
                x[0, 0, 0, 0] = torch.inf
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), torch.randint(0, 3, (16,)))
            if loss.isfinite():
                loss.backward()
                optimizer.step()
            monitor.step()
    return monitor


def test_an_error_leaves_the_whole_window_of_all_layers_in_a_file(tmp_path: Path) -> None:
    monitor = poisoned(tmp_path)
    [alert] = monitor.alerts
    [path] = monitor.black_boxes
    assert path.parent == tmp_path / BOXES
    box = read_black_box(path)
    assert box["alert"].key == alert.key
    assert box["layers"] == ["1"]
    assert box["channels"] == [4]
    assert box["steps"] == list(range(box["steps"][-1] + 1))
    assert alert.first_step in box["steps"]
    assert box.keys() == {"alert", "steps", "layers", "channels", *CHANNEL_STATISTICS, *LAYER_STATISTICS}
    expected = monitor.history("1", "running_mean")[: len(box["steps"])]
    assert torch.equal(box["running_mean"].nan_to_num(), expected.nan_to_num())
    assert box["updates"].shape == (len(box["steps"]), 1)
    assert not list(path.parent.glob("*.part"))


def test_without_a_directory_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert poisoned(None).black_boxes == ()
    assert not list(tmp_path.iterdir())


def test_a_directory_that_cannot_be_written_is_reported_once_and_training_goes_on(tmp_path: Path) -> None:
    (tmp_path / "plugins").write_text("a file where the folder should be")
    monitor = poisoned(tmp_path)
    assert [alert.code for alert in monitor.alerts] == ["BN002", "BN101", "BN002"]
    assert [word in monitor.alerts[i].message for i, word in ((0, "flight record"), (2, "black box"))] == [True, True]
    assert monitor.steps == tuple(range(30))


def test_a_run_keeps_no_more_than_so_many(tmp_path: Path) -> None:
    monitor = poisoned(tmp_path)
    [alert] = monitor.alerts
    window = monitor.window()
    assert window is not None
    box = BlackBox(tmp_path / "other", most=2)
    written = [box.write(window, alert) for _ in range(4)]
    box.close()
    assert [path is not None for path in written] == [True, True, False, False]


def test_a_layer_name_does_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    from dataclasses import replace

    monitor = poisoned(tmp_path)
    window = monitor.window()
    assert window is not None
    box = BlackBox(tmp_path)
    path = box.write(window, replace(monitor.alerts[0], layer="../../etc/pass wd" + "x" * 300))
    box.close()
    assert path is not None
    assert path.parent == tmp_path / BOXES
    assert len(path.name) < 120
    assert read_black_box(path)["layers"] == ["1"]


@pytest.mark.parametrize("content", [b"", b"not a zip", None])
def test_a_file_that_is_no_black_box_is_refused_in_one_sentence(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.npz"
    if content is None:
        np.savez(path, steps=np.arange(3), evil=np.array([{"a": 1}], dtype=object))
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a black box"):
        read_black_box(path)
