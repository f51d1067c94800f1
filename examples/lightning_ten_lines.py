"""A Lightning Trainer with the monitor, on a network with a momentum copied from Keras.

Run it with ``python lightning_ten_lines.py [LOG_DIR]``, then look at the curves with ``tensorboard --logdir LOG_DIR``.
"""

import sys

import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bnmonitor import BatchNormMonitor


class Digits(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, bias=False),
            nn.BatchNorm2d(16, momentum=0.99),  # the fault: in PyTorch this is the weight of the newest batch
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * 36, 10),
        )

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self.net(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def main() -> None:
    log_dir = sys.argv[1] if len(sys.argv) > 1 else "runs/lightning_ten_lines"
    pl.seed_everything(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    data = TensorDataset(images, torch.tensor(digits.target))
    loader = DataLoader(data, batch_size=64, shuffle=True, drop_last=True)
    monitor = BatchNormMonitor()
    trainer = pl.Trainer(max_epochs=3, default_root_dir=log_dir, accelerator="cpu", callbacks=[monitor])
    trainer.fit(Digits(), loader)
    for alert in monitor.alerts:
        print(f"{alert.severity}: {alert.code} in {alert.layer}, {alert.state}. Fix: {alert.advice}")


if __name__ == "__main__":
    main()
