"""A plain PyTorch loop with the monitor; the loop forgets ``train()`` after its first validation.

Run it with ``python plain_pytorch.py [LOG_DIR]``, then look at the curves with ``tensorboard --logdir LOG_DIR``.
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from bnmonitor import Monitor


def main() -> None:
    log_dir = sys.argv[1] if len(sys.argv) > 1 else "runs/plain_pytorch"
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    train, val = random_split(TensorDataset(images, torch.tensor(digits.target)), [1437, 360])
    loader = DataLoader(train, batch_size=64, shuffle=True)

    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10)
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    net.train()  # the fault: only once, before the epochs, so that eval() below stays in force

    with Monitor(net, optimizer=optimizer, log_dir=log_dir) as monitor:
        for epoch in range(3):
            for batch, labels in loader:
                loss = nn.functional.cross_entropy(net(batch), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                monitor.step()
            with monitor.evaluation(), torch.no_grad():
                net.eval()
                batch, labels = val[:]
                accuracy = (net(batch).argmax(1) == labels).float().mean()
            print(f"epoch {epoch}: accuracy {accuracy:.3f}, health {monitor.summary().health:.0f}")

        # The history shows what the rules saw: the running mean does not change from the reported step on.
        last = monitor.steps[-1]
        for alert in monitor.alerts:
            running = monitor.history(alert.layer, "running_mean")
            moved = (running[1:] != running[:-1]).any(1).nonzero().max() + 1
            print(f"{alert.rule}: since step {alert.first_step}, now at {last}")
            print(f"the running mean of layer {alert.layer} last moved at step {monitor.steps[moved]}")


if __name__ == "__main__":
    main()
