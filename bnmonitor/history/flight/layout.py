"""Names, files and fixed sizes of a flight record."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bnmonitor.history.schema import BOXES

Array = np.ndarray[Any, Any]

VERSION = 1
FOLDER = BOXES / "flight"
"""The place of a flight record in a run's directory."""

STATISTICS = ("batch_mean", "batch_var", "running_mean", "running_var", "gamma", "beta")
LOGARITHMIC = frozenset({"batch_var", "running_var"})
"""The statistics whose error is relative to their value."""

PARTS = ("mean", "minimum", "maximum")
"""What a block holds of each statistic; one step alone has its mean only."""

COURSE = ("wall_time", "loss", "loss_minimum", "loss_maximum", "epoch")
"""What a block holds of the run, before the learning rate of each parameter group."""


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
        steps = (self.last - self.first + 1).astype(np.float64)
        values = np.stack([_mean(self.values[:, 0], steps), *_extremes(self.values)], axis=1)
        low, high = (COURSE.index(f"loss_{name}") for name in ("minimum", "maximum"))
        course = _last(self.course)
        loss = COURSE.index("loss")
        course[:, loss] = _mean(self.course[:, loss, None, None], steps)[:, 0, 0]
        course[:, low] = np.fmin.reduceat(self.course[:, low], np.arange(0, len(self), 2))
        course[:, high] = np.fmax.reduceat(self.course[:, high], np.arange(0, len(self), 2))
        return Blocks(self.first[::2], _last(self.last), values, course)


def _last(rows: Array) -> Array:
    """The second of each pair of rows; the only one of the last, if their number is odd."""
    pairs = np.array(rows[1::2])
    return np.concatenate([pairs, rows[-1:]]) if len(rows) % 2 else pairs


def _mean(rows: Array, steps: Array) -> Array:
    """The mean of each pair of ``[B, S, C]`` rows over their steps; one that is unknown does not count."""
    weight = np.where(np.isnan(rows), 0.0, steps[:, None, None]).astype(np.float32)
    at = np.arange(0, len(rows), 2)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        total = np.add.reduceat(np.where(weight > 0, rows * weight, 0), at)
        return np.asarray(total / np.add.reduceat(weight, at), rows.dtype)


def _extremes(values: Array) -> tuple[Array, Array]:
    at = np.arange(0, len(values), 2)
    low, high = (values[:, 1], values[:, 2]) if values.shape[1] == len(PARTS) else (values[:, 0], values[:, 0])
    return np.fmin.reduceat(low, at), np.fmax.reduceat(high, at)
