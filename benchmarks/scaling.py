"""How the cost of a step grows with layers and channels, on layers that are updated without a network around them.

For each size: the bare multi-tensor copy of the same buffers, a step without a check, and the average over all steps
with checks every 10. Run ``python benchmarks/scaling.py``.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from bnmonitor import Monitor

SIZES = ((20, 240), (53, 501), (100, 100), (1000, 26), (1000, 256), (10000, 100))
"""Layers, and channels of each: ResNet-18, ResNet-50, and beyond."""
STEPS = 100


class Layers(nn.Module):
    """Nothing but normalization layers, with gradients."""

    def __init__(self, layers: int, channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm1d(channels) for _ in range(layers))
        for norm in self.norms:
            norm.weight.grad = torch.randn(channels)

    @torch.no_grad()
    def update(self) -> None:
        """Update the running statistics as a training step does."""
        for norm in self.norms:
            norm.running_mean.mul_(0.9).add_(torch.randn_like(norm.running_mean), alpha=0.1)
            norm.running_var.mul_(0.9).add_(torch.rand_like(norm.running_var).add_(0.5), alpha=0.1)
            norm.num_batches_tracked.add_(1)


def clock(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def bare_copy(model: Layers) -> Callable[[], object]:
    """Return a copy of the running statistics, gamma and beta of all layers into flat tensors."""
    tensors = [[n.running_mean, n.running_var, n.weight, n.bias] for n in model.norms]
    source = [t.detach() for group in tensors for t in group]
    flat = torch.empty(sum(t.numel() for t in source))
    target = list(flat.split([t.numel() for t in source]))
    return lambda: torch._foreach_copy_(target, source)


def main() -> None:
    torch.set_num_threads(2)
    print(
        f"{'layers':>7} {'channels':>9} {'bare copy':>11} {'no check':>11} {'ratio':>6} {'average':>11} {'check':>11}"
    )
    for layers, channels in SIZES:
        model = Layers(layers, channels)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        copy = bare_copy(model)
        with Monitor(model, optimizer=optimizer, sample_every_n_steps=0, log_every_n_steps=0, sinks=[]) as monitor:
            plain, checked, copies = [], [], []
            for step in range(STEPS + 80):
                model.update()
                copies.append(clock(copy))
                seconds = clock(monitor.step)
                if step >= 80:
                    (checked if (step + 1) % 10 == 0 else plain).append(seconds)
        bare, quiet, check = (1e6 * statistics.median(t) for t in (copies, plain, checked))
        average = 1e6 * (sum(plain) + sum(checked)) / STEPS
        head = f"{layers:7} {layers * channels:9} {bare:8.0f} us"
        print(f"{head} {quiet:8.0f} us {quiet / bare:6.2f} {average:8.0f} us {check:8.0f} us", flush=True)


if __name__ == "__main__":
    main()
