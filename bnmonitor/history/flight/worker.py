"""What the thread of a flight record does: the tail, pages of it, details, notes, and coarser pages for the budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bnmonitor.history.flight import budget as sizes
from bnmonitor.history.flight import pages
from bnmonitor.history.flight.layout import (
    LAYOUT,
    PARTS,
    Blocks,
    Layout,
    Part,
    by_layer,
    detail_name,
    page_name,
    tail_name,
)
from bnmonitor.history.flight.notes import Notes, notes_name
from bnmonitor.history.flight.tail import Tail, is_left, read

_NOTES = 32
"""Alerts and incidents take at most this share of the budget: one part in 32."""


@dataclass(frozen=True)
class Detail:
    """Single steps of some layers, to be written as they are."""

    layers: Sequence[int]
    blocks: Blocks


@dataclass(frozen=True)
class Note:
    """What is to be noted of an alert or an incident."""

    session: int
    key: str
    note: Mapping[str, Any]


Item = Layout | Blocks | Detail | Note


def size_of_item(item: Item) -> int:
    """Return the bytes of the blocks that wait in an item."""
    blocks = item.blocks if isinstance(item, Detail) else item
    return blocks.values.nbytes if isinstance(blocks, Blocks) else 0


class Worker:
    """Writes on the thread of its own: the tail, pages of it, details, and coarser pages where the budget asks.

    Args:
        folder: The directory of the record.
        budget: Most bytes of all files in it.
    """

    def __init__(self, folder: Path, budget: int) -> None:
        self.folder, self.budget = folder, budget
        self.layout: Layout | None = None
        self.tail: Tail | None = None
        self._blocks: list[Blocks] = []
        self._pages: dict[Part, int] = {}
        self._details: dict[Part, int] = {}
        self._other = 0
        self._layouts: dict[tuple[int, int], Layout] = {}
        self._number = self._detail = 0
        self._notes: Notes | None = None
        self._survey()

    def _survey(self) -> None:
        """Count what other sessions have left here, and make pages of the tails of those that were killed."""
        tails = []
        for path in self.folder.iterdir():
            try:
                part, size = Part.of(path), path.stat().st_size
            except FileNotFoundError:  # another process has renamed or joined it just now
                continue
            if part is None:
                self._other += size
                if LAYOUT.fullmatch(path.name) and (known := Layout.decode(path.read_text(encoding="utf-8"))):
                    self._layouts[known.session, known.number] = known
            elif part.kind == "tail":
                tails.append(part)
            else:
                (self._details if part.kind == "detail" else self._pages)[part] = size
        for part in tails:
            layout = self._layouts.get((part.session, part.layout))
            try:
                if layout is None or not is_left(part.path):
                    self._other += part.path.stat().st_size
                    continue
                self._make_page_of(part.path, layout, part.number, read(part.path, layout))
            except FileNotFoundError:  # its own process has made a page of it just now
                continue

    def take(self, item: Item) -> None:
        """Write an item.

        Raises:
            OSError: The disk is full, or the directory is gone.
        """
        if isinstance(item, Note):
            path = self.folder / notes_name(item.session)
            self._notes = self._notes or Notes(path, self.budget // _NOTES)
            self._notes.add(item.key, item.note)
        elif isinstance(item, Layout):
            self.close()
            self.layout, self._number, self._detail = item, 0, 0
            self._layouts[item.session, item.number] = item
        elif isinstance(item, Blocks):
            self._append(item)
        else:
            self._keep(item)

    def _append(self, blocks: Blocks) -> None:
        assert self.layout is not None
        if self.tail is None:
            self.tail = Tail(self.folder / tail_name(self.layout.stem, self._number))
        self.tail.append(blocks)
        self._blocks.append(blocks)
        if self.tail.count >= self.layout.page:
            self._make_page()

    def _make_page(self) -> None:
        """Put the blocks of the tail into a page."""
        assert self.layout is not None
        assert self.tail is not None
        tail, self.tail = self.tail, None
        blocks, self._blocks = self._blocks, []
        tail.close()
        self._make_page_of(tail.path, self.layout, self._number, blocks)
        self._number += 1
        self._shrink()

    def _make_page_of(self, tail: Path, layout: Layout, number: int, blocks: Sequence[Blocks]) -> None:
        if blocks:
            path = self.folder / page_name(layout.stem, 0, number)
            each = (by_layer(layout, some, range(len(layout.layers))) for some in blocks)
            self._note(self._pages, path, pages.write(path, layout, map(_joined, zip(*each, strict=True))))
        tail.unlink()

    def _keep(self, detail: Detail) -> None:
        assert self.layout is not None
        path = self.folder / detail_name(self.layout.stem, self._detail)
        self._detail += 1
        each = by_layer(self.layout, detail.blocks, detail.layers)
        self._note(self._details, path, pages.write(path, self.layout, each))
        while sum(self._details.values()) > self.budget // 8 and len(self._details) > 1:
            oldest = min(self._details)
            oldest.path.unlink(missing_ok=True)
            del self._details[oldest]
        self._shrink()

    def _note(self, where: dict[Part, int], path: Path, size: int) -> None:
        part = Part.of(path)
        assert part is not None
        where[part] = size

    def _shrink(self) -> None:
        """Make the oldest pages coarser until all fit."""
        while self._occupied() > sizes.limit(self.budget):
            chosen = sizes.to_join({part: self._length(part) for part in self._pages})
            if not chosen or not self._join(chosen):
                return

    def _length(self, part: Part) -> int:
        """Steps in a block of a page; 0 if that is not known, and the page is of no use."""
        layout = self._layouts.get((part.session, part.layout))
        return 0 if layout is None else sizes.length_of(part, layout)

    def _occupied(self) -> int:
        notes = 0 if self._notes is None else self._notes.size
        return self._other + notes + sum(self._details.values()) + sum(self._pages.values())

    def _join(self, chosen: Sequence[Part]) -> bool:
        """Put pages into one with half as many blocks; return whether that changed anything."""
        first = chosen[0]
        layout = self._layouts.get((first.session, first.layout))
        with ExitStack() as opened:
            found = [] if layout is None else [p for part in chosen if (p := _opened(opened, part.path, layout))]
            if layout is None or not found:  # nothing can be read of them
                for part in chosen:
                    self._drop(part)
                return True
            if sum(len(page.header.first) for page in found) == 1:
                return False
            level = first.level + len(chosen) - 1
            path = self.folder / page_name(layout.stem, level, first.number >> level)
            size = pages.write(path, layout, _halved(found))
        for part in chosen:
            if part.path != path:
                self._drop(part)
        self._note(self._pages, path, size)
        return True

    def _drop(self, part: Part) -> None:
        part.path.unlink(missing_ok=True)
        self._pages.pop(part, None)

    def close(self) -> None:
        """Make a page of the tail."""
        if self.tail is not None:
            self._make_page()


def _joined(parts: Sequence[tuple[int, Blocks]]) -> tuple[int, Blocks]:
    """Put the blocks of a layer one after the other."""
    return parts[0][0], Blocks.joined([blocks for _, blocks in parts])


def _halved(found: Sequence[pages.Page]) -> Iterator[tuple[int, Blocks]]:
    """Yield each layer of some pages with each two blocks joined: one at a time, so that memory holds one."""
    for layer in found[0].header.layers.tolist():
        parts = [page.blocks(layer) for page in found]
        yield (
            layer,
            Blocks.joined([*map(_three, parts)] if len({page.header.parts for page in found}) > 1 else parts).halved(),
        )


def _three(blocks: Blocks) -> Blocks:
    """Single steps as blocks with a minimum and a maximum."""
    full = blocks.values.shape[1] == len(PARTS)
    return blocks if full else replace(blocks, values=np.repeat(blocks.values, len(PARTS), axis=1))


def _opened(opened: ExitStack, path: Path, layout: Layout) -> pages.Page | None:
    try:
        return opened.enter_context(pages.Page(path, layout))
    except (OSError, ValueError):
        return None
