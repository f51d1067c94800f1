"""The state of every layer now: the console shows it, TensorBoard draws it and ``monitor.summary()`` returns it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bnmonitor import measures
from bnmonitor.display import health_table, show
from bnmonitor.history import statistics as catalogue
from bnmonitor.layers import LayerTable
from bnmonitor.limits import LAG_LOG_DEVIATION, LAG_MEAN
from bnmonitor.results import HEALTH_CAPS, Alert, Incident, LayerSummary, Severity, StepSummary, health_near
from bnmonitor.window import Recovery, Window

if TYPE_CHECKING:
    from rich.console import RenderableType

METRICS = tuple(statistic.name for statistic in catalogue.LAYER)
"""Columns of :attr:`Summary.table`, in order."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Summary(StepSummary):
    """The state of all layers while they train; rich, IPython and notebooks show it as a table.

    Attributes:
        table: ``[L, len(METRICS)]`` float32: the numbers of each layer, in the order of :data:`METRICS`.
        layers: The layers' table.
        window: The steps that it was computed from, channel by channel; None before the first step.
            Valid until the next step.
    """

    table: Tensor
    layers: LayerTable
    window: Window | None = field(default=None, compare=False)

    def __rich__(self) -> RenderableType:
        return health_table(self, rows=len(self), well=True)

    def _ipython_display_(self) -> None:
        show(self)


def empty(layers: LayerTable, alerts: Sequence[Alert], skipped: Mapping[str, str]) -> Summary:
    """Return the summary before the first step."""
    table = torch.full((len(layers), len(METRICS)), torch.nan, device="cpu")
    table[:, 0] = 100.0
    rows = tuple(
        LayerSummary(
            name=name,
            channels=channels,
            health=100.0,
            training=True,
            settled=False,
            batch_var=(),
            running_gap=float("nan"),
            gamma_min=float("nan"),
            silent=float("nan"),
            alerts=(),
            recovery=skipped.get("every rule", "no step was recorded yet"),
        )
        for name, channels in zip(layers.names, layers.channels, strict=True)
    )
    return Summary(
        step=-1, epoch=None, table=table, layers=layers, rows=rows, alerts=tuple(alerts), skipped=dict(skipped)
    )


def summarize(
    window: Window,
    alerts: Sequence[Alert],
    skipped: Mapping[str, str],
    epoch: int | None = None,
    incidents: Sequence[Incident] = (),
) -> Summary:
    """Reduce a window to one row per layer.

    Open incidents cap the health of their layers; where none is given, each warning and each error counts as one.
    """
    layers = window.layers
    columns = {name: compute(window) for name, compute in measures.BY_LAYER.items()}
    serious = [alert for alert in alerts if alert.severity > Severity.INFO]
    explained: Sequence[Incident | Alert] = incidents or serious
    columns["health"] = _health(window, columns, _caps(layers, explained))
    trained = window.training[-1]
    by_layer = {
        "name": layers.names,
        "channels": layers.channels,
        "training": trained.tolist(),
        "settled": (measures.settled(window) | ~trained).tolist(),
        **{statistic.row: columns[statistic.name].tolist() for statistic in catalogue.LAYER if statistic.row},
        "batch_var": map(tuple, window.variance.T.tolist()),
        "alerts": _open_alerts(layers, alerts, incidents),
        "recovery": map(_unrecovered, window.recovery.amin(0).tolist()),
    }
    rows = tuple(LayerSummary(**dict(zip(by_layer, row, strict=True))) for row in zip(*by_layer.values(), strict=True))
    return Summary(
        step=window.steps[-1],
        epoch=epoch,
        table=torch.stack([columns[name].float() for name in METRICS], 1),
        layers=layers,
        rows=rows,
        alerts=tuple(alerts),
        skipped=dict(skipped),
        incidents=tuple(incidents),
        window=window,
    )


def _unrecovered(state: int) -> str:
    """Return why a layer has no batch statistics; empty if it has them."""
    return "" if Recovery(state).known else Recovery(state).reason


def _open_alerts(layers: LayerTable, alerts: Sequence[Alert], incidents: Sequence[Incident]) -> list[tuple[str, ...]]:
    """Return the open alerts of each layer, and the open incidents that outlast their alerts there."""
    where: dict[str, list[str]] = {}
    serious: set[str] = set()
    for alert in alerts:
        if alert.state == "open":
            for name in alert.layers:
                where.setdefault(name, []).append(f"{alert.rule} since {alert.first_step}")
            serious.update(alert.layers if alert.severity > Severity.INFO else ())
    for incident in incidents:
        for name in incident.layers if incident.state == "open" else ():
            if name not in serious:
                where.setdefault(name, []).append(f"{incident.cause} since {incident.first_step}")
    return [tuple(where.get(name, ())) for name in layers.names]


def _caps(layers: LayerTable, incidents: Sequence[Incident | Alert]) -> list[float]:
    """Return the most health that the open incidents leave to each layer."""
    caps: dict[str, float] = {}
    for incident in incidents:
        if incident.state == "open":
            for name in incident.layers:
                caps[name] = min(HEALTH_CAPS[incident.severity], caps.get(name, 100.0))
    return [caps.get(name, 100.0) for name in layers.names]


def _health(window: Window, columns: Mapping[str, Tensor], caps: list[float]) -> Tensor:
    """Return the health of each layer: it falls as a lag nears the limit of its warning, and open incidents cap it."""
    lags = (columns["mean_lag"], LAG_MEAN), (columns["log_lag"], LAG_LOG_DEVIATION)
    nearness = torch.maximum(*(value.nan_to_num(0.0) / limit for value, limit in lags)).clamp(max=1.0)
    nearness = nearness.where(measures.settled(window), 0.0)
    return torch.minimum(health_near(nearness).float(), torch.tensor(caps, device="cpu"))
