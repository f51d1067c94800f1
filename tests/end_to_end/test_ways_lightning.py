"""Ways of training in a Lightning Trainer: each record is true, and the training is unchanged."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bnmonitor import BatchNormMonitor
from bnmonitor.window import Recovery
from tests.end_to_end.ways_lightning import all_states, fitted
from tests.lightning.test_callback import PACKAGES, a_body, a_module, a_trainer, loader
from tests.lightning.test_callback import hooks as hooks_of

pytestmark = [pytest.mark.filterwarnings("ignore:.*"), pytest.mark.filterwarnings("error::bnmonitor.BatchNormWarning")]


@pytest.fixture(params=PACKAGES)
def lightning(request: pytest.FixtureRequest) -> Any:
    return importlib.import_module(request.param)


@pytest.fixture
def one_lightning() -> Any:
    return importlib.import_module(PACKAGES[0])


def test_validation_within_the_epoch_and_accumulated_gradients(lightning: Any) -> None:
    def fit(callbacks: list[Any], module: Any) -> None:
        trainer = a_trainer(lightning, *callbacks, max_epochs=2, accumulate_grad_batches=2, val_check_interval=3)
        trainer.fit(module, loader(6), loader(1))

    callback, _ = fitted(lightning, lambda: a_module(lightning), fit)
    assert callback.monitor.steps == (0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5)
    assert set(all_states(callback)) == {Recovery.EXACT}


def test_bfloat16_precision(one_lightning: Any) -> None:
    def fit(callbacks: list[Any], module: Any) -> None:
        a_trainer(one_lightning, *callbacks, precision="bf16-mixed").fit(module, loader(6))

    callback, _ = fitted(one_lightning, lambda: a_module(one_lightning), fit)
    assert set(all_states(callback)) == {Recovery.EXACT}


@pytest.mark.parametrize("use_buffers", [True, False])
def test_averaged_weights_swapped_in_for_validation(one_lightning: Any, use_buffers: bool) -> None:
    averaging = pytest.importorskip("lightning.pytorch.callbacks.weight_averaging")

    def fit(callbacks: list[Any], module: Any) -> None:
        a_trainer(one_lightning, *callbacks, max_epochs=2, val_check_interval=3).fit(module, loader(6), loader(1))

    callback, _ = fitted(
        one_lightning,
        lambda: a_module(one_lightning),
        fit,
        lambda: [averaging.EMAWeightAveraging(decay=0.8, use_buffers=use_buffers)],
    )
    assert set(all_states(callback)) == {Recovery.EXACT}


def test_stochastic_weight_averaging_with_its_epoch_for_the_statistics(one_lightning: Any) -> None:
    def fit(callbacks: list[Any], module: Any) -> None:
        a_trainer(one_lightning, *callbacks, max_epochs=4).fit(module, loader(4))

    swa = one_lightning.callbacks.StochasticWeightAveraging
    callback, _ = fitted(one_lightning, lambda: a_module(one_lightning), fit, lambda: [swa(0.1, swa_epoch_start=2)])
    found = all_states(callback)
    assert len(found) == 20, "one epoch more than was asked for"
    assert [i for i, state in enumerate(found) if state is not Recovery.EXACT] == [16]
    assert found[16] is Recovery.FOREIGN


def test_backbone_that_is_frozen_for_an_epoch(one_lightning: Any) -> None:
    class WithoutNorms(one_lightning.callbacks.BaseFinetuning):  # type: ignore[misc]
        """Lightning's own BackboneFinetuning lets the norms of a frozen backbone train, whatever its train_bn says."""

        def freeze_before_training(self, pl_module: Any) -> None:
            self.freeze(pl_module.body, train_bn=False)

        def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
            if epoch == 1:
                self.unfreeze_and_add_param_group(pl_module.body, optimizer)

    def make() -> Any:
        module = a_module(one_lightning)
        module.backbone = module.body
        return module

    def fit(callbacks: list[Any], module: Any) -> None:
        a_trainer(one_lightning, *callbacks, max_epochs=3).fit(module, loader(4))

    def stock() -> list[Any]:
        return [one_lightning.callbacks.BackboneFinetuning(1, lambda epoch: 1.0, train_bn=False, initial_denom_lr=2.0)]

    for callbacks, first in ((stock, Recovery.EXACT), (lambda: [WithoutNorms()], Recovery.NO_UPDATE)):
        callback, _ = fitted(one_lightning, make, fit, callbacks)
        assert all_states(callback) == [first] * 4 + [Recovery.EXACT] * 8


def test_manual_optimization_of_two_models(lightning: Any) -> None:
    class Gan(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.maker = nn.Sequential(nn.Linear(5, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 6))
            self.critic = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))

        def training_step(self, batch: Any, batch_idx: int) -> None:
            for optimizer, sign in zip(self.optimizers(), (1, -1), strict=True):
                optimizer.zero_grad()
                made = self.critic(self.maker(torch.randn(16, 5))).mean()
                self.manual_backward(sign * (made - (self.critic(batch[0]).mean() if sign < 0 else 0)))
                optimizer.step()

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(m.parameters(), lr=0.05) for m in (self.maker, self.critic)]

    def make() -> Any:
        lightning.seed_everything(1, verbose=False)
        return Gan()

    def fit(callbacks: list[Any], module: Any) -> None:
        data = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
        a_trainer(lightning, *callbacks, max_epochs=2).fit(module, DataLoader(TensorDataset(data), batch_size=16))

    callback, _ = fitted(lightning, make, fit)
    assert callback.monitor.steps == tuple(range(12))
    assert set(callback.monitor.layers.names) == {"maker.1", "critic.1"}
    assert set(all_states(callback)) == {Recovery.AVERAGED}


@pytest.mark.parametrize("finder", ["lr_find", "scale_batch_size", "LearningRateFinder", "BatchSizeFinder"])
def test_finders_leave_no_trace_in_the_record(one_lightning: Any, finder: str, tmp_path: Path) -> None:
    def make() -> Any:
        module = a_module(one_lightning)
        module.lr, module.batch_size = 0.05, 4
        module.val_dataloader = lambda: loader(1)
        module.train_dataloader = lambda: DataLoader(loader(6).dataset, batch_size=module.batch_size)
        return module

    finders = {"LearningRateFinder": {"num_training_steps": 5}, "BatchSizeFinder": {"max_trials": 2}}

    def callbacks() -> list[Any]:
        return [getattr(one_lightning.callbacks, finder)(**finders[finder])] if finder in finders else []

    def fit(callbacks: list[Any], module: Any) -> None:
        trainer = a_trainer(one_lightning, *callbacks, max_steps=7, max_epochs=-1, default_root_dir=tmp_path)
        tuner = importlib.import_module("lightning.pytorch.tuner").Tuner(trainer)
        if finder == "lr_find":
            tuner.lr_find(module, num_training=5)
        elif finder == "scale_batch_size":
            tuner.scale_batch_size(module, max_trials=2)
        trainer.fit(module)

    callback, _ = fitted(one_lightning, make, fit, callbacks)
    first = callback.monitor.steps[0]
    assert first == (finder in ("scale_batch_size", "BatchSizeFinder")), "Lightning counts on from its trial"
    assert callback.monitor.steps == tuple(range(first, first + 7))
    assert set(all_states(callback)) == {Recovery.EXACT}
    assert callback.state_dict()["watch"]["count"] == 7
    samples = callback.monitor.samples
    assert {tuple(sample.calls.tolist()) for sample in samples} == {(1, 1)}


def test_a_finder_that_runs_again_in_the_middle_of_the_fit(one_lightning: Any, tmp_path: Path) -> None:
    class Again(one_lightning.callbacks.LearningRateFinder):  # type: ignore[misc]
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            return

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch in (0, 1):
                self.lr_find(trainer, pl_module)

    def make() -> Any:
        module = a_module(one_lightning)
        module.lr = 0.05
        module.train_dataloader = lambda: loader(6)
        module.val_dataloader = lambda: loader(1)
        return module

    def fit(callbacks: list[Any], module: Any) -> None:
        a_trainer(one_lightning, *callbacks, max_epochs=3, default_root_dir=tmp_path).fit(module)

    callback, _ = fitted(one_lightning, make, fit, lambda: [Again(num_training_steps=5)])
    steps = len(callback.monitor.steps)
    assert set(all_states(callback)) == {Recovery.EXACT}
    assert callback.state_dict()["watch"]["count"] >= steps
    samples = callback.monitor.samples
    assert {tuple(sample.calls.tolist()) for sample in samples} == {(1, 1)}


def test_fast_dev_run(one_lightning: Any) -> None:
    def fit(callbacks: list[Any], module: Any) -> None:
        a_trainer(one_lightning, *callbacks, fast_dev_run=3).fit(module, loader(4), loader(1))

    callback, _ = fitted(one_lightning, lambda: a_module(one_lightning), fit)
    assert callback.monitor.steps == (0, 1, 2)


def test_a_layer_replaced_at_the_beginning_of_an_epoch(one_lightning: Any) -> None:
    def during(module: Any, batch_idx: int) -> None:
        if module.trainer.current_epoch == 1 and batch_idx == 0:
            module.body[3] = nn.Conv2d(8, 8, 3)
            module.body[4] = nn.Sequential(nn.BatchNorm2d(8))

    callback = BatchNormMonitor(sinks=[], on_alert="log", check_every_n_steps=3)
    module = a_module(one_lightning, a_body(), during=during)
    a_trainer(one_lightning, callback, max_epochs=3).fit(module, loader(4))
    assert callback.monitor.layers.names == ("body.1", "body.4.0")
    assert callback.monitor.steps == tuple(range(6, 12))
    assert hooks_of(module) == 0


def test_fits_of_the_same_and_of_another_module_on_one_callback(one_lightning: Any) -> None:
    callback = BatchNormMonitor(sinks=[], on_alert="log")
    first = a_module(one_lightning)
    for module, steps in ((first, 4), (first, 8), (a_module(one_lightning), 4), (first, 4)):
        a_trainer(one_lightning, callback).fit(module, loader(4))
        assert len(callback.monitor.steps) == steps
        assert set(all_states(callback)) == {Recovery.EXACT}
        assert hooks_of(module) == 0
