"""What bnmonitor adds to a training step, beside a forward hook that records the same statistics.

Everything is measured in one process, one step of each variant in turn, so that a drift of the machine's speed hits all
alike. Run ``python benchmarks/overhead.py [--steps N]``.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from bnmonitor import Monitor
from bnmonitor.sinks import TensorBoard

WARM_UP = 5
SAMPLE = 100


class Block(nn.Module):
    """The basic block of ResNet-18."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        plain = stride == 1 and inputs == outputs
        self.skip = (
            nn.Identity()
            if plain
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.skip(x))


def resnet18() -> nn.Module:
    """ResNet-18 for 32x32 images: 20 BatchNorm layers, 4 800 channels."""
    widths = [64, 64, 64, 128, 128, 256, 256, 512, 512]
    blocks = [Block(a, b, 1 if a == b else 2) for a, b in pairwise(widths)]
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, 1, 1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


class HookMonitor:
    """What one would write by hand: mean and variance of each layer's input, in a forward hook."""

    def __init__(self, model: nn.Module) -> None:
        self.rows: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for name, module in model.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                self.rows[name] = []
                module.register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            with torch.no_grad():
                x = args[0]
                self.rows[name] = [*self.rows[name][-63:], (x.mean((0, 2, 3)), x.var((0, 2, 3)))]

        return hook


class Variant:
    """One model in training, with or without somebody watching."""

    def __init__(self, watch: str, log_dir: str) -> None:
        torch.manual_seed(0)
        self.model = resnet18()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.monitor: Monitor | None = None
        if watch == "hook":
            HookMonitor(self.model)
        elif watch:
            every = {"bnmonitor": SAMPLE, "bnmonitor, buffers only": 0}[watch]
            self.monitor = Monitor(
                self.model, optimizer=self.optimizer, sample_every_n_steps=every, sinks=[TensorBoard(log_dir)]
            ).start()

    def step(self, images: Tensor, labels: Tensor) -> tuple[float, float]:
        """Return the seconds of the whole step, and of the monitor's call alone."""
        begin = time.perf_counter()
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(images), labels).backward()
        self.optimizer.step()
        middle = time.perf_counter()
        if self.monitor is not None:
            self.monitor.step()
        end = time.perf_counter()
        return end - begin, end - middle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    steps = parser.parse_args().steps
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        names = ("", "bnmonitor", "bnmonitor, buffers only", "hook")
        variants = {name: Variant(name, f"{folder}/{name}") for name in names}
        whole: dict[str, list[float]] = {name: [] for name in names}
        call: dict[str, list[float]] = {name: [] for name in names}
        for i in range(steps + WARM_UP):
            images, labels = torch.randn(32, 3, 32, 32), torch.randint(0, 10, (32,))
            order = names[i % len(names) :] + names[: i % len(names)]
            for name in order:
                seconds, alone = variants[name].step(images, labels)
                if i >= WARM_UP:
                    whole[name].append(seconds)
                    call[name].append(alone)
    plain = sum(whole[""])
    print(f"ResNet-18, batch 32 at 32x32, {torch.get_num_threads()} threads, {steps} steps of each, interleaved")
    print(f"{'plain step':26} median {1e3 * statistics.median(whole['']):7.2f} ms")
    for name in names[1:]:
        extra = [a / b - 1 for a, b in zip(whole[name], whole[""], strict=True)]
        print(f"{name:26} median {1e3 * statistics.median(whole[name]):7.2f} ms", end="")
        print(f"   {100 * statistics.median(extra):+6.2f} % (median of pairs)", end="")
        if name != "hook":
            print(f"   Monitor.step() alone: median {1e6 * statistics.median(call[name]):.0f} us", end="")
            print(f", mean {1e6 * statistics.mean(call[name]):.0f} us = {100 * sum(call[name]) / plain:.3f} %", end="")
        print()
    sampled = [
        a - b
        for i, (a, b) in enumerate(zip(whole["bnmonitor"], whole["bnmonitor, buffers only"], strict=True))
        if (i + WARM_UP) % SAMPLE == 0
    ]
    if sampled:
        each = statistics.median(sampled)
        print(f"a sampled step takes {1e3 * each:.1f} ms more: {each / plain * steps:.3f} % of all steps")


if __name__ == "__main__":
    main()
