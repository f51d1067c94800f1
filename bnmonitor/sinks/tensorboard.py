"""The history in TensorBoard's own files: scalars for everyone, a frame for the tab, the alerts as a table."""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnmonitor._text import listing
from bnmonitor.alerts import Alert
from bnmonitor.sinks.base import Run, Sink
from bnmonitor.sinks.loggers import torch_writer, totals
from bnmonitor.summary import METRICS, Summary

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary as SummaryProto

PLUGIN = "bnmonitor"
FRAME_TAG = "bnmonitor/frame"
ALERTS_TAG = "bnmonitor/alerts"
PER_LAYER = {"bn_health": "health", "bn_batch_var": "batch_var", "bn_running_gap": "mean_lag"}
"""Scalars with a value per layer: group of tags, and the metric it shows."""


class TensorBoard(Sink):
    """Writes the state of all layers as event data.

    At each call one event holds a handful of scalars, and one holds the whole ``[layers, metrics]`` table as a tensor
    for the BatchNorm tab. The alerts are one Markdown table, written anew when it changes.

    Args:
        log_dir: Directory for an event file of our own; None: the files of the Trainer's TensorBoard loggers.
    """

    def __init__(self, log_dir: str | Path | None = None) -> None:
        self._log_dir = log_dir
        self._own: Any = None
        self._writers: Sequence[Any] = ()
        self._alerts: dict[tuple[str, str, int], Alert] = {}
        self._described: str | None = None
        self._tags: dict[str, str] = {}
        self._step = 0

    def open(self, run: Run) -> None:
        """Open the event file, or take the loggers' writers."""
        if self._log_dir is None:
            self._writers = [w for each in run.loggers if (w := torch_writer(each)) is not None]
        elif self._own is None:
            from torch.utils.tensorboard import SummaryWriter

            self._own = SummaryWriter(str(self._log_dir))
            self._writers = [self._own]
        self._described = None

    def frame(self, summary: Summary) -> None:
        """Write one frame and its scalars."""
        self._step = max(0, summary.step)
        values = [*self._scalars(summary), self._frame(summary)]
        for writer in self._writers:
            self._add(writer, values)

    def alert(self, alert: Alert) -> None:
        """Write the table of all alerts anew."""
        self._alerts[alert.key] = alert
        self._step = max(self._step, alert.last_step)
        for writer in self._writers:
            writer.add_text(ALERTS_TAG, _markdown(list(self._alerts.values())), self._step)
            writer.flush()

    def epoch(self, summary: Summary) -> None:
        """Flush, so that the files are up to date between epochs."""
        for writer in self._writers:
            writer.flush()

    def close(self, summary: Summary) -> None:
        """Flush; an event file of our own is closed."""
        self.epoch(summary)
        if self._own is not None:
            self._own.close()
            self._own, self._writers = None, ()

    def _add(self, writer: Any, values: list[SummaryProto.Value]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary as SummaryProto

        # One event for all: a scalar of its own costs five times as much. The public `file_writer` is None after a
        # logger was finalized; this call opens it again.
        writer._get_file_writer().add_summary(SummaryProto(value=values), self._step)

    def _scalars(self, summary: Summary) -> list[SummaryProto.Value]:
        from tensorboard.compat.proto.summary_pb2 import Summary as SummaryProto

        scalars = totals(summary)
        for group, metric in PER_LAYER.items():
            column = summary.table[:, METRICS.index(metric)].tolist()
            for name, value in zip(summary.layers.names, column, strict=True):
                if value == value:
                    scalars[f"{group}/{name}"] = value
        return [SummaryProto.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]

    def _frame(self, summary: Summary) -> SummaryProto.Value:
        from tensorboard.compat.proto import summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2

        described = json.dumps({"v": 1, "layers": summary.layers.names, "metrics": METRICS})
        fresh = described != self._described
        self._described = described
        dims = [tensor_shape_pb2.TensorShapeProto.Dim(size=n) for n in summary.table.shape]
        return summary_pb2.Summary.Value(
            tag=self._tag(described),
            tensor=tensor_pb2.TensorProto(
                dtype=types_pb2.DT_FLOAT,
                tensor_shape=tensor_shape_pb2.TensorShapeProto(dim=dims),
                tensor_content=summary.table.numpy().astype("<f4").tobytes(),
            ),
            metadata=summary_pb2.SummaryMetadata(
                data_class=summary_pb2.DATA_CLASS_TENSOR,
                plugin_data=summary_pb2.SummaryMetadata.PluginData(
                    plugin_name=PLUGIN, content=described.encode() if fresh else b""
                ),
            ),
        )

    def _tag(self, described: str) -> str:
        """The frame's tag; other layers than the first need another, since TensorBoard keeps one description a tag."""
        if described not in self._tags:
            suffix = f"/{hashlib.sha256(described.encode()).hexdigest()[:8]}" if self._tags else ""
            self._tags[described] = FRAME_TAG + suffix
        return self._tags[described]


def _markdown(alerts: list[Alert]) -> str:
    """Every alert so far as one table, newest first."""
    lines = ["| rule | severity | layer | since | state | what | fix |", "|---|---|---|---|---|---|---|"]
    for a in sorted(alerts, key=lambda a: -a.first_step):
        more = f" (+{len(a.layers) - 1})" if len(a.layers) > 1 else ""
        channels = f" channels {listing(a.channels)}" if a.channels else ""
        cells = [
            f"{a.code} {a.rule}",
            str(a.severity),
            f"{a.layer or ''}{more}{channels}",
            str(a.first_step),
            a.state if a.state == "open" else f"cleared, last seen {a.last_step}",
            a.message,
            a.advice,
        ]
        lines.append("| " + " | ".join(_cell(c) for c in cells) + " |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return html.escape(text).replace("|", "&#124;").replace("\n", " ").replace("*", "&#42;").replace("_", "&#95;")
