"""Reads a flight record: a statistic of a layer over the whole run, without reading anything else."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bnmonitor._text import nearest
from bnmonitor.history.flight.layout import FOLDER, LAYOUT, PARTS, STATISTICS, Array, Layout, Part, columns
from bnmonitor.history.flight.notes import read as read_notes
from bnmonitor.history.flight.pages import GAMMA_ERROR, Page
from bnmonitor.history.flight.series import Series, Wanted, gather
from bnmonitor.history.flight.tail import read_steps
from bnmonitor.history.incidents import described, replay
from bnmonitor.results import Alert, Incident

logger = logging.getLogger("bnmonitor")


class Flight:
    """The flight record in a directory. A file that is damaged is left out, and the log says so.

    Args:
        folder: The directory of the record.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._layouts = _layouts(folder)
        self._parts = _parts(folder, self._layouts)

    @classmethod
    def of(cls, run: Path) -> Flight | None:
        """Return the flight record of a run's directory; None if it has none."""
        found = cls(run / FOLDER) if (run / FOLDER).is_dir() else None
        return found if found is not None and found._layouts else None

    @property
    def layers(self) -> dict[str, int]:
        """Channels of each layer by its name; the layers of the last steps come first."""
        newest = sorted(self._layouts.values(), key=lambda each: (each.session, each.number), reverse=True)
        found: dict[str, int] = {}
        for layout in newest:
            for name, count in zip(layout.layers, layout.channels, strict=True):
                found.setdefault(name, count)
        return found

    def error(self, layer: str, statistic: str) -> float:
        """Return the largest error of a statistic.

        That of a mean is in standard deviations of the channel, that of a variance is relative to it, and that of gamma
        and beta is in typical gammas of the layer.
        """
        self._check(layer, statistic)
        if statistic in ("gamma", "beta"):
            return GAMMA_ERROR
        errors = [
            (each.mean_error if "mean" in statistic else each.variance_error)[each.layers.index(layer)]
            for each in self._layouts.values()
            if layer in each.layers
        ]
        return max(errors)

    def series(self, layer: str, statistic: str, first: int | None = None, last: int | None = None) -> Series:
        """Return a statistic of a layer.

        Args:
            layer: Its name.
            statistic: One of ``batch_mean``, ``batch_var``, ``running_mean``, ``running_var``, ``gamma``, ``beta``.
            first: The first step to read; None: from the beginning.
            last: The last step to read; None: to the end.

        Raises:
            KeyError: There is no such layer or statistic; the message names the nearest one.
        """
        starts, ends, (mean, minimum, maximum) = self._gathered(layer, statistic, first, last, len(PARTS))
        return Series(starts, ends, minimum, mean, maximum)

    def history(
        self, layer: str, statistic: str, first: int | None = None, last: int | None = None
    ) -> tuple[Array, Array]:
        """Return the last step of each block, and its mean, as :meth:`series` does in more than twice the time."""
        _, ends, (mean,) = self._gathered(layer, statistic, first, last, 1)
        return ends, mean

    def _gathered(
        self, layer: str, statistic: str, first: int | None, last: int | None, parts: int
    ) -> tuple[Array, Array, tuple[Array, ...]]:
        channels = self._check(layer, statistic)
        low, high = -np.inf if first is None else first, np.inf if last is None else last
        wanted = Wanted(layer, channels, statistic, parts, low, high)
        return gather(self._spans(details=True), wanted)

    def course(self) -> dict[str, Array]:
        """Return ``first``, ``last`` and the columns of the course, ``[B]`` each, of the whole run."""
        rows: list[tuple[Array, Array, Array, tuple[str, ...]]] = []
        for part, layout, until in self._spans(details=False):
            got = self._blocks(part, layout)
            if got is not None:
                first, last, course = got
                keep = first < until
                rows.append((first[keep], last[keep], course[keep], columns(layout.groups)))
        names = tuple(dict.fromkeys(name for *_, each in rows for name in each))
        found = {name: [np.full(len(first), np.nan) for first, *_ in rows] for name in names}
        for place, (_, _, course, mine) in enumerate(rows):
            for column, name in enumerate(mine):
                found[name][place] = course[:, column]
        empty = [np.zeros(0, np.int64)]
        steps = {k: np.concatenate([r[i] for r in rows] or empty) for i, k in enumerate(("first", "last"))}
        return {**steps, **{name: np.concatenate(each) for name, each in found.items()}}

    def alerts(self) -> tuple[dict[str, Any], ...]:
        """Return the alerts in their last state, as :meth:`bnmonitor.Alert.to_dict` gives them."""
        found: dict[tuple[str, str, int], dict[str, Any]] = {}
        for _, note in self._notes:
            alert = described(Alert, note["alert"]) if isinstance(note.get("alert"), dict) else None
            if alert is not None:
                found[alert.key] = note["alert"]
        return tuple(sorted(found.values(), key=lambda each: (each["first_step"], each["code"])))

    def incidents(self) -> tuple[Incident, ...]:
        """Return the incidents in their last state, in the order in which they were recorded."""
        rows = [(session, note["incident"]) for session, note in self._notes if isinstance(note.get("incident"), dict)]
        begins: dict[int, int] = {}
        for part, layout, _ in reversed(self._spans(details=False)):
            if (begin := self._begin(part, layout)) is not None:
                begins[part.session] = min(int(begin), begins.get(part.session, int(begin)))
        return replay(rows, begins, self.alerts())

    @cached_property
    def _notes(self) -> list[tuple[int, dict[str, Any]]]:
        try:
            return list(read_notes(self.folder))
        except OSError as error:
            logger.warning("the alerts and incidents of the flight record are left out: %s", error)
            return []

    def _check(self, layer: str, statistic: str) -> int:
        if statistic not in STATISTICS:
            raise KeyError(
                f"a flight record has no statistic {statistic!r}, only {', '.join(STATISTICS)}"
                f"{nearest(statistic, STATISTICS)}"
            )
        if layer not in self.layers:
            raise KeyError(f"the run has no layer {layer!r}{nearest(layer, tuple(self.layers))}")
        return self.layers[layer]

    def _spans(self, *, details: bool) -> list[tuple[Part, Layout, float]]:
        """The parts of the run in the order of writing, each with the step from which a later one replaces it."""
        spans, until = [], np.inf
        groups: dict[tuple[int, int], list[Part]] = {}
        for part in self._parts:
            groups.setdefault((part.session, part.layout), []).append(part)
        for key in sorted(groups, reverse=True):
            layout, parts = self._layouts[key], groups[key]
            spans += [(part, layout, until) for part in parts if details or part.kind != "detail"]
            earliest = next((part for part in parts if part.kind != "detail"), None)
            begins = None if earliest is None else self._begin(earliest, layout)
            until = until if begins is None else min(until, begins)
        return sorted(spans, key=lambda each: each[0])

    def _begin(self, part: Part, layout: Layout) -> float | None:
        got = self._blocks(part, layout)
        return None if got is None or not len(got[0]) else float(got[0][0])

    def _blocks(self, part: Part, layout: Layout) -> tuple[Array, Array, Array] | None:
        """First steps, last steps and course of a part; None if it is damaged."""
        try:
            if part.kind == "tail":
                return read_steps(part.path, layout)
            with Page(part.path, layout) as page:
                return page.header.first, page.header.last, page.header.course
        except (OSError, ValueError) as error:
            logger.warning("a part of the flight record is left out: %s", error)
            return None


def _layouts(folder: Path) -> dict[tuple[int, int], Layout]:
    found = {}
    for path in sorted(folder.iterdir()):
        if LAYOUT.fullmatch(path.name):
            try:
                layout = Layout.decode(path.read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError):
                layout = None
            if layout is None:
                logger.warning("%s is not the layout of a flight record that this bnmonitor reads", path)
            else:
                found[layout.session, layout.number] = layout
    return found


def _parts(folder: Path, layouts: dict[tuple[int, int], Layout]) -> Sequence[Part]:
    """The files to read in the order of writing: none whose steps a coarser page has, if the writer was killed."""
    parts = [p for path in folder.iterdir() if (p := Part.of(path)) and (p.session, p.layout) in layouts]
    pages = [part for part in parts if part.kind == "page"]

    def covered(part: Part) -> bool:
        return part.kind != "detail" and any(
            (other.session, other.layout) == (part.session, part.layout)
            and other.number <= part.number
            and part.end <= other.end
            and (other.level > part.level or part.kind == "tail")
            for other in pages
        )

    return sorted(part for part in parts if not covered(part))
