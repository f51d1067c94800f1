"""Names, files and fixed sizes of a flight record."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bnmonitor.history.schema import BOXES

Array = np.ndarray[Any, Any]

VERSION = 2
FOLDER = BOXES / "flight"
"""The place of a flight record in a run's directory."""

STATISTICS = ("batch_mean", "batch_var", "running_mean", "running_var", "gamma", "beta")
LOGARITHMIC = frozenset({"batch_var", "running_var"})
"""The statistics whose error is relative to their value."""

PARTS = ("mean", "minimum", "maximum")
"""What a block holds of each statistic; one step alone has its mean only."""

COURSE = ("wall_time", "loss", "loss_minimum", "loss_maximum", "epoch")
"""What a block holds of the run, before the learning rate of each parameter group."""

_LOSS, _LOW, _HIGH = (COURSE.index(name) for name in ("loss", "loss_minimum", "loss_maximum"))


@dataclass(frozen=True)
class Layout:
    """What the blocks of a part of a session have in common: written once, as JSON.

    Attributes:
        session: Number of the session among those that wrote into the directory.
        number: Number of the layout within the session: other layers make another one.
        layers: Name of each layer.
        channels: Number of channels of each layer.
        block: Steps in a block when it is written first.
        page: Blocks in a page.
        groups: Parameter groups of the optimizers.
        mean_error: Largest error of each layer's means, in standard deviations of the channel.
        variance_error: Largest relative error of each layer's variances.
        began: When it began, in seconds since 1970.
    """

    session: int
    number: int
    layers: tuple[str, ...]
    channels: tuple[int, ...]
    block: int
    page: int
    groups: int = 0
    mean_error: tuple[float, ...] = ()
    variance_error: tuple[float, ...] = ()
    began: float = 0.0
    version: int = field(default=VERSION)

    @property
    def total(self) -> int:
        """Channels of all layers."""
        return sum(self.channels)

    @property
    def stem(self) -> str:
        """The beginning of the names of its files."""
        return f"s{self.session:04d}-l{self.number}"

    @property
    def file(self) -> str:
        """The name of its own file."""
        return f"{self.stem}.json"

    def span(self, layer: int) -> slice:
        """The channels of a layer among all."""
        start = sum(self.channels[:layer])
        return slice(start, start + self.channels[layer])

    def encode(self) -> str:
        """Return the text of its file."""
        return json.dumps({"format": "bnmonitor flight record", "statistics": STATISTICS, **asdict(self)}, indent=1)

    @classmethod
    def decode(cls, text: str) -> Layout | None:
        """Return the layout that :meth:`encode` wrote; None for any other text."""
        try:
            plain = json.loads(text)
            if plain["version"] != VERSION or tuple(plain["statistics"]) != STATISTICS:
                return None
            found = cls(
                **{name: int(plain[name]) for name in ("session", "number", "block", "page", "groups")},
                layers=tuple(map(str, plain["layers"])),
                channels=tuple(int(n) for n in plain["channels"]),
                mean_error=tuple(float(e) for e in plain["mean_error"]),
                variance_error=tuple(float(e) for e in plain["variance_error"]),
                began=float(plain["began"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
            return None
        lengths = {len(found.layers), len(found.channels), len(found.mean_error), len(found.variance_error)}
        return found if len(lengths) == 1 and min((found.block, found.page, *found.channels), default=0) > 0 else None


def columns(groups: int) -> tuple[str, ...]:
    """Return the names of the columns of the course."""
    return (*COURSE, *(f"lr {group}" for group in range(groups)))


_PAGE = re.compile(r"s(\d{4,9})-l(\d{1,9})-k(\d{2})-(\d{8,18})\.page")
_DETAIL = re.compile(r"s(\d{4,9})-l(\d{1,9})-detail-(\d{8,18})\.page")
_TAIL = re.compile(r"s(\d{4,9})-l(\d{1,9})-tail-(\d{8,18})\.blocks")
LAYOUT = re.compile(r"s(\d{4,9})-l(\d{1,9})\.json")


@dataclass(frozen=True, order=True)
class Part:
    """A file with blocks.

    Attributes:
        session: Number of its session.
        layout: Number of its layout.
        number: The first page that it covers, counted in pages of the finest level; of details, their own number.
        level: How often its blocks were joined in pairs.
        kind: ``page``, ``tail`` or ``detail``.
        path: The file.
    """

    session: int
    layout: int
    number: int
    level: int
    kind: str
    path: Path

    @property
    def end(self) -> int:
        """The first page after it, counted in pages of the finest level."""
        return self.number + (1 << self.level)

    @classmethod
    def of(cls, path: Path) -> Part | None:
        """Return the part that a file's name says; None for another file."""
        if match := _PAGE.fullmatch(path.name):
            session, layout, level, number = map(int, match.groups())
            return cls(session, layout, number << level, level, "page", path)
        for kind, pattern in (("tail", _TAIL), ("detail", _DETAIL)):
            if match := pattern.fullmatch(path.name):
                session, layout, number = map(int, match.groups())
                return cls(session, layout, number, 0, kind, path)
        return None


def page_name(stem: str, level: int, number: int) -> str:
    """Return the name of a page's file; ``number`` counts the pages of its own level."""
    return f"{stem}-k{level:02d}-{number:08d}.page"


def detail_name(stem: str, number: int) -> str:
    """Return the name of a file with the single steps of some layers."""
    return f"{stem}-detail-{number:08d}.page"


def tail_name(stem: str, number: int) -> str:
    """Return the name of the file with the blocks that will be a page."""
    return f"{stem}-tail-{number:08d}.blocks"


@dataclass(frozen=True)
class Blocks:
    """Consecutive blocks of steps, of some layers.

    Attributes:
        first: ``[B]`` int64, the first step of each block.
        last: ``[B]`` int64, its last step.
        values: ``[B, K, S, C]`` float32: the ``K`` of :data:`PARTS` of each of the ``S`` :data:`STATISTICS`; ``K`` is 1
            where each block is one step.
        course: ``[B, N]`` float64, the columns that :func:`columns` names.
    """

    first: Array
    last: Array
    values: Array
    course: Array

    def __len__(self) -> int:
        return len(self.first)

    @classmethod
    def joined(cls, parts: Sequence[Blocks]) -> Blocks:
        """Put blocks one after the other."""
        return cls(
            np.concatenate([part.first for part in parts]),
            np.concatenate([part.last for part in parts]),
            np.concatenate([part.values for part in parts]),
            np.concatenate([part.course for part in parts]),
        )

    def halved(self) -> Blocks:
        """Join each two blocks that follow each other into one."""
        steps, pairs = self.last - self.first + 1, len(self) // 2
        count, parts, _, channels = self.values.shape
        values = empty_values(-(-count // 2), len(PARTS), channels)
        low, high = (1, 2) if parts == len(PARTS) else (0, 0)
        before, after = self.values[: 2 * pairs : 2], self.values[1::2]
        _mean(before[:, 0], after[:, 0], steps[: 2 * pairs : 2], steps[1::2], out=values[:pairs, 0])
        np.fmin(before[:, low], after[:, low], out=values[:pairs, 1])
        np.fmax(before[:, high], after[:, high], out=values[:pairs, 2])
        if count % 2:
            values[pairs] = self.values[-1]
        return Blocks(self.first[::2], _last(self.last), values, self._course_halved(steps))

    def _course_halved(self, steps: Array) -> Array:
        course = _last(self.course)
        known, at = ~np.isnan(self.course[:, _LOSS]), np.arange(0, len(self), 2)
        weight = np.where(known, steps, 0)
        total = np.add.reduceat(np.where(known, self.course[:, _LOSS] * weight, 0.0), at)
        with np.errstate(invalid="ignore"):
            course[:, _LOSS] = total / np.add.reduceat(weight, at)
        course[:, _LOW] = np.fmin.reduceat(self.course[:, _LOW], at)
        course[:, _HIGH] = np.fmax.reduceat(self.course[:, _HIGH], at)
        return course


def by_layer(layout: Layout, blocks: Blocks, layers: Sequence[int]) -> Iterator[tuple[int, Blocks]]:
    """Yield the position of each of some layers, whose channels blocks have one after the other, and its part."""
    end = 0
    for layer in layers:
        start, end = end, end + layout.channels[layer]
        yield layer, Blocks(blocks.first, blocks.last, blocks.values[..., start:end], blocks.course)


def empty_values(blocks: int, parts: int, channels: int) -> Array:
    """Return ``[B, K, S, C]`` of undefined values, in whose memory each statistic comes by itself, as in a tail."""
    return np.moveaxis(np.empty((len(STATISTICS), blocks, parts, channels), np.float32), 0, 2)


def _last(rows: Array) -> Array:
    """The second of each pair of rows; the only one of the last, if their number is odd."""
    pairs = np.array(rows[1::2])
    return np.concatenate([pairs, rows[-1:]]) if len(rows) % 2 else pairs


def _mean(before: Array, after: Array, steps: Array, later: Array, out: Array) -> None:
    """The mean of two ``[B, S, C]`` over their ``[B]`` steps; where one is unknown, the other."""
    share = (steps / (steps + later)).astype(np.float32)[:, None, None]
    with np.errstate(invalid="ignore", over="ignore"):
        np.subtract(before, after, out=out)
        out *= share
        out += after
    if not np.isfinite(out).all():
        wrong = ~np.isfinite(out)
        one, two = before[wrong], after[wrong]
        first = np.broadcast_to(share, out.shape)[wrong].astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            both = first * one + (1 - first) * two
        out[wrong] = np.where(np.isnan(one), two, np.where(np.isnan(two), one, both))
