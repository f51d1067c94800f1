"""Trainings on the device of :mod:`tests.device` and on the CPU; prints as JSON what was asked of the device.

The device can be made once in a process, so a module of tests runs this program once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from bnmonitor import Monitor
from bnmonitor.sinks import Sink
from bnmonitor.transfer import HostTransfer
from bnmonitor.window import Ledger
from tests import device
from tests.models import residual

CPU = torch.device("cpu")
STEPS, SAMPLES, CHECKS, FRAMES = 24, 10, 10, 20


class Queue:
    """Behaves as a device that is always a step behind: what was sent within a step arrives after it."""

    def __init__(self) -> None:
        self.sent = self.done = 0
        self._numbers: WeakKeyDictionary[HostTransfer[Any], list[int]] = WeakKeyDictionary()
        send, receive = HostTransfer.send, HostTransfer.receive
        queue = self

        def sent(self: HostTransfer[Any], label: Any, *tensors: Tensor) -> None:
            with device.asynchronous():
                send(self, label, *tensors)
            if self.device.type != "cpu":
                queue._numbers.setdefault(self, []).append(queue.sent)
                queue.sent += 1

        def received(self: HostTransfer[Any], *, wait: bool) -> list[Any]:
            if self.device.type == "cpu":
                return receive(self, wait=wait)
            numbers, found = queue._numbers.setdefault(self, []), []
            while numbers and (wait or numbers[0] < queue.done):
                if numbers.pop(0) >= queue.done:
                    device.waited("HostTransfer.receive")
                label, here, _ = self._sent.popleft()
                found.append((label, here))
            return found

        HostTransfer.send, HostTransfer.receive = sent, received  # type: ignore[method-assign]


class Frames(Sink):
    """Is given the state every few steps, and keeps nothing."""


class Scaler:
    """Has its scale on the device of the training, as PyTorch's gradient scaler does, and halves it once."""

    _init_scale = 1024.0

    def __init__(self, where: torch.device) -> None:
        self._scale = torch.full((), self._init_scale).to(where)
        self._step = 0

    def get_scale(self) -> float:
        return self._scale.item()

    def update(self) -> None:
        self._step += 1
        if self._step == STEPS // 2:
            self._scale.mul_(0.5)


class EveryKind(nn.Module):
    """Layers with and without running statistics, with and without a counter, in 1-d and 2-d; one is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(
            *(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
            *(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU()),
            *(nn.Conv2d(4, 4, 1), nn.InstanceNorm2d(4, affine=True, track_running_stats=True), nn.ReLU()),
        )
        self.shared, self.flat, self.last = nn.BatchNorm1d(4), nn.BatchNorm1d(4, affine=False), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.front(x).flatten(2)
        x = self.shared(self.shared(x) * 2 + 1).mean(2)
        found: Tensor = self.last(self.flat(x))
        return found


def train(
    build: Callable[[], nn.Module], where: torch.device, *, rate: float = 0.05, before: str = "", **settings: Any
) -> tuple[Monitor, list[dict[str, Any]]]:
    """Train with a monitor, and return it with what each step asked of the device: in the forward, and after it.

    Args:
        build: Makes the model.
        where: Where it is trained.
        rate: The learning rate.
        before: What precedes the move of the model: ``"made"``, the monitor is made; ``"begun"``, it has begun.
        settings: Further settings of the monitor.
    """
    torch.manual_seed(0)
    model = build()
    if not before:
        model.to(where)
    scaler = Scaler(where)
    usual: dict[str, Any] = {"sinks": [Frames()], "on_alert": "log", "max_overhead": None, "scaler": scaler}
    cadence = {"sample_every_n_steps": SAMPLES, "check_every_n_steps": CHECKS, "log_every_n_steps": FRAMES}
    monitor, found = Monitor(model, **{**usual, **cadence, **settings}), []
    if before == "made":
        model.to(where)
    with monitor:
        model.to(where)
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        monitor.optimizers = [optimizer]
        for _ in range(STEPS):
            queue.done = queue.sent
            x, target = torch.randn(32, 3, 6, 6).to(where), torch.randint(0, 2, (32,)).to(where)
            optimizer.zero_grad()
            with device.launches() as forward:
                loss = nn.functional.cross_entropy(model(x), target)
            loss.backward()
            optimizer.step()
            scaler.update()
            with device.launches() as after:
                monitor.step(loss=loss)
            found.append({"launches": after.total, "copies": after.copies, "waits": [*forward.waits, *after.waits]})
            if monitor.should_stop:
                break
        queue.done = queue.sent
        with monitor.evaluation(), torch.no_grad():
            model.eval()(torch.randn(32, 3, 6, 6).to(where))
        model.train()
    found.append({"stopped": len(found) - 1, "failure": monitor.failure})
    return monitor, found


def differences(one: Any, other: Any, at: str = "") -> list[str]:
    """Where two nests of plain values, dataclasses and tensors differ in a single bit."""
    if isinstance(one, Tensor):
        same = one.shape == other.shape and torch.equal(one.double().nan_to_num(7.0), other.double().nan_to_num(7.0))
        return [] if same else [at]
    if is_dataclass(one):
        pairs = [(f.name, getattr(one, f.name), getattr(other, f.name)) for f in fields(one)]
        return [d for name, a, b in pairs for d in differences(a, b, f"{at}.{name}")]
    if isinstance(one, list | tuple) and len(one) == len(other):
        return [d for i, (a, b) in enumerate(zip(one, other, strict=True)) for d in differences(a, b, f"{at}[{i}]")]
    return [] if one == other or (one != one and other != other) else [at]


def compared(build: Callable[[], nn.Module], where: torch.device, **settings: Any) -> dict[str, Any]:
    """Train on the device and on the CPU, and compare all that was recorded."""
    (monitor, found), (plain, usual) = train(build, where, **settings), train(build, CPU, **settings)
    apart = differences(monitor.samples, plain.samples, "samples")
    name = plain.layers.names[0]
    for name in plain.layers.names:
        for statistic in ("batch_mean", "batch_var", "running_mean", "running_var", "gamma", "beta"):
            here, there = (m.history(name, statistic) for m in (monitor, plain))
            apart += differences(here, there, f"{name} {statistic}")
    windows = [m._session.window() for m in (monitor, plain)]
    # Of samples that arrive together the last counts in the ledger; and sums in another order differ by their rounding.
    rows = [f.name for f in fields(Ledger) if f.name not in ("seen", "expected", "cold")]
    facts = [(w.facts.scales, w.facts.skipped_steps, [getattr(w.ledger, r) for r in rows]) for w in windows if w]
    return {
        "steps": found,
        "apart": [*apart, *differences(*facts, "facts")],
        "alerts": [[f"{a.code} {a.layer} {a.first_step}" for a in m.alerts] for m in (monitor, plain)],
        "losses": [list(m._session.recorder.course.losses(m.steps)) for m in (monitor, plain)],
        "stopped": [each[-1]["stopped"] for each in (found, usual)],
        "stirred": [int((~s.stirred.isnan()).sum()) for s in plain.samples if s.stirred is not None],
        "scales": facts[0][0],
        "missing": int(
            (monitor.history(name, "batch_mean").isnan() & ~plain.history(name, "batch_mean").isnan()).any(1).sum()
        ),
    }


def noticed(where: torch.device) -> dict[str, bool]:
    """Whether the device notices each way to wait for it."""
    x = torch.arange(4.0).to(where)
    mask = x > 1
    ways: dict[str, Callable[[], Any]] = {
        "item": lambda: x.sum().item(),
        "tolist": x.tolist,
        "bool": lambda: bool(mask.any()),
        "float": lambda: float(x[0]),
        "equal": lambda: torch.equal(x, x),
        "nonzero": mask.nonzero,
        "mask": lambda: x[mask],
        "masked_select": lambda: x.masked_select(mask),
        "unique": x.unique,
        "eigenvalues": lambda: torch.linalg.eigvalsh(torch.outer(x, x)),
        "list": lambda: x[[0, 2]],
        "cpu": x.cpu,
        "numpy": lambda: x.cpu().numpy(),
        "copy": lambda: torch.empty(4).copy_(x),
        "made": lambda: torch.tensor([1.0], device=where),
        # These are asked of the device, and nobody waits.
        "norm": lambda: torch.linalg.vector_norm(x),
        "where": lambda: x.where(mask, 0.0),
        "slice": lambda: x[1:],
        "device": lambda: torch.cat([x, x], out=torch.empty(8, device=where)).copy_(torch.zeros(8, device=where)),
    }
    found = {}
    for name, way in ways.items():
        with device.launches() as asked:
            way()
        found[name] = bool(asked.waits)
    return found


def deep(layers: int) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        parts = [p for i in range(layers) for p in (nn.Conv2d(4 if i else 3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())]
        return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))

    return build


def half(layers: int) -> Callable[[], nn.Module]:
    """Every second layer and what is before it in bfloat16."""

    class Cast(nn.Module):
        def __init__(self, dtype: torch.dtype) -> None:
            super().__init__()
            self.dtype = dtype

        def forward(self, x: Tensor) -> Tensor:
            return x.to(self.dtype)

    def build() -> nn.Module:
        parts = list(deep(layers)())
        for i in range(0, 3 * layers, 6):
            parts[i], parts[i + 1] = parts[i].bfloat16(), parts[i + 1].bfloat16()
        casts = [Cast(p.weight.dtype) if isinstance(p, nn.Conv2d | nn.Linear) else nn.Identity() for p in parts]
        return nn.Sequential(*(each for pair in zip(casts, parts, strict=True) for each in pair))

    return build


if __name__ == "__main__":
    fake = device.make()
    queue = Queue()
    cases: dict[str, Callable[[], Any]] = {
        "noticed": lambda: noticed(fake),
        "every kind": lambda: compared(EveryKind, fake),
        "made": lambda: compared(deep(2), fake, before="made"),
        "begun": lambda: compared(deep(2), fake, before="begun"),
        "residual": lambda: compared(residual, fake, probe=True),
        "diverging": lambda: compared(residual, fake, rate=1e4, on_alert="stop"),
        "half": lambda: compared(half(6), fake),
    }
    print(json.dumps({name: run() for name, run in cases.items() if name in sys.argv[1:] or len(sys.argv) == 1}))
