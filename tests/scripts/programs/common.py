"""What the programs share: scikit-learn's digits, a network, and a digest of all that a training leaves."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn


def seed() -> None:
    torch.set_num_threads(1)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    found = load_digits()
    x = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16
    y = torch.tensor(found.target)
    return x[:1280], y[:1280], x[1280:], y[1280:]


class Net(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(width * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(1))


def digest(*modules: nn.Module) -> None:
    """Print a digest of all weights, buffers and modes, and the next random numbers of every kind."""
    found = hashlib.sha256()
    for module in modules:
        for name, tensor in module.state_dict().items():
            found.update(name.encode() + tensor.detach().float().numpy().tobytes())
        found.update(str([m.training for m in module.modules()]).encode())
    print(found.hexdigest(), random.random(), np.random.rand(), torch.rand(()).item())
