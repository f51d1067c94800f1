from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor, nn

from tests.integrations.common import Truth, evaluated, gradients_seen, seed, serious, state, without_and_with

os.environ.setdefault("YOLO_OFFLINE", "true")

ultralytics = pytest.importorskip("ultralytics", reason="Ultralytics is not installed: make test-integrations")

from bnmonitor.integrations.ultralytics import BatchNormCallback  # noqa: E402

TINY = """
nc: 2
backbone:
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, Conv, [16, 3, 2]]
head:
  - [-1, 1, Classify, [nc]]
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    for part, count in (("train", 320), ("val", 16)):
        for label in ("dark", "light"):
            (folder / part / label).mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(0, 160, (32, 32, 3)) + (90 if label == "light" else 0)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / part / label / f"{i}.png")
    return folder


def train(images: Path, folder: Path, *callbacks: BatchNormCallback, **options: Any) -> Any:
    file = folder / "tiny-cls.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(TINY)
    seed(0)
    model = ultralytics.YOLO(str(file), task="classify")
    for callback in callbacks:
        callback.attach(model)
    kept: list[Any] = []
    model.add_callback("on_train_end", lambda trainer: kept.append(trainer))
    arguments: dict[str, Any] = {
        "data": str(images),
        "epochs": 4,
        "imgsz": 32,
        "batch": 16,
        "workers": 0,
        "device": "cpu",
        "project": str(folder),
        "name": "run",
        "exist_ok": True,
        "plots": False,
        "verbose": False,
        "optimizer": "SGD",
        "lr0": 0.01,
        "nbs": 16,
        "warmup_epochs": 0.0,
        **options,
    }
    model.train(**arguments)
    return kept[0]


def test_a_sound_training_is_the_same_and_its_numbers_are_true(images: Path, tmp_path: Path) -> None:
    def run(watched: bool) -> tuple[dict[str, Tensor], Any]:
        callback = BatchNormCallback(sinks=[])
        truths: list[Truth] = []

        class Started(BatchNormCallback):
            def on_train_start(self, trainer: Any) -> None:
                truths.append(Truth(next(m for m in trainer.model.modules() if isinstance(m, nn.BatchNorm2d))))

        trainer = train(images, tmp_path / str(watched), Started(sinks=[]), *([callback] if watched else []))
        weights = {**state(trainer.model), **{f"ema.{k}": v for k, v in state(trainer.ema.ema).items()}}
        return weights, (callback, truths[0])

    callback, truth = without_and_with(run)
    monitor = callback.monitor
    assert monitor.failure == ""
    assert monitor.steps[-1] == 159
    assert truth.error(monitor, "model.0.bn") < 1e-4
    assert gradients_seen(monitor, "model.0.bn") == 1.0
    assert evaluated(monitor, "ema.model.0.bn")
    assert serious(callback.incidents) == []
    assert monitor.summary().loss > 0
    assert not monitor.running


def test_accumulated_batches_are_rows(images: Path, tmp_path: Path) -> None:
    callback = BatchNormCallback(sinks=[])
    train(images, tmp_path, callback, nbs=32, epochs=2)
    assert callback.monitor.steps[-1] == 79
    assert serious(callback.incidents) == []


def test_a_rate_that_is_too_high_is_found_and_stops_the_training(images: Path, tmp_path: Path) -> None:
    callback = BatchNormCallback(sinks=[], on_alert="stop")
    train(images, tmp_path, callback, lr0=1.0, momentum=0.99, weight_decay=0.0, warmup_epochs=0.0, lrf=1.0)
    assert serious(callback.incidents)
    assert callback.monitor.steps[-1] < 159


def test_the_history_is_in_the_trainers_directory(images: Path, tmp_path: Path) -> None:
    import bnmonitor

    trainer = train(images, tmp_path, BatchNormCallback(), epochs=2)
    run = next(iter(bnmonitor.open(trainer.save_dir).values()))
    assert "ema.model.0.bn" in run.layers
