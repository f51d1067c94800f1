"""Sound trainings under Lightning, with the callbacks that touch BatchNorm most."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer, seed_everything
from pytorch_lightning.callbacks import BackboneFinetuning, Callback, LearningRateFinder, StochasticWeightAveraging
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.optim.swa_utils import get_ema_avg_fn
from torch.utils.data import DataLoader, TensorDataset

from bnmonitor import BatchNormMonitor
from tests.end_to_end.faults import data
from tests.end_to_end.faults.networks import Head, Residual, conv
from tests.end_to_end.faults.trial import Outcome

try:
    from pytorch_lightning.callbacks import WeightAveraging
except ImportError:  # before 2.6
    WeightAveraging = None


class Classifier(LightningModule):
    """A residual network on the digits, in two parts."""

    def __init__(self, lr: float = 0.05, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.lr = lr
        self.backbone = nn.Sequential(conv(1, 12), Residual(12), conv(12, 16, stride=2))
        self.head = nn.Sequential(conv(16, 16), Head(16, dropout=dropout))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return F.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        self.log("loss", F.cross_entropy(self.head(self.backbone(batch[0])), batch[1]))

    def configure_optimizers(self) -> Any:
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.SGD(trained, self.lr, momentum=0.9)


def fit(
    *callbacks: Callback,
    epochs: int = 3,
    **options: Any,
) -> Outcome:
    """Fit, and return what was told."""
    quiet = logging.getLogger("pytorch_lightning"), logging.getLogger("lightning.pytorch")
    levels = [log.level for log in quiet]
    for log in quiet:
        log.setLevel(logging.ERROR)
    seed_everything(0, verbose=False)
    source, module = data.images(), Classifier()
    train = DataLoader(TensorDataset(source.x, source.y), 32, shuffle=True, drop_last=True)
    val = DataLoader(TensorDataset(source.x_val, source.y_val), 128)
    monitor = BatchNormMonitor(sinks=[], on_alert="log", select=("all",))
    try:
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
            warnings.simplefilter("ignore")
            trainer = Trainer(
                max_epochs=epochs,
                accelerator="cpu",
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=folder,
                callbacks=[monitor, *callbacks],
                **options,
            )
            trainer.fit(module, train, val)
    finally:
        for log, level in zip(quiet, levels, strict=True):
            log.setLevel(level)
    told = [{**a.to_dict(), "level": int(a.severity), "opened": a.last_step} for a in monitor.alerts]
    return Outcome("fit", "", (), "residual", 0, epochs * len(train), told=told)


FITS: dict[str, Callable[[], Outcome]] = {
    "plain": fit,
    "rate-finder": lambda: fit(LearningRateFinder(num_training_steps=40), epochs=2),
    "finetuning": lambda: fit(BackboneFinetuning(unfreeze_backbone_at_epoch=1, verbose=False)),
    "accumulation": lambda: fit(accumulate_grad_batches=2),
    "clipping": lambda: fit(gradient_clip_val=1.0),
    "weights-averaged-late": lambda: fit(StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=2), epochs=4),
}
"""Fits by name."""

if WeightAveraging is not None:
    FITS["averaged-with-statistics"] = lambda: fit(WeightAveraging(avg_fn=get_ema_avg_fn(0.9), use_buffers=True))
