"""The callback keeps the contract of integrations, in both packages of Lightning."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from bnmonitor import BatchNormMonitor, Monitor
from bnmonitor.testing.contracts import IntegrationContract
from bnmonitor.testing.contracts.integrations import Batch

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*number of training batches"),
    pytest.mark.filterwarnings("ignore:.*val_dataloader"),
    pytest.mark.filterwarnings("ignore:.*Trying to infer the `batch_size`"),
]


class Lightning(IntegrationContract):
    package: str
    accumulate = 1

    def fit(
        self, model: nn.Module, batches: Sequence[Batch], *, watch: bool, held_out: Sequence[Batch] = ()
    ) -> Monitor | None:
        lightning: Any = import_module(self.package)

        class Module(lightning.LightningModule):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
                return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

            def validation_step(self, batch: Batch, batch_idx: int) -> None:
                self.model(batch[0])

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

        callback = BatchNormMonitor(sinks=[], on_alert="log", sample_every_n_steps=1)
        trainer = lightning.Trainer(
            max_epochs=1,
            accelerator="cpu",
            accumulate_grad_batches=self.accumulate,
            callbacks=[callback] if watch else [],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        loaders = [DataLoader(data, batch_size=None) for data in (batches, held_out) if data]  # type: ignore[arg-type]
        trainer.fit(Module(), *loaders)
        return callback.monitor if watch else None


class TestLightningPytorch(Lightning):
    package = "lightning.pytorch"


class TestPytorchLightning(Lightning):
    package = "pytorch_lightning"


class TestAccumulation(Lightning):
    package = "lightning.pytorch"
    accumulate = 2
