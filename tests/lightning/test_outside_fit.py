"""Test, prediction and validation that a Trainer runs outside a fit: they are booked once, and leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from bnmonitor import Alert, BatchNormMonitor, Monitor, Severity
from bnmonitor.sinks import Console
from bnmonitor.testing import RecordingSink
from bnmonitor.window import PHASES as LEDGER_PHASES
from tests.end_to_end.test_promises import same
from tests.lightning.test_callback import a_module, a_trainer, hooks, lightning, loader, one_thread

__all__ = ["lightning", "one_thread"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:predict returned None"),
]

WAYS = ("validate", "test", "predict")
PHASES = {"validate": "validation", "test": "test", "predict": "predict"}


def a_tested(lightning: Any, body: nn.Module | None = None, *, during: Callable[[Any], None] = lambda m: None) -> Any:
    module = a_module(lightning, body)

    def step(batch: Any, batch_idx: int) -> None:
        during(module)
        module(batch[0])

    module.validation_step = module.test_step = module.predict_step = step
    return module


def a_callback(**settings: Any) -> BatchNormMonitor:
    return BatchNormMonitor(**{"sinks": [], "on_alert": "log", "select": ("all",), **settings})


def told(callback: BatchNormMonitor) -> dict[str, Alert]:
    return {a.code: a for a in callback.alerts if a.severity > Severity.INFO}


def weighted(module: nn.Module) -> nn.Module:
    """Weights that were loaded, with statistics that were not."""
    with torch.no_grad():
        for m in module.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.weight.uniform_(0.5, 1.5)
    return module


@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_bn406_statistics_move(lightning: Any, way: str, fitted: bool) -> None:
    callback, module = a_callback(), a_tested(lightning)
    trainer = a_trainer(lightning, callback, max_epochs=4)
    if fitted:
        trainer.fit(module, loader())
        assert told(callback) == {}
    plain = module.test_step
    module.validation_step = module.test_step = module.predict_step = lambda *a: (module.train(), plain(*a))[1]
    getattr(trainer, way)(module, loader(3))
    assert list(told(callback)) == ["BN406"]
    assert "3 updates so far" in told(callback)["BN406"].message
    assert told(callback)["BN406"].layers == ("body.1", "body.4")
    assert hooks(module) == 0
    getattr(trainer, way)(module, loader(3))
    assert callback.state_dict()["watch"]["ledger"]["seen"][LEDGER_PHASES.index(PHASES[way])].tolist() == [6, 6]


@pytest.mark.parametrize("way", WAYS)
def test_bn404_weights_without_their_statistics(lightning: Any, way: str) -> None:
    callback, module = a_callback(), weighted(a_tested(lightning))
    getattr(a_trainer(lightning, callback), way)(module, loader(1))
    assert list(told(callback)) == ["BN404"]
    assert told(callback)["BN404"].layers == ("body.1", "body.4")


@pytest.mark.parametrize("way", WAYS)
def test_a_model_as_it_was_made_is_measured_before_its_training(lightning: Any, way: str) -> None:
    callback, module = a_callback(), a_tested(lightning)
    trainer = a_trainer(lightning, callback, max_epochs=8, check_val_every_n_epoch=8)
    getattr(trainer, way)(module, loader(1))
    assert callback.alerts == ()
    trainer.fit(module, loader(), loader(1))
    assert told(callback) == {}


def test_bn404_statistics_that_were_lost_after_the_fit(lightning: Any) -> None:
    callback, module = a_callback(), a_tested(lightning)
    trainer = a_trainer(lightning, callback, max_epochs=4)
    trainer.fit(module, loader())
    module.body[4].reset_running_stats()
    trainer.test(module, loader(1))
    assert list(told(callback)) == ["BN404"]
    assert told(callback)["BN404"].layers == ("body.4",)


@pytest.mark.parametrize("way", WAYS)
def test_bn408_a_layer_without_statistics(lightning: Any, way: str) -> None:
    body = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), nn.Flatten(), nn.Linear(288, 128)
    )
    callback, module = a_callback(), a_tested(lightning, body)
    getattr(a_trainer(lightning, callback), way)(module, loader(1))
    assert list(told(callback)) == ["BN408"]


def test_bn303_tested_after_a_short_fit(lightning: Any) -> None:
    callback, module = a_callback(), a_tested(lightning)
    trainer = a_trainer(lightning, callback)
    trainer.fit(module, loader(4))
    assert told(callback) == {}
    trainer.test(module, loader(1))
    assert list(told(callback)) == ["BN303"]
    assert "evaluated after 4 updates" in told(callback)["BN303"].message


@pytest.mark.parametrize("way", WAYS)
def test_a_trial_run_of_the_script_is_no_evaluation(lightning: Any, way: str) -> None:
    callback, module = a_callback(), a_tested(lightning)
    trainer = a_trainer(lightning, callback, fast_dev_run=2)
    trainer.fit(module, loader(4), loader(1))
    getattr(trainer, way)(module, loader(1))
    assert told(callback) == {}


def test_bn101_a_model_that_is_tested_with_nan(lightning: Any) -> None:
    callback, module = a_callback(), weighted(a_tested(lightning))
    with torch.no_grad():
        for m in module.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.fill_(0.1)
        module.body[1].running_mean[3] = torch.nan
    a_trainer(lightning, callback).test(module, loader(1))
    assert list(told(callback)) == ["BN101"]
    assert told(callback)["BN101"].channels == (3,)


@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_an_exception_leaves_nothing_behind(lightning: Any, way: str, fitted: bool) -> None:
    class BrokenError(Exception):
        pass

    def fail(_: Any) -> None:
        if failing:
            raise BrokenError

    failing: list[bool] = []
    callback, module = a_callback(), a_tested(lightning, during=fail)
    trainer = a_trainer(lightning, callback)
    if fitted:
        trainer.fit(module, loader(2))
    failing.append(True)
    with pytest.raises(BrokenError):
        getattr(trainer, way)(module, loader(2))
    assert hooks(module) == 0
    assert not callback.monitor.running
    failing.clear()
    getattr(a_trainer(lightning, callback), way)(module, loader(2))
    assert hooks(module) == 0


def test_results_are_the_same_with_and_without(lightning: Any) -> None:
    def run(*callbacks: Any) -> list[Any]:
        module = a_tested(lightning)
        trainer = a_trainer(lightning, *callbacks)
        trainer.fit(module, loader(4), loader(1))
        for way in WAYS:
            getattr(trainer, way)(module, loader(2))
        return [dict(module.state_dict()), torch.get_rng_state(), sorted(vars(module))]

    assert same(run(), run(a_callback(probe=True)))


def test_sinks_are_opened_and_closed_in_pairs_and_told_once(lightning: Any, capsys: pytest.CaptureFixture[str]) -> None:
    sink = RecordingSink()
    callback, module = a_callback(sinks=[sink, Console()]), a_tested(lightning)
    trainer = a_trainer(lightning, callback)
    trainer.fit(module, loader(4))
    for _ in range(2):
        trainer.test(module, loader(1))
    names = [name for name, _ in sink.events if name in ("open", "close")]
    assert names == ["open", "close"] * 3
    assert [value.code for name, value in sink.events if name == "alert" and value.severity > Severity.INFO] == [
        "BN303"
    ]
    ours = [line for line in capsys.readouterr().out.splitlines() if line.startswith("✗ ")]
    assert len(ours) == 2, "when it opened, and at the end of the first test: the second found nothing new"


def test_a_fit_goes_on_after_a_test_of_its_model(lightning: Any) -> None:
    callback, module = a_callback(), a_tested(lightning)
    for steps in (4, 8):
        trainer = a_trainer(lightning, callback)
        trainer.fit(module, loader(4))
        trainer.test(module, loader(1))
        assert len(callback.monitor.steps) == steps


def test_a_checkpoint_that_is_tested_does_not_take_back_what_is_known(lightning: Any, tmp_path: Any) -> None:
    callback, module = a_callback(), a_tested(lightning)
    trainer = a_trainer(lightning, callback, max_epochs=8)
    trainer.fit(module, loader())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    monitor = callback.monitor
    trainer.test(module, loader(1), ckpt_path=tmp_path / "last.ckpt", weights_only=False)
    assert callback.monitor is monitor
    assert len(monitor.steps) == 64
    assert told(callback) == {}


def test_in_plain_pytorch() -> None:
    model = weighted(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)))
    with Monitor(model, sinks=[], on_alert="log") as monitor, monitor.evaluation("test"), torch.no_grad():
        model.eval()(torch.randn(8, 1, 6, 6))
    assert [(a.code, a.layer) for a in monitor.alerts] == [("BN404", "1")]
