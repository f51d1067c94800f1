"""The last steps of every statistic, in order and without copying to read them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bnmonitor.layers import LayerTable
from bnmonitor.window import STATISTICS

_SUMMED = ("shift", "batch_var", "running_var")
"""The statistics whose sums are carried along."""


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
    def of(cls, shift: Tensor, batch: Tensor, running: Tensor) -> _Block:
        but_first = batch[1:].sum(0)
        return cls(len(shift), shift.sum(0), but_first + batch[0], but_first, running[:-1].sum(0), running[-1].clone())


@dataclass
class _Store:
    """The rows of statistics of one width and dtype, in the order in which they lie.

    Attributes:
        names: The statistics; each has a place of a window's length.
        rows: One place more than there are statistics.
    """

    names: list[str]
    rows: Tensor

    def turn(self, offset: int, size: int, stay: int) -> None:
        """Move the window of the last statistic to the front; that of every other is in the next place then.

        Args:
            offset: Where windows begin in their places afterwards.
            size: Rows of a place.
            stay: Rows of the window that stay in it.
        """
        start = len(self.names) * size + offset
        self.rows[offset : offset + stay] = self.rows[start : start + stay]
        self.names.insert(0, self.names.pop())

    def between(self, first: int, end: int, size: int) -> dict[str, Tensor]:
        """Return some rows of every statistic, as views.

        Args:
            first: The first of them, from the beginning of a place.
            end: The one behind the last.
            size: Rows of a place.
        """
        width, places = self.rows.shape[1], len(self.names)
        rows = self.rows.as_strided((places, end - first, width), (size * width, width, 1), first * width)
        return dict(zip(self.names, rows.unbind(0), strict=True))


class Ring:
    """Keeps the newest ``size`` rows of every statistic.

    The statistics of one width and dtype lie one behind the other in one tensor, with room for one window more. The
    rows that come are written over the oldest of the next statistic, which leave the window at the same time: all
    windows slide to the end together, and none is copied. Once they have come to the end, the last one moves to the
    front, where the first has made room. A window is therefore always one contiguous view, ``n`` statistics take the
    memory of ``n + 1`` windows, and ``size`` steps move one window.

    Args:
        layers: Whose statistics these are.
        size: Number of steps kept.
        dtype: Of the statistics per channel.
    """

    def __init__(self, layers: LayerTable, size: int, dtype: torch.dtype) -> None:
        self.size = size
        self.steps: list[int] = []
        self.rates: list[float] = []
        self._view: dict[str, Tensor] | None = None
        self._blocks: deque[_Block] = deque()
        self._unsummed = 0
        self._offset = 0
        """Rows from the beginning of a statistic's place to that of its window: ``size`` at most."""
        alike: dict[tuple[int, torch.dtype], list[str]] = {}
        for each in STATISTICS:
            kind = (layers.total, dtype) if each.per == "channel" else (len(layers), each.dtype)
            alike.setdefault(kind, []).append(each.name)
        self._stores = [
            _Store(names, torch.empty((len(names) + 1) * size, width, dtype=of, device="cpu"))
            for (width, of), names in alike.items()
        ]

    def room(self, steps: Sequence[int], rates: Sequence[float]) -> dict[str, Tensor]:
        """Make room for new rows, oldest first, and return it for them to be written into: ``[len(steps), ...]`` each.

        What :meth:`view` has returned before is not to be read any more.

        Args:
            steps: Their numbers, ``size`` of them at most.
            rates: The learning rates in force.
        """
        new, known = len(steps), len(self.steps)
        self._view = None
        self._offset += max(0, known + new - self.size)
        if self._offset > self.size:
            self._offset -= self.size
            for store in self._stores:
                store.turn(self._offset, self.size, self.size - new)
        self._unsummed += new
        self.steps = [*self.steps, *steps][-self.size :]
        self.rates = [*self.rates, *rates][-self.size :]
        end = len(self.steps)
        return self._between(end - new, end)

    @torch.inference_mode()
    def averages(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """What :func:`bnmonitor.measures.averages` says of the window, from sums that are carried along.

        Only the new rows are read, and the oldest few: those of a block that the window has left in part. None where
        some are unknown, or in a window of one row.
        """
        rows, count = self.view(), len(self.steps)
        summed = [rows[name] for name in _SUMMED]
        if self._unsummed:
            self._blocks.append(_Block.of(*(each[-self._unsummed :] for each in summed)))
            self._unsummed = 0
        # One row at least is not in a block, as the first batch is left out of the variances.
        while self._blocks and sum(block.rows for block in self._blocks) >= count:
            self._blocks.popleft()
        if not self._blocks:
            return None
        left = count - sum(block.rows for block in self._blocks)
        old = _Block.of(*(each[:left] for each in summed))
        # In place: at this size fresh memory is dearer than the sums.
        shift, batch, running = old.shift, old.batch_but_first, old.running_but_last
        last = old.running_last
        for block in self._blocks:
            shift += block.shift
            batch += block.batch
            running.add_(last).add_(block.running_but_last)
            last = block.running_last
        means = shift.div_(count), batch.div_(count - 1), running.div_(count - 1)
        return None if any(math.isnan(float(mean.sum())) for mean in means) else means

    def changing(self) -> dict[str, Tensor]:
        """Return the window as :meth:`view` does, for its rows to be changed: no sum is kept."""
        self._blocks.clear()
        self._unsummed = 0
        return self.view()

    def view(self) -> dict[str, Tensor]:
        """Return the window of every statistic, oldest step first, as views."""
        if self._view is None:
            self._view = self._between(0, len(self.steps))
        return dict(self._view)

    def _between(self, first: int, end: int) -> dict[str, Tensor]:
        rows: dict[str, Tensor] = {}
        for store in self._stores:
            rows |= store.between(self._offset + first, self._offset + end, self.size)
        return {each.name: rows[each.name] for each in STATISTICS}
