"""The loops of docs/integrations.md for libraries in which the loop is the user's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

from bnmonitor import Monitor
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


class Nothing:
    """Takes every call of a loop that is not watched."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None:
        return None


def loaders() -> tuple[Any, Any]:
    return (
        DataLoader(TensorDataset(*data()), batch_size=BATCH, shuffle=True, drop_last=True),
        DataLoader(TensorDataset(*data(96, 2)), batch_size=48),
    )


def accelerate_loop(net: nn.Sequential, watched: bool, rate: float, accumulate: int = 1) -> Any:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    optimizer = torch.optim.SGD(net.parameters(), rate)
    train, val = loaders()
    model, optimizer, train, val = accelerator.prepare(net, optimizer, train, val)
    ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    monitor: Any = Nothing()
    if watched:
        models = {"": accelerator.unwrap_model(model), "ema": ema}
        monitor = Monitor(models, optimizer=optimizer, accumulate_grad_batches=accumulate, sinks=[], on_alert="log")
    with monitor:
        for _ in range(EPOCHS):
            for x, y in train:
                with accelerator.accumulate(model):
                    loss = nn.functional.cross_entropy(model(x), y)
                    accelerator.backward(loss)
                    optimizer.step()
                    monitor.step(loss=loss)  # before the gradients are zeroed
                    optimizer.zero_grad()
                    ema.update_parameters(net)
            with monitor.evaluation(), torch.no_grad():
                ema.eval()
                for x, _ in val:
                    ema(x)
    return monitor


def fabric_loop(net: nn.Sequential, watched: bool, rate: float) -> Any:
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1)
    model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), rate))
    train, val = fabric.setup_dataloaders(*loaders())
    ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    monitor: Any = Nothing()
    if watched:
        monitor = Monitor({"": net, "ema": ema}, optimizer=optimizer, sinks=[], on_alert="log")
    with monitor:
        for _ in range(EPOCHS):
            for x, y in train:
                loss = nn.functional.cross_entropy(model(x), y)
                optimizer.zero_grad()
                fabric.backward(loss)
                optimizer.step()
                monitor.step(loss=loss)
                ema.update_parameters(net)
            with monitor.evaluation(), torch.no_grad():
                ema.eval()
                for x, _ in val:
                    ema(x)
    return monitor


def timm_loop(net: nn.Sequential, watched: bool, rate: float) -> Any:
    from timm.optim import create_optimizer_v2
    from timm.utils import ModelEmaV3

    optimizer = create_optimizer_v2(net, "sgd", rate, weight_decay=1e-4)
    train, val = loaders()
    ema = ModelEmaV3(net, decay=0.9)
    monitor: Any = Nothing()
    if watched:
        monitor = Monitor({"": net, "ema": ema.module}, optimizer=optimizer, sinks=[], on_alert="log")
    with monitor:
        for _ in range(EPOCHS):
            net.train()
            for x, y in train:
                loss = nn.functional.cross_entropy(net(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                monitor.step(loss=loss)
                ema.update(net)
            with monitor.evaluation(), torch.no_grad():
                for x, _ in val:
                    ema.module(x)
    return monitor


LOOPS = {"accelerate": accelerate_loop, "lightning": fabric_loop, "timm": timm_loop}


@pytest.mark.parametrize("library", LOOPS)
def test_a_sound_training_is_the_same_and_its_numbers_are_true(library: str) -> None:
    pytest.importorskip(library, reason=f"{library} is not installed: make test-integrations")

    def train(watched: bool) -> tuple[dict[str, Tensor], Any]:
        net = network()
        truth = Truth(net[4])
        seed(3)
        monitor = LOOPS[library](net, watched, RATE)
        return state(net), (monitor, truth)

    monitor, truth = without_and_with(train)
    assert monitor.failure == ""
    assert monitor.steps[-1] == STEPS - 1
    assert truth.error(monitor, "4") < 1e-4
    assert gradients_seen(monitor, "4") == 1.0
    [average] = [name for name in monitor.layers.names if name.startswith("ema") and name.endswith("4")]
    assert evaluated(monitor, average)
    assert serious(monitor.incidents) == []


@pytest.mark.parametrize("library", LOOPS)
def test_a_rate_that_is_too_high_is_found(library: str) -> None:
    pytest.importorskip(library, reason=f"{library} is not installed: make test-integrations")
    assert serious(LOOPS[library](network(), True, TOO_HIGH).incidents)


def test_accelerates_accumulation_gives_a_row_for_each_micro_batch() -> None:
    pytest.importorskip("accelerate", reason="accelerate is not installed: make test-integrations")
    net = network()
    truth = Truth(net[4])
    seed(3)
    monitor = accelerate_loop(net, True, RATE, accumulate=2)
    assert monitor.steps[-1] == STEPS - 1
    assert truth.error(monitor, "4") < 1e-4
    assert serious(monitor.incidents) == []
