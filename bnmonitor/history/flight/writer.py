"""Writes a flight record: steps in, blocks out, and pages made of them on a thread of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import numpy as np

from bnmonitor.history.flight import budget as sizes
from bnmonitor.history.flight.layout import (
    COURSE,
    LAYOUT,
    PARTS,
    STATISTICS,
    Array,
    Blocks,
    Layout,
    columns,
    empty_values,
)
from bnmonitor.history.flight.worker import Detail, Item, Note, Worker, size_of_item
from bnmonitor.limits import FLIGHT_BYTES

_WAITING = 64 * 2**20
"""Most bytes of blocks that wait to be written."""

_SLOW = tuple(STATISTICS.index(name) for name in ("running_mean", "running_var", "gamma", "beta"))
_STRIDE = 10
"""In blocks of many steps, averages and parameters are looked at on every 10th: they move slowly by their nature."""

_LOSS, _LOW, _HIGH = (COURSE.index(name) for name in ("loss", "loss_minimum", "loss_maximum"))


class _Block:
    """A block that steps are still added to: minimum, maximum and sum of each channel."""

    def __init__(self, total: int, width: int) -> None:
        self.sum = np.empty((len(STATISTICS), total), np.float32)
        self.low, self.high = np.empty_like(self.sum), np.empty_like(self.sum)
        self._of = list(zip(self.sum, self.low, self.high, strict=True))
        self._now = np.empty((len(PARTS), total), np.float32)
        self.counts: list[Any] = []
        self.begin(width)

    def begin(self, width: int) -> None:
        self.low.fill(np.inf)
        self.high.fill(-np.inf)
        self.sum.fill(0.0)
        self.counts = [0] * len(STATISTICS)
        self.steps, self.first, self.last = 0, -1, -1
        self.course = np.full(width, np.nan)
        self._losses = 0

    def add(self, steps: Sequence[int], rows: Sequence[Array], course: Array) -> tuple[Array, Array]:
        """Take in steps, and return the smallest and the largest batch mean of each channel in them."""
        self.first = self.first if self.steps else steps[0]
        self.last, self.steps = steps[-1], self.steps + len(steps)
        for which in range(1, len(STATISTICS)):
            each = rows[which]
            if which not in _SLOW:
                self._reduce(which, each)
            else:
                for at in range(len(each) - 1, -1, -_STRIDE):
                    self._add_row(which, each[at])
        self._reduce(0, rows[0])
        self._follow(course)
        return self._now[1], self._now[2]

    def _add_row(self, which: int, row: Array) -> None:
        if np.isnan(row.min()):
            self._reduce(which, row[None])
            return
        total, low, high = self._of[which]
        np.add(total, row, out=total)
        np.minimum(low, row, out=low)
        np.maximum(high, row, out=high)
        self.counts[which] = self.counts[which] + 1

    def _reduce(self, which: int, rows: Array) -> None:
        count: Any = len(rows)
        now, least, most = self._now
        np.add.reduce(rows, axis=0, out=now)
        np.minimum.reduce(rows, axis=0, out=least)
        np.maximum.reduce(rows, axis=0, out=most)
        if np.isnan(least.min()):
            known = ~np.isnan(rows)
            count = known.sum(0)
            np.add.reduce(np.where(known, rows, 0), axis=0, out=now)
            np.fmin.reduce(rows, axis=0, out=least)
            np.fmax.reduce(rows, axis=0, out=most)
        total, low, high = self._of[which]
        np.add(total, now, out=total)
        np.fmin(low, least, out=low)
        np.fmax(high, most, out=high)
        self.counts[which] = self.counts[which] + count

    def _follow(self, course: Array) -> None:
        """Take in the ``[n, N]`` course of the new steps."""
        losses = [loss for loss in course[:, _LOSS].tolist() if loss == loss]
        before = self.course[_LOSS : _HIGH + 1].tolist()
        self.course[:] = course[-1]
        if losses:
            mean = before[0] * self._losses if self._losses else 0.0
            self._losses += len(losses)
            before = [(mean + sum(losses)) / self._losses, min(*losses, before[1]), max(*losses, before[2])]
        self.course[_LOSS : _HIGH + 1] = before

    def done(self) -> Blocks:
        values = empty_values(1, len(PARTS), self.sum.shape[1])
        for which, count in enumerate(self.counts):
            mean, low, high = values[0, :, which]
            with np.errstate(invalid="ignore", divide="ignore"):
                np.divide(self.sum[which], count, out=mean)
            low[:], high[:] = self.low[which], self.high[which]
            nothing = np.asarray(count) == 0
            if nothing.any():
                np.copyto(low, np.nan, where=nothing)
                np.copyto(high, np.nan, where=nothing)
        return Blocks(np.array([self.first]), np.array([self.last]), values, self.course[None])


class FlightWriter:
    """Keeps the flight record of one run within a budget.

    Steps are taken in on the caller's thread; blocks are written, and pages are made and joined, on a thread of its
    own. What a process has appended to the tail outlives it.

    Args:
        folder: The directory of the record.
        budget: Most bytes of all files in it.
    """

    def __init__(self, folder: Path, budget: int = FLIGHT_BYTES) -> None:
        self.folder, self.budget = folder, budget
        self.layout: Layout | None = None
        self._session = 0
        self._block: _Block | None = None
        self._last, self._steps, self._length = -1, 0, 1
        self._queue: Queue[Item | None] = Queue()
        # Each is changed on one thread only: bytes that were handed over, and bytes that have been written.
        self._given = self._written = 0
        self._thread: Thread | None = None
        self._failed: list[Exception] = []
        self._worker: Worker | None = None
        self.left_out = 0
        """Blocks that were not written, because the disk was too slow for them."""

    def begin(
        self,
        layers: Sequence[str],
        channels: Sequence[int],
        *,
        groups: int = 0,
        mean_error: Sequence[float],
        variance_error: Sequence[float],
        began: float = 0.0,
    ) -> None:
        """Begin a session, or go on with other layers.

        Args:
            layers: Name of each layer.
            channels: Channels of each layer.
            groups: Parameter groups of the optimizers.
            mean_error: Largest error of each layer's means, in standard deviations of the channel.
            variance_error: Largest relative error of each layer's variances.
            began: The time, in seconds since 1970.

        Raises:
            ValueError: The budget is too small for so many channels.
            OSError: The directory can't be written to.
        """
        total = sum(channels)
        if self.budget < sizes.least(total):
            raise ValueError(
                f"a flight record of {total:,} channels needs at least {sizes.least(total):,} bytes, "
                f"got {self.budget:,}"
            )
        self.end_block()
        block = sizes.steps_per_block(total)
        layout = Layout(
            session=self._session,
            number=0 if self.layout is None else self.layout.number + 1,
            layers=tuple(layers),
            channels=tuple(channels),
            block=block,
            page=sizes.blocks_per_page(total, block, self.budget),
            groups=groups,
            mean_error=tuple(mean_error),
            variance_error=tuple(variance_error),
            began=began,
        )
        self.layout = self._claim(layout)
        self._session = self.layout.session
        self._block = _Block(total, len(columns(groups))) if block > 1 else None
        self._last, self._steps, self._length = -1, 0, block
        self._put(self.layout)

    def _claim(self, layout: Layout) -> Layout:
        """Write the layout's file; another process may write into the directory at the same time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not layout.session:
            known = (LAYOUT.fullmatch(path.name) for path in self.folder.iterdir())
            layout = replace(layout, session=1 + max((int(m.group(1)) for m in known if m), default=0))
        while True:
            try:
                with (self.folder / layout.file).open("x", encoding="utf-8") as file:
                    file.write(layout.encode())
                return layout
            except FileExistsError:
                layout = replace(layout, session=layout.session + 1, number=0)

    def add(self, steps: Sequence[int], rows: Mapping[str, Array], course: Array) -> Array | None:
        """Take in steps, oldest first.

        Args:
            steps: Their numbers; one that is not above the last begins the record anew from there.
            rows: ``[n, C]`` float32 of each of ``STATISTICS``; they may be views, and are read at once.
            course: ``[n, N]`` float64, the columns that :func:`columns` names.

        Returns:
            ``[C]``, from the smallest to the largest batch mean of each channel in these steps; None where each step is
            kept by itself.
        """
        layout = self.layout
        if layout is None or not steps:
            return None
        if steps[0] <= self._last:
            self.begin(
                layout.layers,
                layout.channels,
                groups=layout.groups,
                mean_error=layout.mean_error,
                variance_error=layout.variance_error,
                began=float(course[0, 0]),
            )
            layout = self.layout or layout
        self._last = steps[-1]
        arrays = [rows[name] for name in STATISTICS]
        if self._block is None:
            values = np.stack(arrays, axis=1)[:, None]
            single = course.copy()
            single[:, _LOW] = single[:, _HIGH] = course[:, _LOSS]
            self._put(Blocks(np.array(steps), np.array(steps), values, single))
            return None
        at, found = 0, list[tuple[Array, Array]]()
        while at < len(steps):
            some = slice(at, at + self._length - self._block.steps)
            low, high = self._block.add(steps[some], [each[some] for each in arrays], course[some])
            at += len(steps[some])
            if at < len(steps) or found:
                found.append((low.copy(), high.copy()))
                low, high = np.fmin.reduce([each for each, _ in found]), np.fmax.reduce([each for _, each in found])
            if self._block.steps >= self._length:
                self._steps += self._block.steps
                self.end_block()
                self._length = sizes.block_at(layout.total, self._steps)
        with np.errstate(invalid="ignore"):
            return np.asarray(high - low)

    def detail(self, layers: Sequence[int], steps: Sequence[int], rows: Mapping[str, Array], course: Array) -> None:
        """Keep single steps of some layers as they are.

        Args:
            layers: Positions of the layers.
            steps: Numbers of the steps.
            rows: ``[n, C]`` float32 of each of ``STATISTICS``, of all layers.
            course: As for :meth:`add`.
        """
        layout = self.layout
        if layout is None or self._block is None or not steps or not layers:
            return
        spans = [layout.span(layer) for layer in sorted(layers)]
        values = np.stack([np.concatenate([rows[n][:, s] for s in spans], axis=1) for n in STATISTICS], axis=1)
        single = course.copy()
        single[:, _LOW] = single[:, _HIGH] = course[:, _LOSS]
        blocks = Blocks(np.array(steps), np.array(steps), values[:, None], single)
        self._put(Detail(sorted(layers), blocks))

    def note(self, key: str, note: Mapping[str, Any]) -> None:
        """Keep the state of an alert or an incident.

        Args:
            key: What it is about: the last note with a key is its last state.
            note: Plain types that JSON can hold.
        """
        if self.layout is not None:
            self._put(Note(self._session, key, note))

    def end_block(self) -> None:
        """Write the block that is not full yet."""
        block = self._block
        if block is not None and block.steps:
            self._put(block.done())
            block.begin(len(block.course))

    @property
    def waiting(self) -> int:
        """Bytes of blocks that were handed over and are not written yet."""
        return self._given - self._written

    def failures(self) -> list[Exception]:
        """Return the errors of writing since the last call."""
        failed, self._failed = self._failed, []
        return failed

    def close(self) -> None:
        """Write what is left, and wait until it is written."""
        with suppress(Exception):
            self.end_block()
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _put(self, item: Item) -> None:
        size = size_of_item(item)
        if self.waiting + size > _WAITING:
            self.left_out += 1
            return
        self._given += size
        self._queue.put(item)
        if self._thread is None:
            self._thread = Thread(target=self._work, name="bnmonitor-flight", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        failed = False
        while (item := self._queue.get()) is not None:
            try:
                if not failed:
                    self._worker = self._worker or Worker(self.folder, self.budget)
                    self._worker.take(item)
            except Exception as error:
                failed = True  # a full disk stays full: the rest of the session is not written
                self._failed.append(error)
            self._written += size_of_item(item)
        if self._worker is not None:
            with suppress(OSError):
                self._worker.close()


def size_of(folder: Path) -> int:
    """Return the bytes of all files of a record."""
    return sum(entry.stat().st_size for entry in os.scandir(folder) if entry.is_file())
