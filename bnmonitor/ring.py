"""The last steps of every statistic, in order and without copying to read them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bnmonitor.frame import CHANNEL_STATISTICS, LAYER_STATISTICS
from bnmonitor.layers import LayerTable

_LAYER_DTYPES = {
    "updates": torch.int64,
    "training": torch.bool,
    "recovery": torch.int64,
    "momentum": torch.float32,
    "variance": torch.float32,
}


class Ring:
    """Keeps the newest ``size`` rows of every statistic.

    Each statistic lives in one tensor half as long again as the window. Rows are appended; when the tensor is
    full, the newest window moves to its front. The window is therefore always one contiguous view.

    Args:
        layers: Whose statistics these are.
        size: Number of steps kept.
        dtype: Of the statistics per channel.
    """

    def __init__(self, layers: LayerTable, size: int, dtype: torch.dtype) -> None:
        self.size = size
        self._length = size + (size + 1) // 2
        self._end = 0
        self.steps: list[int] = []
        self.rates: list[float] = []
        self._rows = {
            **{name: torch.empty(self._length, layers.total, dtype=dtype, device="cpu") for name in CHANNEL_STATISTICS},
            **{
                name: torch.empty(self._length, len(layers), dtype=_LAYER_DTYPES[name], device="cpu")
                for name in LAYER_STATISTICS
            },
        }

    def room(self, steps: Sequence[int], rates: Sequence[float]) -> dict[str, Tensor]:
        """Make room for new rows, oldest first, and return it for them to be written into: ``[len(steps), ...]`` each.

        Args:
            steps: Their numbers, ``size`` of them at most.
            rates: The learning rates in force.
        """
        new = len(steps)
        if self._end + new > self._length:
            start = max(0, self._end - (self.size - new))
            for store in self._rows.values():
                _move(store, start, self._end)
            self._end -= start
        self._end += new
        self.steps = [*self.steps, *steps][-self.size :]
        self.rates = [*self.rates, *rates][-self.size :]
        return {name: store[self._end - new : self._end] for name, store in self._rows.items()}

    def view(self) -> dict[str, Tensor]:
        """Return the window of every statistic, oldest step first, as views."""
        start = max(0, self._end - self.size)
        return {name: store[start : self._end] for name, store in self._rows.items()}


def _move(store: Tensor, start: int, end: int) -> None:
    """Move rows to the front, a part at a time, so that none is overwritten before it has moved."""
    for at in range(start, end, start):
        part = store[at : min(end, at + start)]
        store[at - start : at - start + len(part)] = part
