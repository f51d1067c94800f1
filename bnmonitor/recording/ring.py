"""The last steps of every statistic, in order and without copying to read them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bnmonitor.layers import LayerTable
from bnmonitor.window import STATISTICS


@dataclass(frozen=True)
class _Block:
    """Sums over some rows that lie one after the other: ``[C]`` each."""

    rows: int
    shift: Tensor
    batch: Tensor
    batch_but_first: Tensor
    running_but_last: Tensor
    running_last: Tensor

    @classmethod
    def of(cls, rows: Mapping[str, Tensor]) -> _Block:
        shift, batch, running = rows["shift"], rows["batch_var"], rows["running_var"]
        but_first = batch[1:].sum(0)
        return cls(len(shift), shift.sum(0), but_first + batch[0], but_first, running[:-1].sum(0), running[-1].clone())


class Ring:
    """Keeps the newest ``size`` rows of every statistic.

    Each statistic lives in one tensor half as long again as the window. Rows are appended; when the tensor is full, the
    newest window moves to its front. The window is therefore always one contiguous view, and a row moves twice at most.

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
        self._view: dict[str, Tensor] | None = None
        self._blocks: deque[_Block] = deque()
        self._unsummed = 0
        self._rows = {
            each.name: torch.empty(self._length, layers.total, dtype=dtype, device="cpu")
            if each.per == "channel"
            else torch.empty(self._length, len(layers), dtype=each.dtype, device="cpu")
            for each in STATISTICS
        }

    def room(self, steps: Sequence[int], rates: Sequence[float]) -> dict[str, Tensor]:
        """Make room for new rows, oldest first, and return it for them to be written into: ``[len(steps), ...]`` each.

        Args:
            steps: Their numbers, ``size`` of them at most.
            rates: The learning rates in force.
        """
        new = len(steps)
        self._view = None
        if self._end + new > self._length:
            start = max(0, self._end - (self.size - new))
            for store in self._rows.values():
                _move(store, start, self._end)
            self._end -= start
        self._end += new
        self._unsummed += new
        self.steps = [*self.steps, *steps][-self.size :]
        self.rates = [*self.rates, *rates][-self.size :]
        return {name: store[self._end - new : self._end] for name, store in self._rows.items()}

    def averages(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """What :func:`bnmonitor.measures.averages` says of the window, from sums that are carried along.

        Only the new rows are read, and the oldest few: those of a block that the window has left in part. None where
        some are unknown, or in a window of one row.
        """
        rows, count = self.view(), len(self.steps)
        if self._unsummed:
            self._blocks.append(_Block.of({name: store[-self._unsummed :] for name, store in rows.items()}))
            self._unsummed = 0
        # One row at least is not in a block, as the first batch is left out of the variances.
        while self._blocks and sum(block.rows for block in self._blocks) >= count:
            self._blocks.popleft()
        if not self._blocks:
            return None
        old = _Block.of({name: store[: count - sum(b.rows for b in self._blocks)] for name, store in rows.items()})
        # In place: at this size fresh memory is dearer than the sums.
        shift, batch, running = old.shift, old.batch_but_first, old.running_but_last
        last = old.running_last
        for block in self._blocks:
            shift += block.shift
            batch += block.batch
            running.add_(last).add_(block.running_but_last)
            last = block.running_last
        means = shift.div_(count), batch.div_(count - 1), running.div_(count - 1)
        return None if bool(torch.stack([mean.sum() for mean in means]).isnan().any()) else means

    def changing(self) -> dict[str, Tensor]:
        """Return the window as :meth:`view` does, for its rows to be changed: no sum is kept."""
        self._blocks.clear()
        self._unsummed = 0
        return self.view()

    def view(self) -> dict[str, Tensor]:
        """Return the window of every statistic, oldest step first, as views."""
        if self._view is None:
            start = max(0, self._end - self.size)
            self._view = {name: store[start : self._end] for name, store in self._rows.items()}
        return dict(self._view)


def _move(store: Tensor, start: int, end: int) -> None:
    """Move rows to the front, a part at a time, so that none is overwritten before it has moved."""
    for at in range(start, end, start):
        part = store[at : min(end, at + start)]
        store[at - start : at - start + len(part)] = part
