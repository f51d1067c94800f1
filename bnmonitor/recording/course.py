"""The loss of each step, kept beside the statistics; nothing waits for the device that computes it.

Where gradients are accumulated, the micro-batches of an optimizer step have one number, and its loss is their mean.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

from bnmonitor.transfer import HostTransfer

LEVEL = 10
"""Steps over which the median of the loss is its level: a single batch says little."""

FIRST = 3
"""Losses at the beginning of a run of which the lowest is its start."""


class Course:
    """Keeps the losses of the newest steps, and at which level the loss began and was lowest.

    Args:
        size: Steps whose losses are kept.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: dict[int, tuple[float, int]] = {}
        self._newest: deque[float] = deque(maxlen=LEVEL)
        self._begun: list[float] = []
        self.best = math.nan
        """The lowest level of the loss so far; NaN before the first ten steps with one."""
        self._slots: Tensor | None = None
        self._used: list[int] = []
        self._transfer: HostTransfer[list[int]] | None = None

    @property
    def start(self) -> float:
        """The lowest of the first losses: at a rate too high the second is larger by far; NaN where none is known."""
        return min((loss for loss in self._begun if math.isfinite(loss)), default=math.nan)

    def note(self, step: int, loss: object) -> None:
        """Keep the loss of a step.

        Args:
            step: The step.
            loss: A number, or a tensor with one value; anything else is ignored.
        """
        if isinstance(loss, Tensor):
            if loss.numel() != 1 or loss.is_complex() or type(loss) not in (Tensor, torch.nn.Parameter):
                return
            if loss.device.type != "cpu":
                self._send_later(step, loss.detach())
                return
            loss = loss.detach().item()
        if isinstance(loss, int | float):
            self._take(step, float(loss))

    def collect(self, *, wait: bool) -> None:
        """Take in the losses that have arrived from their device; with ``wait``, all of them."""
        if self._transfer is None or self._slots is None:
            return
        if self._used:
            self._transfer.send(self._used, self._slots[: len(self._used)])
            self._used = []
        for steps, (values,) in self._transfer.receive(wait=wait):
            for step, value in zip(steps, values.tolist(), strict=True):
                self._take(step, value)

    def losses(self, steps: Sequence[int]) -> tuple[float | None, ...]:
        """Return the loss of each step; None where none was passed, or where it has not arrived from its device yet."""
        found = (self._kept.get(step) for step in steps)
        return tuple(None if each is None else each[0] / each[1] for each in found)

    def _take(self, step: int, loss: float) -> None:
        total, count = self._kept.get(step, (0.0, 0))
        self._kept[step] = total + loss, count + 1
        while len(self._kept) > self._size:
            del self._kept[next(iter(self._kept))]
        if len(self._begun) < FIRST:
            self._begun.append(loss)
        self._newest.append(loss)
        if len(self._newest) == LEVEL and all(map(math.isfinite, self._newest)):
            level = median(self._newest)
            self.best = level if math.isnan(self.best) else min(self.best, level)

    def _send_later(self, step: int, loss: Tensor) -> None:
        if self._slots is None or self._slots.device != loss.device:
            self.collect(wait=True)
            self._slots = torch.empty(self._size, dtype=torch.float32, device=loss.device)
            self._transfer = HostTransfer(loss.device)
        if len(self._used) == self._size:
            self.collect(wait=True)
        self._slots[len(self._used)].copy_(loss.reshape(()), non_blocking=True)
        self._used.append(step)

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return what is known as plain types."""
        self.collect(wait=True)
        return {
            "kept": [[step, total, count] for step, (total, count) in self._kept.items()],
            "newest": list(self._newest),
            "begun": list(self._begun),
            "best": self.best,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state` returned."""
        kept = {int(step): (float(total), int(count)) for step, total, count in state["kept"]}
        self._kept = dict(list(kept.items())[-self._size :])
        self._newest.extend(map(float, state["newest"]))
        self._begun = [float(loss) for loss in state["begun"]]
        self.best = float(state["best"])
