"""Duration of a recalibration, against one evaluation pass over the same batches: ResNet-18 on the CPU, in turn."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from resnet import resnet18

from bnmonitor.remedies.recalibration import recalibrate


def main(rounds: int, batches: int, threads: int) -> None:
    """Print the median time of each over the rounds, and their ratio."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = resnet18()
    loader = [torch.randn(32, 3, 32, 32) for _ in range(batches)]

    @torch.no_grad()
    def evaluate() -> None:
        model.eval()
        for batch in loader:
            model(batch)

    def remedy() -> None:
        recalibrate(model, loader, progress=False)

    passes: dict[str, Callable[[], None]] = {"evaluation": evaluate, "recalibrate": remedy}
    taken: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(rounds + 1):
        for name, run in passes.items():
            begin = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - begin)
    median = {name: statistics.median(times[1:]) for name, times in taken.items()}
    for name, seconds in median.items():
        print(f"{name:12} {1e3 * seconds / batches:7.1f} ms a batch")
    print(f"ratio        {median['recalibrate'] / median['evaluation']:7.3f}")


if __name__ == "__main__":
    main(*(int(word) for word in (sys.argv[1:] or ("7", "6", "2"))))
