"""Lightning Fabric: two processes on one machine, each with its part of the data; rank 0 runs the rules and writes.

Run it: ``python examples/fabric.py [LOG_DIR]``, then ``tensorboard --logdir LOG_DIR``.
"""

import sys

import torch
from lightning.fabric import Fabric
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bnmonitor import Monitor


def main(log_dir: str) -> None:
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    fabric.seed_everything(0)
    net = nn.Sequential(nn.Linear(20, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 4))
    model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.1))
    x = torch.randn(2000, 20)
    loader = fabric.setup_dataloaders(DataLoader(TensorDataset(x, x[:, :4].argmax(1)), batch_size=8, shuffle=True))

    # Pass the network itself, not Fabric's wrapper: its layers then keep their names.
    judges = {"log_dir": log_dir, "train_loader": loader} if fabric.is_global_zero else {"sinks": [], "select": ()}
    monitor = Monitor(net, optimizer=optimizer, **judges)
    monitor.share_ranks(model)
    with monitor:
        for _ in range(2):
            for inputs, target in loader:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(inputs), target)
                fabric.backward(loss)
                optimizer.step()
                monitor.step()
            monitor.end_epoch()
    ranks = monitor.ranks
    if fabric.is_global_zero and ranks is not None:
        print(
            f"step {ranks.step}: {ranks.world_size} processes normalize {ranks.size[0]:.0f} values each, of one channel"
        )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/fabric")
