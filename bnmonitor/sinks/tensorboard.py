"""The history in TensorBoard's own files: scalars and a table of alerts for everyone, and the data of the tab."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnmonitor._version import __version__
from bnmonitor.history import course, encode, entry
from bnmonitor.history.schema import ABOUT, COURSE, FRAME, Schema, alert_tag, incident_tag
from bnmonitor.results import Alert, Incident
from bnmonitor.sinks.base import Run, Sink
from bnmonitor.sinks.channel_detail import ChannelDetail, LayerFacts
from bnmonitor.sinks.loggers import torch_writer, totals
from bnmonitor.sinks.own_tabs import PER_LAYER, alerts_text, has_layout, layout
from bnmonitor.sinks.sessions import WriterSession
from bnmonitor.sinks.thinning import Thinning
from bnmonitor.summary import METRICS, Summary

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary as SummaryProto

logger = logging.getLogger("bnmonitor")

ALERTS_TAG = "bnmonitor/alerts"
FLUSH_SECONDS = 10
"""At most this many seconds of events are lost if the process is killed; a logger's writer has its own interval."""

MANY = 64
"""With more layers than this only those that have had an alert get scalars of their own; the tab shows all."""

_FRAMING = 48
"""Bytes around a summary in the file: length, checksums, step and time."""

RUN_BYTES = 512 * 2**20
"""Most bytes of a run's frames by default."""


class TensorBoard(Sink):
    """Writes the state of all layers as event data.

    For every TensorBoard: a few scalars, and the alerts as one Markdown table that is rewritten when it changes. For
    the BatchNorm tab, the report and the comparison: the whole ``[layers, metrics]`` table as one tensor, the channels
    of some layers, each alert and each incident as JSON, and the loss, the learning rates and the epoch. A frame with
    all that belongs to it is one event.

    Args:
        log_dir: Directory for a new event file; None: the files of the Trainer's TensorBoard loggers.
        channel_bytes: Bytes per frame for channels; 0: none are written. Layers with an open warning come first.
        run_bytes: Bytes of all frames of a run, with their scalars and channels; None: no bound. Long before it is
            reached only every 2nd, 4th, ... frame is written, and those at which a layer does something unusual or an
            alert comes or goes: see :class:`bnmonitor.sinks.thinning.Thinning`. The count starts again
            when a run is resumed.

    Raises:
        ValueError: ``channel_bytes`` is negative, or ``run_bytes`` is not positive.
    """

    def __init__(
        self,
        log_dir: str | Path | None = None,
        channel_bytes: int = 32_768,
        run_bytes: int | None = RUN_BYTES,
    ) -> None:
        if channel_bytes < 0:
            raise ValueError(f"channel_bytes={channel_bytes!r} must be 0 (no channels) or more")
        if run_bytes is not None and run_bytes <= 0:
            raise ValueError(f"run_bytes={run_bytes!r} must be 1 or more, or None for no bound")
        self._log_dir = log_dir
        self._own: Any = None
        self._writers: Sequence[Any] = ()
        self._alerts: dict[tuple[str, str, int], Alert] = {}
        self._written: dict[tuple[str, str, int], Alert] = {}
        self._incidents: dict[int, Incident] = {}
        self._told: dict[int, Incident] = {}
        self._epoch: int | None = None
        self._ended = -1
        """The step at which the last epoch ended."""
        self._described: set[str] = set()
        self._reported: dict[str, Any] = {}
        self._channels, self._facts = ChannelDetail(channel_bytes), LayerFacts()
        self._thinning = Thinning(run_bytes)
        self._session = WriterSession(())
        self._last = (-1, math.nan)
        """Step and loss of the last frame."""
        self._alerted = self._left_out = False
        self._step = 0

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the writers, which hold files and threads."""
        return {**vars(self), "_own": None, "_writers": ()}

    def open(self, run: Run) -> None:
        """Open the event file, or take the loggers' writers."""
        if self._log_dir is None:
            self._writers = [w for each in run.loggers if (w := torch_writer(each)) is not None]
        elif self._own is None:
            from torch.utils.tensorboard import SummaryWriter

            self._own = SummaryWriter(str(self._log_dir), flush_secs=FLUSH_SECONDS)
            self._writers = [self._own]
        self.history = [str(writer.log_dir) for writer in self._writers]
        for writer in self._writers:
            writer._get_file_writer()  # makes the event file, which the session counts
            writer.flush()
            if not has_layout(Path(writer.log_dir)):
                writer._get_file_writer().add_summary(layout())
        self._session = WriterSession(self.history)
        self._reported, self._told, self._incidents = {}, {}, {}
        self._described.clear()
        self._channels.reopen()
        self._facts.reopen()

    def frame(self, summary: Summary) -> None:
        """Write a frame, its scalars, and changes of alerts and layers; a long run does not write every frame."""
        self._step = max(0, summary.step)
        self._take(summary)
        variance, health = (summary.table[:, METRICS.index(name)] for name in ("batch_var", "health"))
        alerted, self._alerted = self._alerted, False
        self._left_out = not self._thinning.wants(variance, health, alerted)
        if self._left_out:
            self._add([*self._news(), *self._about("running", summary)])
        else:
            self._thinning.wrote(self._whole(summary))

    def _whole(self, summary: Summary) -> int:
        """Write a frame with its scalars and facts, and with channels at the stride; return its bytes."""
        schema = Schema(summary.layers.names, summary.layers.channels, METRICS, self._session.number)
        self._last = (self._step, summary.loss)
        channels = self._channels.values(summary, schema.key) if self._thinning.on_stride else []
        return self._add(
            [
                *self._scalars(summary),
                self._frame(summary, schema),
                self._course(summary, schema),
                *self._facts.values(summary, schema.key),
                *channels,
                *self._news(),
                *self._about("running", summary),
            ]
        )

    def alert(self, alert: Alert) -> None:
        """Write the alert, and rewrite the table of all alerts."""
        self._alerts[alert.key] = alert
        if alert.incident is not None:
            self._incidents[alert.incident.index] = alert.incident
        self._alerted = True
        self._step = max(self._step, alert.last_step)
        self._add(self._news())
        self._table()

    def incident(self, incident: Incident) -> None:
        """Write the incident."""
        self._incidents[incident.index] = incident
        self._alerted = True
        self._step = max(self._step, incident.last_step)
        self._add(self._news())
        self._table()

    def epoch(self, summary: Summary) -> None:
        """Flush, so that the files are up to date between epochs."""
        ended = self._epoch if summary.epoch is None else summary.epoch
        self._epoch, self._ended = (ended or 0) + 1, summary.step
        self._flush(summary)

    def _flush(self, summary: Summary) -> None:
        self._take(summary)
        self._add(self._news(even_older=True))
        for writer in self._writers:
            writer.flush()
        if intruder := self._session.intruder():
            logger.warning("%s", intruder)

    def close(self, summary: Summary) -> None:
        """Write the last frame if it was left out, and the end of the run; close the sink's own event file."""
        if self._left_out and summary.step >= 0:
            self._left_out = False
            self._whole(summary)
        self._add(self._about("ended", summary))
        self._flush(summary)
        if self._own is not None:
            self._own.close()
            self._own, self._writers = None, ()
        frames = sum(tag.startswith(FRAME) for tag in self._described)
        if self._session.number == 1 and frames == 1:  # of several sessions or layers, readers make one run
            for directory in self.history:
                alerts, incidents = self._written.values(), self._told.values()
                entry.write(Path(directory), alerts, incidents, len(summary.layers), *self._last)

    def _about(self, state: str, summary: Summary) -> list[SummaryProto.Value]:
        """Return the record of the run as a whole, if it changed."""
        about = {
            "version": __version__,
            "state": state,
            "epoch": summary.epoch,
            "skipped": dict(summary.skipped),
            "overhead": round(summary.overhead, 6) if summary.overhead == summary.overhead else None,
            "session": self._session.number,
        }
        before, self._reported = self._reported, {**about, "epoch": None, "overhead": None}
        return [] if before == self._reported else [encode.plain(ABOUT, about)]

    def _take(self, summary: Summary) -> None:
        """Copy the state of alerts and incidents: those from before a resume, and layers that joined one since."""
        self._alerts.update((alert.key, alert) for alert in summary.alerts)
        self._incidents.update((incident.index, incident) for incident in summary.incidents)

    def _add(self, values: list[SummaryProto.Value]) -> int:
        """Write values as one event, and return its bytes."""
        from tensorboard.compat.proto.summary_pb2 import Summary as SummaryProto

        event = SummaryProto(value=values)
        # One event for all: a scalar of its own costs five times as much. The public `file_writer` is None after a
        # logger was finalized; this call opens it again.
        now = self._session.now()
        for writer in self._writers if values else ():
            writer._get_file_writer().add_summary(event, self._step, now)
        return int(event.ByteSize()) + _FRAMING

    def _scalars(self, summary: Summary) -> list[SummaryProto.Value]:
        from tensorboard.compat.proto.summary_pb2 import Summary as SummaryProto

        scalars = totals(summary)
        chosen = set(summary.layers.names)
        if len(chosen) > MANY:
            chosen &= {name for alert in summary.alerts for name in alert.layers}
        for group, metric in PER_LAYER.items():
            column = summary.table[:, METRICS.index(metric)].tolist()
            for name, value in zip(summary.layers.names, column, strict=True):
                if value == value and name in chosen:
                    scalars[f"{group}/{name}"] = value
        return [SummaryProto.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]

    def _frame(self, summary: Summary, schema: Schema) -> SummaryProto.Value:
        tag = FRAME + schema.key
        description = b"" if tag in self._described else schema.encode()
        self._described.add(tag)
        return encode.floats(tag, summary.table.numpy(), description)

    def _course(self, summary: Summary, schema: Schema) -> SummaryProto.Value:
        epoch = self._epoch if summary.epoch is None else summary.epoch
        if epoch and summary.epoch is None and summary.step <= self._ended:
            epoch -= 1
        return encode.plain(COURSE + schema.key, course.record(summary.loss, summary.learning_rates, epoch))

    def _news(self, even_older: bool = False) -> list[SummaryProto.Value]:
        """Return the alerts and incidents that changed since they were written.

        A new last step counts only when an epoch ends.
        """
        values = []
        for key, alert in self._alerts.items() if self._writers else ():
            before = self._written.get(key)
            if before == alert or (before and not even_older and _same(before, alert)):
                continue
            self._written[key] = alert
            values.append(encode.plain(alert_tag(key), alert.to_dict()))
        for index, incident in self._incidents.items() if self._writers else ():
            told = self._told.get(index)
            if told == incident or (told and not even_older and _unchanged(told, incident)):
                continue
            self._told[index] = incident
            values.append(encode.plain(incident_tag(self._session.number, index), incident.to_dict()))
        return values

    def _table(self) -> None:
        for writer in self._writers:
            writer.add_text(
                ALERTS_TAG, alerts_text(list(self._alerts.values()), list(self._incidents.values())), self._step
            )
            writer.flush()


def _same(before: Alert, now: Alert) -> bool:
    """Return whether nothing changed but the last step of the alert."""
    return replace(before, last_step=now.last_step) == now


def _unchanged(before: Incident, now: Incident) -> bool:
    """Return whether nothing changed but the last steps, and the numbers that describe the incident."""

    def essence(incident: Incident) -> Incident:
        evidence = tuple(replace(alert, last_step=0, value=0.0, message="") for alert in incident.evidence)
        return replace(incident, last_step=0, detail="", evidence=evidence)

    return essence(before) == essence(now)
