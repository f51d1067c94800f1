"""Three short trainings on scikit-learn's digits: a healthy one, and two with a planted fault."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from rich import get_console
from rich.table import Table
from rich.text import Text
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bnmonitor._text import shorten
from bnmonitor.display import STRONG, WORSE, strong
from bnmonitor.lightning import BatchNormMonitor
from bnmonitor.results import Alert, Severity

CHANGE = 66
"""The step at which the learning rate changes: the end of the third epoch."""

Loaders = tuple[DataLoader[tuple[Tensor, ...]], DataLoader[tuple[Tensor, ...]]]


@dataclass(frozen=True)
class Run:
    """One training of the demo.

    Attributes:
        name: Also its directory.
        story: One line on the training.
        planted: Code of the rule that has to name the fault; None: nothing is wrong.
        where: Prefix of the layer in which the fault is.
        make: Makes the module and the data.
        epochs: How long it trains.
    """

    name: str
    story: str
    planted: str | None
    where: str
    make: Callable[[], tuple[Digits, Loaders]]
    epochs: int


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Return convolution, normalization and ReLU, in this order."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class Digits(pl.LightningModule):
    """A small convolutional network.

    Args:
        rate: The learning rate.
        factor: Factor of the learning rate at step :data:`CHANGE`.
    """

    def __init__(self, rate: float = 0.1, factor: float = 0.1) -> None:
        super().__init__()
        self.backbone = nn.Sequential(block(1, 16), block(16, 32, stride=2), block(32, 32), block(32, 64, stride=2))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
        self.rate, self.factor = rate, factor

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of ``[N, 1, 8, 8]`` images."""
        logits: Tensor = self.head(self.backbone(images))
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        images, digits = batch
        loss = nn.functional.cross_entropy(self(images), digits)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the accuracy."""
        images, digits = batch
        self.log("accuracy", (self(images).argmax(1) == digits).float().mean())

    def configure_optimizers(self) -> Any:
        """Return SGD with a learning rate in two steps, over the parameters that are not frozen."""
        wanted = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(wanted, lr=self.rate, momentum=0.9, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [CHANGE], self.factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def digits(shift: float = 0.0, contrast: float = 1.0) -> Loaders:
    """Return the digits as loaders for training and validation, with a shift in brightness and contrast."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    images = (images - images.mean()) / images.std() * contrast + shift
    labels = torch.tensor(data.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    parts = [TensorDataset(images[part], labels[part]) for part in (order[:1440], order[1440:])]
    return (
        DataLoader(parts[0], 64, shuffle=True, drop_last=True),
        DataLoader(parts[1], 120),
    )


def healthy() -> tuple[Digits, Loaders]:
    """Return a sound network and its data."""
    return Digits(), digits()


def too_fast() -> tuple[Digits, Loaders]:
    """Return a network with a learning rate that rises a hundredfold, as if a schedule had the wrong sign."""
    return Digits(factor=100.0), digits()


def leaking() -> tuple[Digits, Loaders]:
    """Return a network to fine-tune on other images, with a backbone that only ``requires_grad`` freezes."""
    model, data = healthy()
    trainer(None, 4, None).fit(model, data[0])
    model.rate = 0.02
    model.backbone.requires_grad_(False)
    return model, digits(shift=0.8, contrast=1.6)


RUNS = (
    Run("healthy", "a small network, a sound learning rate", None, "", healthy, 12),
    Run("learning_rate", f"at step {CHANGE} the learning rate goes from 0.1 to 10", "BN704", "backbone.", too_fast, 5),
    Run("frozen_backbone", "fine-tuning on brighter images, backbone frozen", "BN402", "backbone.0.1", leaking, 6),
)


def demo(log_dir: Path) -> bool:
    """Train all three networks, print the findings, and print how to open them in TensorBoard.

    Returns:
        Whether every planted fault was named, in the right layer, and the healthy run has no alert.
    """
    console = get_console()
    log_dir.mkdir(parents=True, exist_ok=True)
    table = Table(title="What was planted, and what was found", title_justify="left", show_lines=True)
    for title in ("run", "planted", "found"):
        table.add_column(title, overflow="fold")
    right = True
    with _quiet():
        for run in RUNS:
            console.rule(f"[bold]{run.name}[/bold]: {run.story}", align="left")
            alerts = _fit(run, log_dir)
            serious = [a for a in alerts if a.severity >= Severity.WARNING]
            named = [a for a in serious if a.code == run.planted and (a.layer or "").startswith(run.where)]
            good = bool(named) if run.planted else not serious
            right &= good
            table.add_row(run.name, run.planted or "nothing", _verdict(good, named or serious))
    console.print(table)
    console.print(Text(f"See the maps and curves: {_tensorboard(log_dir)}", style=STRONG), soft_wrap=True)
    return right


def _fit(run: Run, log_dir: Path) -> tuple[Alert, ...]:
    pl.seed_everything(0, verbose=False)
    model, (train, validation) = run.make()
    shutil.rmtree(log_dir / run.name, ignore_errors=True)
    monitor = BatchNormMonitor()
    trainer(TensorBoardLogger(log_dir, name=run.name, version=""), run.epochs, monitor).fit(model, train, validation)
    return monitor.alerts


def trainer(logger: TensorBoardLogger | None, epochs: int, monitor: BatchNormMonitor | None) -> pl.Trainer:
    """Return the Trainer of every run: on the CPU, without bars and summaries."""
    return pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=logger or False,
        callbacks=[monitor] if monitor else [],
        log_every_n_steps=5,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _verdict(good: bool, alerts: list[Alert]) -> Text:
    text = Text("✓ " if good else "✗ not as planted: ", style=STRONG if good else strong(WORSE))
    if not alerts:
        return text.append("no alert", style=f"not {STRONG}")
    first = alerts[0]
    text.append(f"{first.code} {first.rule} in {shorten(first.layer or 'the model', 40)}", style=f"not {STRONG}")
    text.append(f", since step {first.first_step}\n{first.message}\nfix: {first.advice}", style=f"not {STRONG}")
    return text


def _tensorboard(log_dir: Path) -> str:
    beside = Path(sys.executable).with_name("tensorboard")
    found = shutil.which("tensorboard")
    program = "tensorboard" if found and Path(found) == beside else os.path.relpath(beside)
    return f"{program} --logdir {log_dir}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's own advice."""
    names = ("pytorch_lightning", "lightning.pytorch")
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(pytorch_)?lightning.*")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
