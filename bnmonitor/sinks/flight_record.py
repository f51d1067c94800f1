"""The flight record of a run: every channel of every layer over the whole run, written off the training thread."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from bnmonitor.history.flight.layout import COURSE, FOLDER, STATISTICS, Array
from bnmonitor.history.flight.writer import FlightWriter
from bnmonitor.limits import FLIGHT_BYTES
from bnmonitor.measures import with_affine
from bnmonitor.results import Alert, Incident
from bnmonitor.window import Window

_WALL_TIME, _LOSS, _EPOCH = (COURSE.index(name) for name in ("wall_time", "loss", "epoch"))

_FINEST, _COARSEST = 0.005, 0.05
"""Bounds of the errors: of a mean in standard deviations, of a variance relative to it."""

_JUMP = 6.0
"""A layer's range of batch statistics within a check is a spike from so many times its usual range on."""

_CALM = 10
"""Checks after which a layer's usual range is known."""


class FlightRecord:
    """Passes what rules have judged to a writer, and the single steps of layers that do something unusual.

    Args:
        run: The run's directory.
        budget: Most bytes of the record's files.
    """

    def __init__(self, run: Path, budget: int = FLIGHT_BYTES) -> None:
        self._run, self._budget = run, budget
        self._writer: FlightWriter | None = None
        self._key: tuple[object, ...] = ()
        self._usual: Array | None = None
        self._starts: Array = np.zeros(0, np.int64)
        self._checks = 0
        self._detailed: dict[int, int] = {}
        self._failed: list[Exception] = []
        self._wall = time.time()
        self._epoch = 0

    @property
    def folder(self) -> Path:
        """The directory of the record."""
        return self._run / FOLDER

    def end_epoch(self, epoch: int | None) -> None:
        """Note that an epoch has ended."""
        self._epoch = (self._epoch if epoch is None else epoch) + 1

    def take(self, window: Window, alerts: Iterable[Alert]) -> None:
        """Record the new steps of a window that rules have judged.

        Args:
            window: The window.
            alerts: Alerts that have opened or got worse.

        Raises:
            ValueError: The budget is too small for the model.
            OSError: The directory can't be written to.
        """
        new = min(window.fresh, len(window))
        if not new:
            return
        writer = self._begun(window)
        rows = _rows(window, new)
        spans = writer.add(window.steps[-new:], rows, self._course(window, new, new))
        layers = {window.layers.names.index(n) for a in alerts for n in a.layers if n in window.layers.names}
        self._keep_steps(writer, window, sorted(layers | self._spikes(rows, spans)))

    def note(self, alerts: Iterable[Alert], incidents: Iterable[Incident]) -> None:
        """Keep the state of alerts and incidents that have changed; nothing before the first step."""
        if self._writer is None:
            return
        for alert in alerts:
            self._writer.note(f"alert {alert.key}", {"alert": alert.to_dict()})
        for incident in incidents:
            self._writer.note(f"incident {incident.index}", {"incident": incident.to_dict()})

    def failures(self) -> list[Exception]:
        """Return the errors of writing since the last call."""
        failed, self._failed = self._failed, []
        return failed + ([] if self._writer is None else self._writer.failures())

    def close(self) -> None:
        """Write what is left, and wait until it is written; a later step begins a new session."""
        if self._writer is not None:
            self._writer.close()
            self._failed = self._writer.failures()
        self._writer, self._key = None, ()

    def _begun(self, window: Window) -> FlightWriter:
        groups = len(window.facts.group_rates)
        key = (window.layers.names, window.layers.channels, groups)
        if self._writer is not None and key == self._key:
            return self._writer
        writer = self._writer or FlightWriter(self.folder, self._budget)
        noise = _noise(window)
        writer.begin(
            window.layers.names,
            window.layers.channels,
            groups=groups,
            mean_error=(noise / 2).clamp(_FINEST, _COARSEST).tolist(),
            variance_error=(noise * 2**-0.5).clamp(_FINEST, _COARSEST).tolist(),
            began=time.time(),
        )
        self._writer, self._key = writer, key
        self._usual, self._checks, self._detailed = None, 0, {}
        self._starts = np.array(window.layers.offsets[:-1])
        return writer

    def _course(self, window: Window, count: int, new: int) -> Array:
        """``[count, N]`` of the last steps, ``new`` of them new: the time, the loss, the epoch, the learning rates."""
        rates = window.facts.group_rates
        course = np.empty((count, len(COURSE) + len(rates)))
        course.fill(np.nan)
        before, self._wall = self._wall, time.time()
        each = (self._wall - before) / new
        course[-new:, _WALL_TIME] = [before + each * number for number in range(1, new + 1)]
        losses = window.facts.losses
        if len(losses) == len(window):
            course[:, _LOSS] = [np.nan if loss is None else loss for loss in losses[-count:]]
        course[:, _EPOCH] = self._epoch
        course[:, len(COURSE) :] = rates
        return course

    def _spikes(self, rows: Mapping[str, Array], spans: Array | None) -> set[int]:
        """Layers whose batch means have a range within the new steps that is unusual for them."""
        if spans is None or len(rows["batch_mean"]) < 2:
            return set()
        scale = rows["running_var"][-1] + np.float32(1e-5)
        with np.errstate(invalid="ignore", divide="ignore"):
            spans /= np.sqrt(scale, out=scale)
        now = np.maximum.reduceat(spans, self._starts)
        if not np.isfinite(now).all():
            now = np.maximum.reduceat(np.where(np.isfinite(spans), spans, 0.0), self._starts)
        usual, self._checks = self._usual, self._checks + 1
        self._usual = now if usual is None else usual + 0.1 * (np.minimum(now, 2 * usual) - usual)
        if usual is None or self._checks <= _CALM:
            return set()
        return set(np.flatnonzero(now > _JUMP * usual).tolist())

    def _keep_steps(self, writer: FlightWriter, window: Window, layers: Sequence[int]) -> None:
        """Keep the window's single steps of some layers; a layer whose steps were kept just now is left out."""
        due = [layer for layer in layers if self._detailed.get(layer, -1) < window.steps[0]]
        if due:
            self._detailed.update(dict.fromkeys(due, window.steps[-1]))
            rows = _rows(window, len(window))
            writer.detail(due, window.steps, rows, self._course(window, len(window), 1))


def _rows(window: Window, new: int) -> dict[str, Array]:
    window, found = with_affine(window), {}
    for name in STATISTICS:
        rows = getattr(window, name)
        found[name] = (rows if rows.dtype is torch.float32 else rows.float()).numpy()[-new:]
    return found


def _noise(window: Window) -> torch.Tensor:
    """``[L]`` by how many standard deviations a batch's mean is uncertain; the most where it is unknown."""
    if window.sample is None:
        return torch.full((len(window.layers),), 1.0, device="cpu")
    return window.sample.values.clamp_min(1).float().rsqrt()
