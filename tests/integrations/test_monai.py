from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

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
pytest.importorskip("monai", reason="MONAI is not installed: make test-integrations")

from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import ValidationHandler

from bnmonitor.integrations.ignite import BatchNormHandler


def rows(samples: int = 1280, value: int = 1) -> list[dict[str, Tensor]]:
    return [{"image": a, "label": b} for a, b in zip(*data(samples, value), strict=True)]


def fit(net: nn.Module, handlers: Any, rate: float = RATE) -> Any:
    seed(3)
    evaluator = SupervisedEvaluator("cpu", DataLoader(rows(96, 2), batch_size=48), net)  # type: ignore[arg-type]
    trainer = SupervisedTrainer(
        "cpu",  # type: ignore[arg-type]
        EPOCHS,
        DataLoader(rows(), batch_size=BATCH, shuffle=True),
        net,
        torch.optim.SGD(net.parameters(), rate),
        nn.functional.cross_entropy,
        train_handlers=[ValidationHandler(interval=1, validator=evaluator), *handlers(evaluator)],
    )
    trainer.run()
    return trainer


@pytest.mark.parametrize("named", [True, False])
def test_a_sound_training_is_the_same_and_its_numbers_are_true(named: bool) -> None:
    def train(watched: bool) -> tuple[dict[str, Tensor], Any]:
        net = network()
        truth, made = Truth(net[4]), []

        def handlers(evaluator: Any) -> list[Any]:
            made.append(BatchNormHandler(evaluators=[evaluator] if named else (), sinks=[]))
            return made if watched else []

        fit(net, handlers)
        return state(net), (made[0], truth)

    handler, truth = without_and_with(train)
    monitor = handler.monitor
    assert monitor.failure == ""
    assert monitor.steps[-1] == STEPS - 1
    assert truth.error(monitor, "4") < 1e-4
    assert gradients_seen(monitor, "4") == 1.0
    assert evaluated(monitor, "4")
    assert serious(handler.incidents) == []
    assert monitor.summary().loss > 0


def test_a_rate_that_is_too_high_is_found() -> None:
    handler = BatchNormHandler(sinks=[], on_alert="log")
    fit(network(), lambda evaluator: [handler], TOO_HIGH)
    assert serious(handler.incidents)
