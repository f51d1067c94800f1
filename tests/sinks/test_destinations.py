"""Numbers, incidents and the page reach the libraries where teams look, by Lightning's loggers and directly."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bnmonitor import Monitor
from bnmonitor.sinks import Loggers, TensorBoard
from tests.watching import diverging


class Kept:
    """Keeps what it is called with."""

    def __init__(self) -> None:
        self.numbers: list[tuple[dict[str, float], int]] = []
        self.texts: dict[str, str] = {}
        self.summary: dict[str, Any] = self.texts


def wandb_run(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> Any:
    class Run:
        summary = kept.texts

        def log(self, values: dict[str, Any], step: int | None = None) -> None:
            if step is None:
                kept.texts.update(values)
            else:
                kept.numbers.append((values, step))

    library = ModuleType("wandb")
    library.Html = lambda html, inject: html  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", library)
    Run.__module__ = "wandb.sdk.wandb_run"
    return Run()


def wandb_logger(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> Any:
    class WandbLogger:
        experiment = wandb_run(kept, monkeypatch)

        def log_metrics(self, values: dict[str, float], step: int) -> None:
            kept.numbers.append((values, step))

    return WandbLogger()


def mlflow_library(kept: Kept, _: pytest.MonkeyPatch) -> Any:
    library = ModuleType("mlflow")
    library.log_metrics = lambda values, step: kept.numbers.append((values, step))  # type: ignore[attr-defined]
    library.log_text = lambda text, file: kept.texts.__setitem__(file, text)  # type: ignore[attr-defined]
    return library


def mlflow_logger(kept: Kept, _: pytest.MonkeyPatch) -> Any:
    class Client:
        def log_text(self, run: str, text: str, file: str) -> None:
            assert run == "the run"
            kept.texts[file] = text

    class MLFlowLogger:
        experiment, run_id = Client(), "the run"

        def log_metrics(self, values: dict[str, float], step: int) -> None:
            kept.numbers.append((values, step))

    return MLFlowLogger()


def comet_experiment(kept: Kept, _: pytest.MonkeyPatch) -> Any:
    class Experiment:
        def log_metrics(self, values: dict[str, float], step: int) -> None:
            kept.numbers.append((values, step))

        def log_asset_data(self, data: str, name: str, overwrite: bool) -> None:
            assert overwrite
            kept.texts[name] = data

    Experiment.__module__ = "comet_ml.experiment"
    return Experiment()


def neptune_run(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> Any:
    class Field:
        def __init__(self, name: str) -> None:
            self.name = name

        def append(self, value: float, step: int) -> None:
            kept.numbers.append(({self.name: value}, step))

        def upload(self, file: str) -> None:
            kept.texts[self.name] = file

    class Run:
        def __getitem__(self, name: str) -> Field:
            return Field(name)

        def __setitem__(self, name: str, value: str) -> None:
            kept.texts[name] = value

    class File:
        @staticmethod
        def from_content(html: str, extension: str) -> str:
            assert extension == "html"
            return html

    types = ModuleType("neptune.types")
    types.File = File  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "neptune", ModuleType("neptune"))
    monkeypatch.setitem(sys.modules, "neptune.types", types)
    Run.__module__ = "neptune.metadata_containers.run"
    return Run()


def train(loggers: Loggers, folder: Path) -> Monitor:
    return diverging([TensorBoard(folder), loggers], folder, steps=60)


@pytest.mark.parametrize(
    "make", [wandb_run, wandb_logger, mlflow_library, mlflow_logger, comet_experiment, neptune_run]
)
def test_numbers_incidents_and_the_page_arrive(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept()
    monitor = train(Loggers([make(kept, monkeypatch)]), tmp_path)
    assert not [alert for alert in monitor.alerts if alert.code == "BN002"]
    names = {name for values, _ in kept.numbers for name in values}
    assert {"bnmonitor/health", "bnmonitor/errors", "bnmonitor/warnings", "bn_health/1"} <= names
    assert {step for _, step in kept.numbers} >= {0, 9, 59}
    [incidents] = [text for name, text in kept.texts.items() if name.startswith("bnmonitor/incidents")]
    assert "learning rate 30 is too high" in incidents
    assert monitor.incidents[0].advice in incidents
    [page] = [text for name, text in kept.texts.items() if name.startswith("bnmonitor/page")]
    assert page.lower().startswith("<!doctype html>")


def test_only_so_many_layers_have_scalars_and_each_keeps_them(tmp_path: Path) -> None:
    class Logger:
        rows: list[dict[str, float]] = []  # noqa: RUF012

        def log_metrics(self, values: dict[str, float], step: int) -> None:
            self.rows.append(values)

    train(Loggers([Logger()], layers=0), tmp_path / "none")
    assert not [name for row in Logger.rows for name in row if name.startswith("bn_")]
    with pytest.raises(ValueError, match="layers must be a number of layers"):
        Loggers(layers=-1)
