from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tests.integrations.common import (
    BATCH,
    EPOCHS,
    RATE,
    STEPS,
    TOO_HIGH,
    Truth,
    data,
    evaluated,
    gradients_seen,
    network,
    seed,
    serious,
    state,
    without_and_with,
)

pytest.importorskip("fastai", reason="fastai is not installed: make test-integrations")

from fastai.callback.core import Callback
from fastai.callback.schedule import Learner
from fastai.callback.training import GradientAccumulation
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.optimizer import SGD

from bnmonitor.integrations.fastai import BatchNormCallback


def learner(net: nn.Module, *callbacks: Any, bar: bool = False) -> Any:
    seed(3)
    train = DataLoader(TensorDataset(*data()), bs=BATCH, shuffle=True, drop_last=True, num_workers=0)
    valid = DataLoader(TensorDataset(*data(96, 2)), bs=48, num_workers=0)
    learn = Learner(
        DataLoaders(train, valid, device=torch.device("cpu")),
        net,
        nn.functional.cross_entropy,
        opt_func=SGD,
        cbs=list(callbacks),
    )
    if not bar and hasattr(learn, "progress"):
        learn.remove_cb(learn.progress)
    learn.logger = lambda *_: None
    return learn


def test_a_sound_training_is_the_same_and_its_numbers_are_true() -> None:
    def train(watched: bool) -> tuple[dict[str, Tensor], Any]:
        net = network()
        truth, callback = Truth(net[4]), BatchNormCallback(sinks=[])
        learner(net, *([callback] if watched else [])).fit(EPOCHS, RATE)
        return state(net), (callback, truth)

    callback, truth = without_and_with(train)
    monitor = callback.monitor
    assert monitor.failure == ""
    assert monitor.steps[-1] == STEPS - 1
    assert truth.error(monitor, "4") < 1e-4
    assert gradients_seen(monitor, "4") == 1.0
    assert evaluated(monitor, "4")
    assert serious(callback.incidents) == []
    assert monitor.summary().loss > 0
    assert monitor.summary().learning_rates == (RATE,)


def test_a_rate_that_is_too_high_is_found_and_stops_the_fit() -> None:
    callback = BatchNormCallback(sinks=[], on_alert="stop")
    learner(network(), callback).fit(EPOCHS, TOO_HIGH)
    assert serious(callback.incidents)
    assert callback.monitor.steps[-1] < STEPS - 1


def test_accumulated_batches_are_rows() -> None:
    net = network()
    truth, callback = Truth(net[4]), BatchNormCallback(sinks=[])
    learner(net, callback, GradientAccumulation(2 * BATCH)).fit(EPOCHS, RATE)
    assert callback.monitor.steps[-1] == STEPS - 1
    assert truth.error(callback.monitor, "4") < 1e-4
    assert serious(callback.incidents) == []


def test_the_rate_finder_is_not_watched_and_fits_go_on_in_one_record(tmp_path: Path) -> None:
    net = network()
    callback = BatchNormCallback(sinks=[])
    learn = learner(net, callback)
    learn.path = tmp_path
    learn.lr_find(num_it=10, show_plot=False)
    assert callback.watch.monitor is None
    learn.fit(1, RATE)
    learn.fit(1, RATE)
    assert callback.monitor.steps[-1] == STEPS - 1
    learn.get_preds()
    assert callback.monitor.steps[-1] == STEPS - 1
    assert not callback.monitor.running


def test_an_average_that_is_evaluated_is_seen() -> None:
    net = network()
    average = torch.optim.swa_utils.AveragedModel(net, use_buffers=True)

    class Average(Callback):
        def after_batch(self) -> None:
            if self.training:
                average.update_parameters(self.learn.model)

        def after_validate(self) -> None:
            average.eval()

        def before_validate(self) -> None:
            average.eval()
            with torch.no_grad():
                average(data(64, 2)[0])

    callback = BatchNormCallback(sinks=[], ema=average)
    averager = Average()
    averager.order = 56
    learner(net, callback, averager).fit(EPOCHS, RATE)
    assert evaluated(callback.monitor, "ema.module.4")
    assert serious(callback.incidents) == []


def test_the_callback_is_pickled_without_the_model() -> None:
    callback = BatchNormCallback(sinks=[], check_every_n_steps=5)
    learner(network(), callback).fit(1, RATE)
    callback.learn = None
    copied = pickle.loads(pickle.dumps(callback))
    assert copied.watch.monitor is None
    assert copied.watch.settings.check_every_n_steps == 5
