"""Added time of a training step under bnmonitor, and under the usual alternatives.

One process measures everything, one step of each variant in turn, so that a drift of the machine's speed affects all
variants equally. The images are noise around one pattern for each class, which a network learns soon; with
``--random-labels`` there is nothing to learn, the weights never settle, and bnmonitor's rules judge more often. Prints
Markdown. Run ``python benchmarks/overhead.py [--steps N] [--network small-images|striding] [--random-labels]``.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from resnet import resnet18
from torch import Tensor, nn
from watchers import WATCHERS, Watcher

NETWORKS = {
    "small-images": "ResNet-18 for small images, whose stem does not stride",
    "striding": "ResNet-18 as in timm, whose stem strides",
}
WARM_UP = 5
SAMPLE = 100


class Variant:
    """One model in training, with a watcher or without."""

    def __init__(self, watcher: type[Watcher], folder: Path, *, striding: bool) -> None:
        torch.manual_seed(0)
        self.model = resnet18(striding=striding)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.folder = folder
        self.watcher = watcher(self.model, self.optimizer, folder)
        self.whole: list[float] = []
        self.calls: list[float] = []

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Measure the seconds of the whole step, and those in calls of the watcher."""
        begin = time.perf_counter()
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model(images), labels)
        loss.backward()
        before = time.perf_counter()
        self.watcher.before(loss)
        between = time.perf_counter()
        self.optimizer.step()
        after = time.perf_counter()
        self.watcher.after()
        end = time.perf_counter()
        self.whole.append(end - begin)
        self.calls.append(end - after + between - before)

    def written(self) -> int:
        """Bytes in the run's folder."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())


class Images:
    """Batches of images of ten classes.

    Args:
        learnable: Whether the images of a class are alike.
    """

    def __init__(self, *, learnable: bool) -> None:
        self.patterns = torch.randn(10, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * learnable

    def batch(self) -> tuple[Tensor, Tensor]:
        """Return 32 images and their classes."""
        labels = torch.randint(0, 10, (32,))
        return torch.randn(32, 3, 32, 32) + self.patterns[labels], labels


def variants(folder: Path, *, striding: bool) -> tuple[dict[str, Variant], dict[str, str]]:
    """Make every variant with installed packages; also return why the others are missing."""
    made, missing = {}, {}
    for i, (name, watcher) in enumerate(WATCHERS.items()):
        try:
            made[name] = Variant(watcher, folder / str(i), striding=striding)
        except ImportError as error:
            missing[name] = f"not measured: {error}"
    return made, missing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--network", choices=NETWORKS, action="append")
    parser.add_argument("--random-labels", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(2)
    for network in chosen.network or NETWORKS:
        measure(network, chosen.steps, learnable=not chosen.random_labels)


def measure(network: str, steps: int, *, learnable: bool) -> None:
    """Train all variants of a network, and print what they cost."""
    images = Images(learnable=learnable)
    with tempfile.TemporaryDirectory() as folder:
        made, missing = variants(Path(folder), striding=network == "striding")
        names = list(made)
        for i in range(steps + WARM_UP):
            batch = images.batch()
            turn = i % len(names)
            for name in names[turn:] + names[:turn]:
                made[name].step(*batch)
        for variant in made.values():
            with contextlib.redirect_stdout(sys.stderr):  # other tools print too; this prints Markdown
                variant.watcher.close()
            del variant.whole[:WARM_UP], variant.calls[:WARM_UP]
        print(f"{NETWORKS[network]}{'' if learnable else ', random labels'}; batch 32 at 32x32,")
        report(made, missing, steps)


def report(made: dict[str, Variant], missing: dict[str, str], steps: int) -> None:
    """Print a table, and the parts of bnmonitor's cost."""
    plain = made["nothing"]
    base = statistics.median(plain.whole)
    print(f"{torch.get_num_threads()} threads, {steps} steps of each in turn;")
    print(f"a step takes {1e3 * base:.0f} ms (median).\n")
    print("| watching | records | added per step, median of pairs | in its own calls, mean | written per step |")
    print("|---|---|---|---|---|")
    for name, variant in made.items():
        if name == "nothing":
            continue
        pairs = [a - b for a, b in zip(variant.whole, plain.whole, strict=True)]
        extra = statistics.median(pairs)
        calls = statistics.mean(variant.calls)
        own = "in hooks" if calls < 1e-5 else f"{1e3 * calls:.2f} ms, {100 * calls / base:.2f} %"
        added = f"{1e3 * extra:+.2f} ms, {100 * extra / base:+.2f} %"
        written = f"{variant.written() / (steps + WARM_UP) / 1e3:.1f} kB"
        print("|", " | ".join([name, variant.watcher.records, added, own, written]), "|")
    for name, why in missing.items():
        print(f"| {name} | {why} | | | |")
    account(made, base, steps)


def account(made: dict[str, Variant], base: float, steps: int) -> None:
    """Print the total time that bnmonitor adds: its calls, and the hooks of sampled steps."""
    default, bare = made["bnmonitor"], made["bnmonitor, no activations"]
    # The difference of whole steps is noisier than the effect, except on sampled steps.
    every = made["bnmonitor, activations every 10 steps"]
    sampled = [
        a - b
        for i, (a, b) in enumerate(zip(every.whole, bare.whole, strict=True), start=WARM_UP)
        if i % 10 == 0 and i % SAMPLE  # the step before placed the hooks
    ]
    sample = max(0.0, statistics.median(sampled))
    calls = statistics.mean(default.calls)
    total = calls + sample / SAMPLE
    hooks = made["forward hooks, mean and variance per channel"]
    by_hand = statistics.median(a - b for a, b in zip(hooks.whole, made["nothing"].whole, strict=True))
    quiet = statistics.median(default.calls)
    print(f"\nbnmonitor in all: {1e3 * total:.2f} ms a step, {100 * total / base:.2f} %, of which")
    print(f"{1e3 * calls:.2f} ms in its calls ({1e6 * quiet:.0f} us in a step without a check) and")
    print(f"{1e3 * sample / SAMPLE:.2f} ms in the hooks of sampled steps ({1e3 * sample:.0f} ms, every {SAMPLE}).")
    print(f"The forward hooks add {by_hand / total:.0f} times as much.\n", flush=True)


if __name__ == "__main__":
    main()
