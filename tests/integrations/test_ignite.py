from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

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

pytest.importorskip("ignite", reason="PyTorch Ignite is not installed: make test-integrations")

from ignite.engine import Engine, Events, create_supervised_evaluator, create_supervised_trainer
from ignite.handlers import EMAHandler
from ignite.metrics import Accuracy

from bnmonitor.integrations.ignite import BatchNormHandler


def loaders() -> tuple[Any, Any]:
    return (
        DataLoader(TensorDataset(*data()), batch_size=BATCH, shuffle=True, drop_last=True),
        DataLoader(TensorDataset(*data(96, 2)), batch_size=48),
    )


def fit(
    net: nn.Module, attach: Any = None, *, rate: float = RATE, accumulate: int = 1, named: bool = True
) -> tuple[Any, Any]:
    seed(3)
    optimizer = torch.optim.SGD(net.parameters(), rate)
    trainer = create_supervised_trainer(
        net, optimizer, nn.functional.cross_entropy, gradient_accumulation_steps=accumulate
    )
    evaluator = create_supervised_evaluator(net, metrics={"accuracy": Accuracy()})
    train, val = loaders()
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(val))
    if attach is not None:
        attach(trainer, evaluator, optimizer, named)
    trainer.run(train, max_epochs=EPOCHS)
    return trainer, evaluator


@pytest.mark.parametrize("named", [True, False])
def test_a_sound_training_is_the_same_and_its_numbers_are_true(named: bool) -> None:
    def train(watched: bool) -> tuple[dict[str, Tensor], Any]:
        net = network()
        truth = Truth(net[4])
        handlers: list[BatchNormHandler] = []

        def attach(trainer: Any, evaluator: Any, optimizer: Any, named: bool) -> None:
            handler = BatchNormHandler(net, optimizer, sinks=[])
            handlers.append(handler.attach(trainer, [evaluator] if named else ()))

        fit(net, attach if watched else None, named=named)
        return state(net), (handlers, truth)

    [handler], truth = without_and_with(train)
    monitor = handler.monitor
    assert monitor.failure == ""
    assert monitor.steps[-1] == STEPS - 1
    assert truth.error(monitor, "4") < 1e-4
    assert gradients_seen(monitor, "4") == 1.0
    assert evaluated(monitor, "4")
    assert serious(handler.incidents) == []
    assert monitor.summary().loss > 0


def test_a_rate_that_is_too_high_is_found_and_stops_the_engine() -> None:
    net = network()
    handlers: list[BatchNormHandler] = []

    def attach(trainer: Any, evaluator: Any, optimizer: Any, named: bool) -> None:
        handlers.append(BatchNormHandler(net, optimizer, sinks=[], on_alert="stop").attach(trainer, [evaluator]))

    trainer, _ = fit(net, attach, rate=TOO_HIGH)
    assert serious(handlers[0].incidents)
    assert trainer.state.iteration < STEPS


def test_accumulated_batches_are_rows() -> None:
    net = network()
    truth = Truth(net[4])
    handlers: list[BatchNormHandler] = []

    def attach(trainer: Any, evaluator: Any, optimizer: Any, named: bool) -> None:
        handler = BatchNormHandler(net, optimizer, sinks=[], accumulate_grad_batches=2)
        handlers.append(handler.attach(trainer, [evaluator]))

    fit(net, attach, accumulate=2)
    assert truth.error(handlers[0].monitor, "4") < 1e-4
    assert serious(handlers[0].incidents) == []


def test_an_average_that_is_evaluated_is_seen() -> None:
    net = network()
    seed(3)
    optimizer = torch.optim.SGD(net.parameters(), RATE)
    trainer = create_supervised_trainer(net, optimizer, nn.functional.cross_entropy)
    ema = EMAHandler(net, momentum=0.1, handle_buffers="ema_train")
    ema.attach(trainer, name="ema_momentum", event=Events.ITERATION_COMPLETED)
    ema.ema_model.eval()
    evaluator = create_supervised_evaluator(ema.ema_model, metrics={"accuracy": Accuracy()})
    train, val = loaders()
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(val))
    handler = BatchNormHandler(net, optimizer, ema=ema, sinks=[]).attach(trainer, [evaluator])
    trainer.run(train, max_epochs=EPOCHS)
    assert handler.monitor.failure == ""
    assert evaluated(handler.monitor, "ema.4")


def test_an_error_passes_as_without_the_handler_and_another_run_goes_on() -> None:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), RATE)
    trainer = create_supervised_trainer(net, optimizer, nn.functional.cross_entropy)
    handler = BatchNormHandler(net, optimizer, sinks=[]).attach(trainer)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=5), _raise)
    with pytest.raises(ZeroDivisionError):
        trainer.run(loaders()[0], max_epochs=1)
    first = handler.monitor
    other = create_supervised_trainer(net, optimizer, nn.functional.cross_entropy)
    handler.attach(other)
    other.run(loaders()[0], max_epochs=1)
    assert handler.monitor is first
    assert not first.running
    assert not net._forward_pre_hooks
    assert all(not m._forward_hooks for m in net.modules())


def test_an_engine_without_a_model_is_said_once_and_runs_on() -> None:
    engine = Engine(lambda engine, batch: None)
    BatchNormHandler(sinks=[]).attach(engine)
    with pytest.warns(match="needs the model"):
        engine.run([1, 2, 3])
    assert engine.state.iteration == 3


def _raise(engine: Any) -> None:
    raise ZeroDivisionError
