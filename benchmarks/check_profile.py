"""Where a check goes: time and tensor operations by part, by operation and by function.

ResNet-18 with a striding stem in training, at 32x32 with a batch of 32, and the 53 layers of ResNet-50 without a
network around them. One thread, processor time of the operations alone: what Python takes between them is not in it.
Prints Markdown. Run ``python benchmarks/check_profile.py [--rows N]``.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from time import thread_time
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from resnet import resnet18
from rules import RESNET_50, chained
from scaling import Layers
from torch import nn

import bnmonitor
from bnmonitor import Monitor, Severity
from tests.operations import Operations

PACKAGE = str(Path(bnmonitor.__file__).parent) + "/"
WARM_UP = 110
CHECKS = 10
"""As the rules judge at one of five, a multiple of five."""
PARTS = ("drain", "advance", "settle")
"""Functions that are a part of their own, besides the rules."""


class Profile(Operations):
    """Operations and their seconds, by part of the check, by name and by the function of bnmonitor that ran them."""

    def __init__(self) -> None:
        super().__init__()
        self.count: dict[str, Counter[str]] = {kind: Counter() for kind in ("part", "operation", "function")}
        self.seconds: dict[str, Counter[str]] = {kind: Counter() for kind in self.count}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and book it."""
        part, function = places(sys._getframe(1))
        begin = thread_time()
        result = super().__torch_dispatch__(func, types, args, kwargs)
        took = thread_time() - begin
        for kind, name in (("part", part), ("operation", str(func.overloadpacket)), ("function", function)):
            self.count[kind][name] += 1
            self.seconds[kind][name] += took
        return result


def places(frame: FrameType | None) -> tuple[str, str]:
    """The part of a check that a frame belongs to, and the innermost function of bnmonitor."""
    part, function = "", ""
    while frame is not None:
        name, code = frame.f_code.co_filename.removeprefix(PACKAGE), frame.f_code
        if name != code.co_filename:
            function = function or f"{name}:{code.co_name}"
            if name.count("/") == 2 and name.startswith("rules/"):
                part = name.removeprefix("rules/").removesuffix(".py")
            elif code.co_name in PARTS and not part:
                part = f"{code.co_name} ({name})"
        frame = frame.f_back
    return part or "other", function or "other"


def resnet() -> tuple[nn.Module, Callable[[], None]]:
    """ResNet-18 with a stem of stride 2 and a pooling, and one step of its training."""
    plain = resnet18()
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), *list(plain)[1:3], nn.MaxPool2d(3, 2, 1)]
    model = nn.Sequential(*stem, *list(plain)[3:])
    # At .02 variances explode from step 127 on, and a check that finds a fault takes longer.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9)

    def step() -> None:
        labels = torch.randint(0, 10, (32,))
        images = torch.randn(32, 3, 32, 32) + 0.3 * labels[:, None, None, None]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return model, step


def profiled(model: nn.Module, step: Callable[[], None], prepare: Callable[[Monitor], None]) -> tuple[Profile, int]:
    """Profile some checks of a training; also return the operations of a step without one."""
    checks, between = Profile(), Operations()
    with Monitor(model, sinks=[], log_every_n_steps=0, max_overhead=None) as monitor:
        prepare(monitor)
        for i in range(WARM_UP + 10 * CHECKS):
            step()
            if i >= WARM_UP and (i + 1) % 10 == 0:
                with checks:
                    monitor.step()
            elif i == WARM_UP + 3:
                with between:
                    monitor.step()
            else:
                monitor.step()
        assert not [alert for alert in monitor.alerts if alert.severity > Severity.INFO], monitor.alerts
        monitor._session.book.rules.clear()
    return checks, between.total


def report(title: str, checks: Profile, between: int, rows: int) -> None:
    """Print the tables of a profile."""
    print(f"\n## {title}\n")
    print(f"{checks.total / CHECKS:.0f} operations a check, {between} a step without one.")
    for kind, seconds in checks.seconds.items():
        print(f"\n| {kind} | ms a check | operations |\n|---|---|---|")
        for name, took in seconds.most_common(rows):
            print(f"| {name} | {1e3 * took / CHECKS:.3f} | {checks.count[kind][name] / CHECKS:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=15)
    rows = parser.parse_args().rows
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, step = resnet()
    report("ResNet-18 in training", *profiled(model, step, lambda monitor: None), rows)
    layers = Layers(RESNET_50)
    report("53 layers", *profiled(layers, layers.update, chained), rows)


if __name__ == "__main__":
    main()
