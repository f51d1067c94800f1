"""The callback in real Trainers of both packages, on digits."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bnmonitor import Alert, AlertError, BatchNormMonitor, BatchNormWarning, Severity
from bnmonitor.sinks import Console, JsonLines
from bnmonitor.testing import RecordingSink

PACKAGES = ("lightning.pytorch", "pytorch_lightning")
BATCH = 64


@pytest.fixture(params=PACKAGES)
def lightning(request: pytest.FixtureRequest) -> Any:
    return importlib.import_module(request.param)


@pytest.fixture
def one_lightning() -> Any:
    """For what can not differ between the packages."""
    return importlib.import_module(PACKAGES[0])


def loader(batches: int = 8) -> DataLoader[Any]:
    x, y = digits()
    return DataLoader(TensorDataset(x[: BATCH * batches], y[: BATCH * batches]), batch_size=BATCH)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    data = load_digits()
    return torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1, torch.tensor(data.target)


def a_body(momentum: float = 0.1) -> nn.Sequential:
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, bias=False),
        nn.BatchNorm2d(8, momentum=momentum),
        nn.ReLU(),
        nn.Flatten(),
    )


def a_module(
    lightning: Any,
    body: nn.Module | None = None,
    *,
    during: Callable[[Any, int], None] = lambda module, batch_idx: None,
    bare: bool = False,
) -> Any:
    class Digits(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 128)) if bare else body or a_body()
            self.head = nn.Linear(128, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x))  # type: ignore[no-any-return]

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            during(self, batch_idx)
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self(batch[0])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            trained = [p for p in self.parameters() if p.requires_grad]
            return torch.optim.SGD(trained, lr=0.05, momentum=0.9)

    lightning.seed_everything(7, verbose=False)
    return Digits()


def a_trainer(lightning: Any, *callbacks: Any, **more: Any) -> Any:
    return lightning.Trainer(
        callbacks=list(callbacks),
        **{
            "max_epochs": 1,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **more,
        },
    )


def hooks(model: nn.Module) -> int:
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) + len(m._state_dict_hooks)
        for m in model.modules()
    )


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*number of training batches"),
    pytest.mark.filterwarnings("ignore:.*val_dataloader"),
]


# -- healthy and ill ---------------------------------------------------------------------------------------------------


def test_healthy_run_has_no_alert_and_ends_with_one_line(lightning: Any, capsys: pytest.CaptureFixture[str]) -> None:
    callback, module = BatchNormMonitor(), a_module(lightning)
    # Validation waits until the running statistics are warm.
    a_trainer(lightning, callback, max_epochs=8, check_val_every_n_epoch=4).fit(module, loader(), loader(2))
    assert callback.alerts == ()
    assert callback.monitor.layers.names == ("body.1", "body.4")
    assert len(callback.monitor.steps) == 64
    assert callback.monitor.steps[-1] == 63
    assert callback.monitor.history("body.4", "batch_mean").shape == (64, 8)
    assert callback.monitor.history("body.4", "batch_mean").isfinite().all()
    out = capsys.readouterr().out
    assert "BatchNorm ✓ 2 layers, 16 channels healthy · epoch 0 · step 7\n" in out
    assert len(out.splitlines()) == 8 + 1, "a line an epoch, and one at the end"
    assert not callback.monitor.should_stop


def test_fault_is_named_with_its_layer(lightning: Any) -> None:
    sink = RecordingSink()
    callback, module = BatchNormMonitor(sinks=[sink], on_alert="log"), a_module(lightning, a_body(momentum=0.99))
    a_trainer(lightning, callback).fit(module, loader())
    [alert] = callback.alerts
    assert (alert.code, alert.layer, alert.layers, alert.state) == ("BN301", "body.4", ("body.4",), "open")
    [told] = [a for what, a in sink.events if what == "alert"]
    assert replace(told, last_step=7) == alert
    assert [what for what, _ in sink.events] == ["open", "alert", "frame", "epoch", "frame", "close"]


def test_backbone_that_is_frozen_by_requires_grad_only_is_found_leaking(lightning: Any) -> None:
    body = a_body()
    body.requires_grad_(False)
    callback = BatchNormMonitor(sinks=[], on_alert="log", check_every_n_steps=4)
    a_trainer(lightning, callback).fit(a_module(lightning, body), loader())
    [alert] = callback.alerts
    assert (alert.code, alert.layer, alert.layers) == ("BN402", "body.1", ("body.1", "body.4"))
    assert alert.severity is Severity.ERROR


def test_layer_in_evaluation_mode_is_found(lightning: Any) -> None:
    module = a_module(lightning, during=lambda module, batch_idx: module.body[4].eval() and None)
    callback = BatchNormMonitor(sinks=[], on_alert="log", check_every_n_steps=4)
    a_trainer(lightning, callback).fit(module, loader())
    found = {(alert.code, alert.layer, alert.first_step) for alert in callback.alerts}
    assert found == {("BN401", "body.4", 0), ("BN404", "body.4", 0)}


def test_nan_is_named_with_layer_and_step(lightning: Any) -> None:
    def poison(module: Any, batch_idx: int) -> None:
        if batch_idx == 5:
            with torch.no_grad():
                module.body[3].weight[2] = float("nan")

    callback = BatchNormMonitor(sinks=[], on_alert="log")
    a_trainer(lightning, callback).fit(a_module(lightning, during=poison), loader())
    [alert] = [a for a in callback.alerts if a.code == "BN101"]
    assert (alert.layer, alert.first_step, alert.severity) == ("body.4", 5, Severity.ERROR)
    assert 2 in alert.channels
    assert "last finite at step 4" in alert.message


# -- the loop ----------------------------------------------------------------------------------------------------------


def test_accumulated_gradients_are_recorded_batch_by_batch_under_the_numbers_lightning_logs_by(lightning: Any) -> None:
    callback = BatchNormMonitor(sinks=[])
    a_trainer(lightning, callback, accumulate_grad_batches=2).fit(a_module(lightning), loader(6))
    assert callback.monitor.steps == (0, 0, 1, 1, 2, 2)
    assert callback.monitor.summary().rows[0].recovery == ""
    updates = callback.monitor.history("body.1", "batch_mean")
    assert len({tuple(row) for row in updates.tolist()}) == 6


def test_validation_in_between_belongs_to_no_step(lightning: Any) -> None:
    def recorded(**more: Any) -> torch.Tensor:
        callback = BatchNormMonitor(sinks=[], ignore=("BN303",))
        trainer = a_trainer(lightning, callback, **more)
        trainer.fit(a_module(lightning), loader(6), loader(2))
        assert callback.alerts == ()
        return callback.monitor.history("body.4", "batch_var")

    often = recorded(val_check_interval=2, num_sanity_val_steps=2)
    never = recorded(limit_val_batches=0)
    assert torch.equal(often, never)


def test_epochs_are_shown_one_by_one(one_lightning: Any) -> None:
    sink = RecordingSink()
    a_trainer(one_lightning, BatchNormMonitor(sinks=[sink]), max_epochs=3).fit(a_module(one_lightning), loader(2))
    assert [s.epoch for what, s in sink.events if what == "epoch"] == [0, 1, 2]


def test_frames_follow_the_trainer_unless_a_cadence_is_given(one_lightning: Any) -> None:
    def steps(**more: Any) -> list[int]:
        sink = RecordingSink()
        trainer = a_trainer(one_lightning, BatchNormMonitor(sinks=[sink], **more), log_every_n_steps=3)
        trainer.fit(a_module(one_lightning), loader(8))
        return [s.step for what, s in sink.events if what == "frame"]

    assert steps() == [0, 2, 5, 7], "the last one is the state at the end"
    assert steps(log_every_n_steps=4) == [0, 3, 7]
    assert steps(log_every_n_steps=0) == []


def test_fast_dev_run_is_watched_and_leaves_no_file(
    lightning: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    callback, module = BatchNormMonitor(), a_module(lightning)
    logger = lightning.loggers.TensorBoardLogger(str(tmp_path))
    a_trainer(lightning, callback, fast_dev_run=2, logger=logger).fit(module, loader(), loader(2))
    assert callback.monitor.steps == (0, 1)
    assert list(tmp_path.rglob("*")) == []
    assert hooks(module) == 0
    assert "BatchNorm ✓" in capsys.readouterr().out


def test_a_checkpoint_that_an_alert_asks_for_is_not_saved_in_a_fast_dev_run(lightning: Any, tmp_path: Path) -> None:
    ill_fit(lightning, "checkpoint", fast_dev_run=2, default_root_dir=str(tmp_path))
    assert list(tmp_path.rglob("*.ckpt")) == []
    ill_fit(lightning, "checkpoint", default_root_dir=str(tmp_path))
    assert len(list(tmp_path.rglob("bnmonitor-step=*.ckpt"))) == 1


def test_two_fits_on_one_callback_continue_one_history(lightning: Any) -> None:
    callback, module = BatchNormMonitor(sinks=[], on_alert="log"), a_module(lightning, a_body(momentum=0.99))
    for _ in range(2):
        a_trainer(lightning, callback).fit(module, loader(4))
    assert callback.monitor.steps == (0, 1, 2, 3) * 2
    assert [a.code for a in callback.alerts] == ["BN301"]
    assert hooks(module) == 0


def test_fit_of_another_module_begins_anew(one_lightning: Any) -> None:
    callback = BatchNormMonitor(sinks=[], on_alert="log")
    a_trainer(one_lightning, callback).fit(a_module(one_lightning, a_body(momentum=0.99)), loader(4))
    assert callback.alerts
    a_trainer(one_lightning, callback).fit(a_module(one_lightning), loader(4))
    assert callback.alerts == ()
    assert callback.monitor.steps == (0, 1, 2, 3)


def test_fit_after_one_that_was_stopped_runs_to_its_end(one_lightning: Any) -> None:
    callback, module = BatchNormMonitor(sinks=[], on_alert="stop"), a_module(one_lightning, a_body(momentum=0.99))
    for total in (1, 1 + 4):
        a_trainer(one_lightning, callback).fit(module, loader(4))
        assert len(callback.monitor.steps) == total


def test_two_callbacks_with_other_patterns_live_in_one_trainer(lightning: Any, tmp_path: Path) -> None:
    first = BatchNormMonitor(include=["body.1"], sinks=[], on_alert="log")
    second = BatchNormMonitor(exclude=["body.1"], sinks=[], on_alert="log")
    trainer = a_trainer(lightning, first, second)
    trainer.fit(a_module(lightning, a_body(momentum=0.99)), loader(4))
    assert first.monitor.layers.names == ("body.1",)
    assert second.monitor.layers.names == ("body.4",)
    assert ([a.layer for a in first.alerts], [a.layer for a in second.alerts]) == ([], ["body.4"])
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)["callbacks"]
    assert {first.state_key, second.state_key} <= set(saved)
    assert first.state_key != second.state_key


# -- on_alert ----------------------------------------------------------------------------------------------------------


def ill_fit(lightning: Any, on_alert: Any, sinks: Any = (), **more: Any) -> tuple[BatchNormMonitor, Any]:
    callback = BatchNormMonitor(sinks=list(sinks), on_alert=on_alert)
    trainer = a_trainer(lightning, callback, max_epochs=2, **more)
    trainer.fit(a_module(lightning, a_body(momentum=0.99)), loader(4))
    return callback, trainer


def test_stop_ends_the_fit_early(lightning: Any) -> None:
    callback, trainer = ill_fit(lightning, "stop")
    assert trainer.global_step == 1
    assert callback.monitor.should_stop


def test_raise_comes_out_of_fit_with_the_alert_and_leaves_no_hook(lightning: Any) -> None:
    module, sink = a_module(lightning, a_body(momentum=0.99)), RecordingSink()
    callback = BatchNormMonitor(sinks=[sink], on_alert="raise")
    with pytest.raises(AlertError, match=r"momentum is too large · since step 0 · body\.4") as caught:
        a_trainer(lightning, callback).fit(module, loader(4))
    assert caught.value.alert == callback.alerts[0]
    assert hooks(module) == 0
    assert [what for what, _ in sink.events] == ["open", "alert", "frame", "close"]


def test_warn_is_a_python_warning_where_nobody_would_see_it_else(lightning: Any) -> None:
    with pytest.warns(
        BatchNormWarning, match=r"momentum is too large .* body\.4 .* fix: .*set_momentum\(model, momentum=0\.01\)"
    ):
        ill_fit(lightning, "warn", [RecordingSink()])


def test_warn_is_left_to_the_console_where_there_is_one(one_lightning: Any, capsys: pytest.CaptureFixture[str]) -> None:
    ill_fit(one_lightning, "warn", [Console()])
    assert "✗ momentum is too large · since step 0 · body.4" in capsys.readouterr().out


def test_log_goes_to_the_logger_of_the_package(one_lightning: Any, caplog: pytest.LogCaptureFixture) -> None:
    _, trainer = ill_fit(one_lightning, "log", [Console()])
    [record] = [r for r in caplog.records if r.name == "bnmonitor"]
    assert record.levelname == "ERROR"
    assert "momentum is too large · since step 0 · body.4" in record.getMessage()
    assert trainer.global_step == 8


def test_callable_is_called_with_the_alert_and_may_fail(one_lightning: Any) -> None:
    called: list[Alert] = []
    callback, trainer = ill_fit(one_lightning, called.append)
    assert [a.key for a in called] == [a.key for a in callback.alerts]
    assert trainer.global_step == 8

    def fail(alert: Alert) -> None:
        called.append(alert)
        raise ValueError("no network")

    callback, trainer = ill_fit(one_lightning, fail)
    assert [a.code for a in callback.alerts] == ["BN301", "BN002"]
    assert callback.alerts[1].message == "on_alert raised ValueError: no network"
    assert len(called) == 2
    assert trainer.global_step == 8


def test_mapping_chooses_by_severity(one_lightning: Any) -> None:
    _, trainer = ill_fit(one_lightning, {"error": "stop", "warning": "raise"})
    assert trainer.global_step == 1
    _, trainer = ill_fit(one_lightning, {Severity.ERROR: "log", "warning": "raise"})
    assert trainer.global_step == 8


# -- where nothing can be watched or told ------------------------------------------------------------------------------


def test_model_without_batch_norm_is_told_once_and_trained(lightning: Any) -> None:
    callback, module = BatchNormMonitor(), a_module(lightning, bare=True)
    with pytest.warns(BatchNormWarning, match="the model has no BatchNorm layer") as caught:
        a_trainer(lightning, callback).fit(module, loader(4), loader(1))
    assert len([w for w in caught if w.category is BatchNormWarning]) == 1
    trainer = a_trainer(lightning, callback)
    trainer.fit(module, loader(4), loader(1))
    assert trainer.global_step == 4
    assert callback.alerts == ()
    assert len(callback.monitor.layers) == 0
    assert len(callback.monitor.summary()) == 0


def test_trainer_without_a_logger_takes_a_line_an_epoch_and_one(
    lightning: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    a_trainer(lightning, BatchNormMonitor(ignore=("BN303",)), max_epochs=3).fit(
        a_module(lightning), loader(2), loader(1)
    )
    ours = capsys.readouterr().out.splitlines()
    assert [line.startswith("BatchNorm ✓") for line in ours] == [True] * 4, "each epoch and the end"


def test_ill_run_without_a_history_says_how_to_keep_one(one_lightning: Any, capsys: pytest.CaptureFixture[str]) -> None:
    ill_fit(one_lightning, "log", [Console()])
    assert capsys.readouterr().out.splitlines()[-1].startswith("no history was written: a TensorBoardLogger, ")


def a_logger(lightning: Any, name: str, **broken: Any) -> Any:
    """A logger of any class name, with what is broken about it."""

    def fail(*_: Any, **__: Any) -> Any:
        if sys._getframe(1).f_globals["__name__"].startswith("bnmonitor"):  # Lightning touches its loggers as well
            raise OSError("read-only file system")
        return None

    body: dict[str, Any] = {
        "name": property(lambda self: "none"),
        "version": property(lambda self: 0),
        "log_metrics": lambda self, metrics, step=None: None,
        "log_hyperparams": lambda self, *args, **kwargs: None,
    }
    body |= {key: property(fail) if key == "experiment" else fail for key in broken}
    return type(name, (lightning.loggers.Logger,), body)()


@pytest.mark.parametrize(
    ("name", "broken", "sink"),
    [("TensorBoardLogger", "experiment", "TensorBoard"), ("OtherLogger", "log_metrics", "Loggers")],
)
def test_logger_that_raises_is_an_alert_and_training_ends_as_it_should(
    lightning: Any, name: str, broken: str, sink: str, capsys: pytest.CaptureFixture[str]
) -> None:
    callback = BatchNormMonitor()
    trainer = a_trainer(lightning, callback, logger=a_logger(lightning, name, **{broken: True}))
    trainer.fit(a_module(lightning), loader(4))
    assert trainer.global_step == 4
    assert [a.code for a in callback.alerts] == ["BN002"]
    assert callback.alerts[0].message == f"sink {sink} raised OSError: read-only file system"
    assert "! a sink of bnmonitor failed" in capsys.readouterr().out


def test_rule_that_raises_is_an_alert_and_training_ends_as_it_should(one_lightning: Any) -> None:
    from bnmonitor import Rule

    class Broken(Rule):
        code, name, severity = "XY1", "broken", Severity.INFO

        def check(self, window: Any) -> Any:
            raise ZeroDivisionError("division by zero")

    callback = BatchNormMonitor(sinks=[], on_alert="log", rules=[Broken()])
    trainer = a_trainer(one_lightning, callback, max_epochs=2)
    trainer.fit(a_module(one_lightning), loader(4))
    assert trainer.global_step == 8
    assert [a.message for a in callback.alerts] == ["rule XY1 raised ZeroDivisionError: division by zero"]


# -- when it ends badly ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["training", "validation"])
def test_exception_in_the_middle_leaves_no_hook_and_still_shows_the_summary(
    lightning: Any, error: type[BaseException], where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module = a_module(lightning, during=lambda m, i: fail() if where == "training" and i == 3 else None)

    def fail(*_: Any) -> None:
        assert where == "validation" or hooks(module) > 0, "the step is sampled: hooks are in place when it fails"
        raise error("in the middle")

    if where == "validation":
        module.validation_step = fail
    callback = BatchNormMonitor(sample_every_n_steps=1, ignore=("BN303",))
    trainer = a_trainer(lightning, callback, num_sanity_val_steps=0)
    with pytest.raises((error, SystemExit)):
        trainer.fit(module, loader(4), loader(1))
    assert hooks(module) == 0
    assert callback.monitor.steps == ((0, 1, 2) if where == "training" else (0, 1, 2, 3))
    out = capsys.readouterr().out
    assert out.count("BatchNorm ✓ 2 layers, 16 channels healthy") == 1
    with pytest.raises(RuntimeError, match="before start"):
        callback.monitor.step()


def test_fit_goes_on_after_one_that_failed(one_lightning: Any) -> None:
    failing = [True]

    def fail(module: Any, batch_idx: int) -> None:
        if failing and batch_idx == 2:
            failing.clear()
            raise ValueError("once")

    callback, module = BatchNormMonitor(sinks=[]), a_module(one_lightning, during=fail)
    with pytest.raises(ValueError, match="once"):
        a_trainer(one_lightning, callback).fit(module, loader(4))
    a_trainer(one_lightning, callback).fit(module, loader(4))
    assert callback.monitor.steps == (0, 1, 0, 1, 2, 3)


# -- checkpoints -------------------------------------------------------------------------------------------------------


def test_resumed_run_goes_on_with_its_alerts_counters_and_baselines(lightning: Any, tmp_path: Path) -> None:
    def parts() -> tuple[BatchNormMonitor, Any]:
        sink = JsonLines(tmp_path / "alerts.jsonl")
        callback = BatchNormMonitor(sinks=[sink], on_alert="log", check_every_n_steps=2)
        return callback, a_module(lightning, a_body(momentum=0.99))

    callback, module = parts()
    trainer = a_trainer(lightning, callback)
    trainer.fit(module, loader(4))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert saved["callbacks"][callback.state_key]["watch"]["count"] == 4

    again, module = parts()
    a_trainer(lightning, again, max_epochs=3).fit(
        module, loader(4), ckpt_path=str(tmp_path / "a.ckpt"), weights_only=True
    )
    assert again.monitor.steps == tuple(range(12))
    [alert] = again.alerts
    assert (alert.code, alert.first_step, alert.last_step) == ("BN301", callback.alerts[0].first_step, 11)
    state = again.monitor.state_dict()["watch"]
    assert state["count"] == 12
    assert state["baseline"]["updates"].tolist() == [12, 12]
    assert len((tmp_path / "alerts.jsonl").read_text().splitlines()) == 1, "nothing is said twice"


def test_checkpoint_of_a_run_that_was_not_watched_is_taken(one_lightning: Any, tmp_path: Path) -> None:
    trainer = a_trainer(one_lightning)
    trainer.fit(a_module(one_lightning), loader(2))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    callback = BatchNormMonitor(sinks=[])
    a_trainer(one_lightning, callback, max_epochs=2).fit(
        a_module(one_lightning), loader(2), ckpt_path=str(tmp_path / "a.ckpt"), weights_only=True
    )
    assert callback.monitor.steps == (2, 3)


def test_checkpoint_fits_the_trainer_of_the_other_package(tmp_path: Path) -> None:
    first, second = (importlib.import_module(name) for name in PACKAGES)
    callback = BatchNormMonitor(sinks=[], on_alert="log")
    trainer = a_trainer(first, callback)
    trainer.fit(a_module(first, a_body(momentum=0.99)), loader(2))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = BatchNormMonitor(sinks=[], on_alert="log")
    a_trainer(second, again, max_epochs=2).fit(
        a_module(second, a_body(momentum=0.99)), loader(2), ckpt_path=str(tmp_path / "a.ckpt"), weights_only=True
    )
    assert [a.code for a in again.alerts] == ["BN301"]


def test_state_that_was_loaded_is_not_lost_if_it_is_saved_before_the_next_step(one_lightning: Any) -> None:
    callback = BatchNormMonitor(sinks=[], on_alert="log")
    a_trainer(one_lightning, callback).fit(a_module(one_lightning, a_body(momentum=0.99)), loader(2))
    state = callback.state_dict()
    waiting = BatchNormMonitor(sinks=[])
    waiting.load_state_dict(state)
    assert repr(waiting.state_dict()) == repr(state)
