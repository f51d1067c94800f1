"""A custom sink that writes the alerts as a Markdown list; one batch of the data contains an infinity.

Like many loops, this one skips the optimizer's step when the loss is not finite, so the weights survive. The batch
enters the running statistics nevertheless, and every later evaluation returns NaN.

Run it with ``python custom_sink.py [LOG_DIR]``.
"""

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bnmonitor import Alert, Monitor, Sink
from bnmonitor.sinks import Console, Run


class Markdown(Sink):
    """Appends a line to a Markdown file for every alert that opens, gets worse or is cleared."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)

    def open(self, run: Run) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._write(f"# BatchNorm layers: {', '.join(run.layers.names)}")

    def alert(self, alert: Alert) -> None:
        box = "x" if alert.state == "cleared" else " "
        where = f"`{alert.layer}`" if alert.layer else "the model"
        what = f"**{alert.severity}** {alert.code} {alert.rule}, {where}, since step {alert.first_step}"
        self._write(f"- [{box}] {what}: {alert.message}. Fix: {alert.advice}")

    def _write(self, line: str) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def main() -> None:
    log_dir = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/custom_sink")
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    images[700, 0, 4, 4] = torch.inf  # the fault
    loader = DataLoader(TensorDataset(images, torch.tensor(digits.target)), batch_size=64)

    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10)
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)

    sinks = [Console(), Markdown(log_dir / "alerts.md")]
    with Monitor(net, optimizer=optimizer, sinks=sinks) as monitor:
        for batch, labels in loader:
            loss = nn.functional.cross_entropy(net(batch), labels)
            optimizer.zero_grad()
            loss.backward()
            if loss.isfinite():
                optimizer.step()
            monitor.step()

    print(f"training loss at the end: {loss:.2f}, as if nothing had happened")
    print((log_dir / "alerts.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
