"""The callback from a YAML file, as LightningCLI reads it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bnmonitor import BatchNormMonitor, Severity
from bnmonitor.monitor import Settings
from bnmonitor.rules import find

pytest.importorskip("jsonargparse")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*number of training batches"),
]

CONFIG = """
seed_everything: 1
trainer:
  max_steps: 8
  accelerator: cpu
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: bnmonitor.BatchNormMonitor
      init_args:
        check_every_n_steps: 4
        log_every_n_steps: 2
        window: 16
        include: ["body.*"]
        exclude: ["body.4"]
        select: ["BN201", "inverted-momentum"]
        rules:
          small-batch:
            warn_below: 40
            error_below: 3
            layers:
              "body.*":
                error_below: 4
        on_alert:
          warning: log
          error: stop
        sinks:
          - class_path: bnmonitor.sinks.JsonLines
            init_args:
              path: {path}
"""


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def lightning(request: pytest.FixtureRequest) -> Any:
    importlib.import_module(f"{request.param}.cli")
    return importlib.import_module(request.param)


def run(lightning: Any, config: Path, *args: str) -> Any:
    class Model(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8, momentum=0.95)
            )

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self.body(batch[0]).square().mean()  # type: ignore[no-any-return]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    class Data(lightning.LightningDataModule):  # type: ignore[misc]
        def train_dataloader(self) -> Any:
            return DataLoader(TensorDataset(torch.randn(32 * 8, 4)), batch_size=32)

    command = ["fit", "--config", str(config), *args]
    return lightning.cli.LightningCLI(Model, Data, args=command, save_config_callback=None)


def monitor_of(cli: Any) -> BatchNormMonitor:
    [callback] = [c for c in cli.trainer.callbacks if isinstance(c, BatchNormMonitor)]
    return callback


def test_yaml_config_sets_every_argument_and_the_fit_is_watched(lightning: Any, tmp_path: Path) -> None:
    path = tmp_path / "alerts.jsonl"
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(path=path))
    callback = monitor_of(run(lightning, config))
    settings = callback.monitor.settings
    assert (settings.check_every_n_steps, settings.log_every_n_steps, settings.window) == (4, 2, 16)
    assert callback.monitor.layers.names == ("body.1",)
    assert [r.name for r in settings.chosen_rules()] == ["small-batch", "inverted-momentum"]
    assert find("small-batch", settings.chosen_rules()) == type(find("small-batch"))(warn_below=40, error_below=3)
    [special] = settings.special_rules()["BN201"]
    assert (special.pattern, vars(special.rule)["warn_below"], vars(special.rule)["error_below"]) == ("body.*", 40, 4)
    assert settings.actions() == {Severity.INFO: ("log",), Severity.WARNING: ("log",), Severity.ERROR: ("stop",)}
    assert callback.monitor.steps == tuple(range(8))
    [line] = path.read_text().splitlines()
    assert (json.loads(line)["code"], json.loads(line)["value"]) == ("BN201", 32.0)


def test_command_line_changes_what_the_file_says(lightning: Any, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(path=tmp_path / "alerts.jsonl"))
    cli = run(lightning, config, "--trainer.callbacks.init_args.exclude=[]", "--trainer.max_steps=4")
    callback = monitor_of(cli)
    assert callback.monitor.layers.names == ("body.1", "body.4")
    assert ("BN301", "body.4") in [(a.code, a.layer) for a in callback.alerts]
    assert cli.trainer.global_step == 1, "an error stops the fit"


def test_callback_comes_with_its_defaults_from_the_command_line_alone(lightning: Any, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    head, _ = CONFIG.split("  callbacks:")
    config.write_text(head)
    callback = "--trainer.callbacks"
    given = (f"{callback}=bnmonitor.BatchNormMonitor", f"{callback}.sinks=[]", f"{callback}.on_alert=log")
    monitor = monitor_of(run(lightning, config, *given)).monitor
    plain = {name: tuple(v) if isinstance(v, list) else v for name, v in vars(monitor.settings).items()}
    assert plain == vars(Settings(on_alert="log", log_every_n_steps=50, sinks=()))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("check_every_n_steps: 4", "check_every_n_steps: 0", "check_every_n_steps must be an int of at least 1, got 0"),
        ("warn_below", "warn_bellow", "did you mean 'warn_below'"),
        ("error: stop", "eror: stop", "did you mean 'error'"),
        ("window: 16", "windw: 16", "windw"),
    ],
)
def test_mistake_in_the_file_is_named(
    old: str, new: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lightning = importlib.import_module("lightning.pytorch")
    importlib.import_module("lightning.pytorch.cli")
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(path=tmp_path / "alerts.jsonl").replace(old, new))
    with pytest.raises((SystemExit, ValueError)) as caught:
        run(lightning, config)
    assert message in capsys.readouterr().err + str(caught.value)
