"""Every sink of the package, and that of the example, keeps the contract of sinks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from bnmonitor import Sink
from bnmonitor.sinks import Console, JsonLines, Loggers, TensorBoard
from bnmonitor.testing import RecordingSink
from bnmonitor.testing.contracts import SinkContract

ROOT = Path(__file__).parents[2]


class TestSink(SinkContract):
    def make_sink(self, folder: Path) -> Sink:
        return Sink()


class TestRecordingSink(SinkContract):
    def make_sink(self, folder: Path) -> Sink:
        return RecordingSink()


class TestConsole(SinkContract):
    def make_sink(self, folder: Path) -> Sink:
        return Console()


class TestJsonLines(SinkContract):
    def make_sink(self, folder: Path) -> Sink:
        return JsonLines(folder / "alerts.jsonl")


class TestTensorBoard(SinkContract):
    def make_sink(self, folder: Path) -> Sink:
        return TensorBoard(folder)


class TestTensorBoardOfTheTrainer(SinkContract):
    def make_sink(self, folder: Path) -> Sink:
        return TensorBoard()

    def loggers(self, folder: Path) -> tuple[Any, ...]:
        return (TensorBoardLogger(folder),)


class TestLoggers(SinkContract):
    def make_sink(self, folder: Path) -> Sink:
        return Loggers()

    def loggers(self, folder: Path) -> tuple[Any, ...]:
        return (CSVLogger(folder),)


class TestExample(SinkContract):
    @pytest.fixture(autouse=True)
    def classes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.syspath_prepend(ROOT / "examples")

    def make_sink(self, folder: Path) -> Sink:
        import custom_sink

        sink: Sink = custom_sink.Markdown(folder / "alerts.md")
        return sink
