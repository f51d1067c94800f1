"""The short trainings in which an error is raised."""

from __future__ import annotations

import contextlib
import io
import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bnmonitor import BatchNormMonitor, Monitor
from tests.end_to_end.test_promises import attributes, hooks

STEPS = 6
SETTINGS: dict[str, Any] = {"check_every_n_steps": 2, "sample_every_n_steps": 2, "log_every_n_steps": 2, "probe": True}


@dataclass
class Ended:
    """What a training leaves behind."""

    error: BaseException | None = None
    constructing: bool = False
    """Whether the error came from the constructor of the monitor."""
    left: dict[str, Any] = field(default_factory=dict)
    unclean: list[str] = field(default_factory=list)
    """What bnmonitor has left on the model."""


class Phase:
    """Whether the constructor of the monitor runs."""

    constructing = False


@contextlib.contextmanager
def constructing() -> Iterator[None]:
    """The constructor of the monitor runs."""
    Phase.constructing = True
    yield
    Phase.constructing = False


def a_model() -> nn.Sequential:
    """A layer of each kind that is recorded in a way of its own."""
    return nn.Sequential(
        nn.Conv1d(2, 4, 1),
        nn.BatchNorm1d(4),
        nn.ReLU(),
        nn.BatchNorm1d(4, momentum=None),
        nn.BatchNorm1d(4, track_running_stats=False),
        nn.InstanceNorm1d(4, track_running_stats=True),
        nn.Dropout(0.1),
        nn.Flatten(),
        nn.Linear(12, 2),
    )


def loop(folder: Path, watch: bool) -> Ended:
    """A loop in plain PyTorch, with an evaluation, a checkpoint and all sinks."""
    _seed()
    model = a_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses: list[float] = []
    monitors: list[Monitor] = []

    def train() -> None:
        monitor = None
        if watch:
            with constructing():
                monitor = Monitor(model, optimizer=optimizer, log_dir=folder, **SETTINGS)
            monitors.append(monitor)
        with monitor or contextlib.nullcontext():
            for step in range(STEPS):
                optimizer.zero_grad()
                x = torch.randn(4, 2, 3) * (1 + random.random() + 1e3 * (step > 3))
                loss = model(x).square().mean()
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
                if monitor is not None:
                    monitor.step()
                if step == 2:
                    with monitor.evaluation() if monitor is not None else contextlib.nullcontext(), torch.no_grad():
                        model.eval()
                        losses.append(float(model(x).sum()))
                    model.train()
                if step == 3 and monitor is not None:
                    monitor.load_state_dict(monitor.state_dict())
                    str(monitor.summary())
            if monitor is not None:
                monitor.end_epoch(0)

    return _run(train, model, [optimizer], losses, lambda: [monitor.close() for monitor in monitors])


def fit(folder: Path, watch: bool) -> Ended:
    """A fit of a Trainer, with evaluations, a checkpoint and all sinks."""
    _seed()
    losses: list[float] = []

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = a_model()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = self.net(batch[0] * (1 + random.random())).square().mean()
            losses.append(float(loss.detach()))
            return loss  # type: ignore[no-any-return]

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            losses.append(float(self.net(batch[0]).sum()))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    module, callbacks = Module(), list[Any]()
    data = DataLoader(TensorDataset(torch.randn(8, 2, 3)), batch_size=4)
    optimizers: list[Any] = []

    def train() -> None:
        if watch:
            with constructing():
                callbacks.append(BatchNormMonitor(**SETTINGS))
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=2,
            callbacks=callbacks,
            logger=TensorBoardLogger(folder),
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(module, data, data)
        optimizers.extend(trainer.optimizers)

    def close() -> None:
        for callback in callbacks:
            if isinstance(callback, BatchNormMonitor) and callback._monitor is not None:
                callback.monitor.close()

    return _run(train, module, optimizers, losses, close)


TRAININGS: dict[str, Callable[[Path, bool], Ended]] = {"loop": loop, "fit": fit}


def _seed() -> None:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)


def _run(
    train: Callable[[], None], model: nn.Module, optimizers: list[Any], losses: list[float], close: Callable[[], object]
) -> Ended:
    ended, before = Ended(), attributes(model)
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            train()
        except BaseException as error:
            ended.error, ended.constructing = error, Phase.constructing
        Phase.constructing = False
        if hooks(model):
            ended.unclean.append(f"{hooks(model)} hooks are left")
        ended.left = {
            "state": {key: value.clone() for key, value in model.state_dict().items()},
            "optimizers": [each.state_dict() for each in optimizers],
            "losses": losses,
            "modes": [m.training for m in model.modules()],
            "torch": torch.get_rng_state(),
            "python": random.getstate(),
            "numpy": str(np.random.get_state()),
            "grad": torch.is_grad_enabled(),
            "inference": torch.is_inference_mode_enabled(),
            "dtype": str(torch.get_default_dtype()),
        }
        try:
            close()
        except Exception as error:
            ended.unclean.append(f"close() raised {type(error).__name__}: {error}")
    if hooks(model):
        ended.unclean.append(f"{hooks(model)} hooks are left after close()")
    changed = {name for name, found in attributes(model).items() if found != before.get(name)} - {""}
    if changed:
        ended.unclean.append(f"attributes of {sorted(changed)} have changed")
    after = model.state_dict()
    if any(not torch.equal(value.nan_to_num(), after[key].nan_to_num()) for key, value in ended.left["state"].items()):
        ended.unclean.append("close() has changed the model")
    return ended
