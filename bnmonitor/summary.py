"""How every layer is now: what the console shows, TensorBoard draws and ``monitor.summary()`` returns."""

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
from bnmonitor.results import Alert, LayerSummary, Severity, StepSummary
from bnmonitor.window import Recovery, Window

if TYPE_CHECKING:
    from rich.console import RenderableType

METRICS = tuple(statistic.name for statistic in catalogue.LAYER)
"""Columns of :attr:`Summary.table`, in order."""

_CAPS = {Severity.INFO: 100.0, Severity.WARNING: 60.0, Severity.ERROR: 20.0}


@dataclass(frozen=True, kw_only=True, repr=False)
class Summary(StepSummary):
    """The state of all layers while they train; rich, IPython and notebooks show it as a table.

    Attributes:
        table: ``[L, len(METRICS)]`` float32: the numbers by layer, in the order of :data:`METRICS`.
        layers: The layers' table.
        window: The steps it was made of, channel by channel; None before the first. Valid until the next step.
    """

    table: Tensor
    layers: LayerTable
    window: Window | None = field(default=None, compare=False)

    def __rich__(self) -> RenderableType:
        return health_table(self, rows=len(self), well=True)

    def _ipython_display_(self) -> None:
        show(self)


def empty(layers: LayerTable, alerts: Sequence[Alert], skipped: Mapping[str, str]) -> Summary:
    """Return the summary before any step was seen."""
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
            recovery="no step was recorded yet",
        )
        for name, channels in zip(layers.names, layers.channels, strict=True)
    )
    return Summary(
        step=-1, epoch=None, table=table, layers=layers, rows=rows, alerts=tuple(alerts), skipped=dict(skipped)
    )


def summarize(window: Window, alerts: Sequence[Alert], skipped: Mapping[str, str], epoch: int | None = None) -> Summary:
    """Reduce a window to one row per layer."""
    layers = window.layers
    course = window.variance
    mean_lag, log_lag = measures.lag(window)
    gamma = window.gamma[-1].abs()
    gamma_min = -layers.segments.max(-gamma)
    silent = measures.silent(window)
    told = _told(layers, alerts)
    health = _health(window, mean_lag, log_lag, [_CAPS[worst] for worst, _ in told])
    columns = {
        "health": health,
        "batch_var": course[-1],
        "running_var": measures.mean(window.running_var[-1], window),
        "batch_offset": measures.batch_offset(window),
        "offset": measures.offset(window),
        "mean_lag": mean_lag,
        "log_lag": log_lag,
        "var_gap": measures.variance_gap(window),
        "noise": measures.noise(window),
        "var_noise": measures.variance_noise(window),
        "covariate_shift": measures.covariate_shift(window),
        "gamma": measures.median(gamma, window),
        "gamma_min": gamma_min,
        "gamma_max": layers.segments.max(gamma),
        "beta": measures.median(window.beta[-1], window),
        "dead": measures.dead(window),
        "silent": silent,
        "gamma_grad": measures.median(window.gamma_grad[-1].abs(), window),
        "gamma_update": measures.gamma_update(window),
        "updates": window.updates.sum(0),
        "size": window.baseline.sizes,
        "values": window.baseline.values,
        "training": window.training.float().mean(0),
    }
    trained = window.training[-1]
    by_layer = {
        "name": layers.names,
        "channels": layers.channels,
        "health": health.tolist(),
        "training": trained.tolist(),
        "settled": (measures.settled(window) | ~trained).tolist(),
        "batch_var": map(tuple, course.T.tolist()),
        "running_gap": mean_lag.tolist(),
        "gamma_min": gamma_min.tolist(),
        "silent": silent.tolist(),
        "alerts": (alerts_of for _, alerts_of in told),
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
        window=window,
    )


def _unrecovered(state: int) -> str:
    """Why there are no batch statistics; empty if there are."""
    return "" if Recovery(state).known else Recovery(state).reason


def _told(layers: LayerTable, alerts: Sequence[Alert]) -> list[tuple[Severity, tuple[str, ...]]]:
    """The worst open severity and the open alerts of each layer."""
    where: dict[str, list[Alert]] = {}
    for alert in alerts:
        if alert.state == "open":
            for name in alert.layers:
                where.setdefault(name, []).append(alert)
    return [
        (
            max((a.severity for a in where.get(name, ())), default=Severity.INFO),
            tuple(f"{a.rule} since {a.first_step}" for a in where.get(name, ())),
        )
        for name in layers.names
    ]


def _health(window: Window, mean_lag: Tensor, log_lag: Tensor, caps: list[float]) -> Tensor:
    """100 less up to 40 for a lag that nears its warning, capped by the open alerts."""
    nearness = torch.maximum(mean_lag.nan_to_num(0.0) / 0.1, log_lag.nan_to_num(0.0) / 0.2).clamp(max=1.0)
    nearness = nearness.where(measures.settled(window), 0.0)
    return torch.minimum(100 - 40 * nearness.square().float(), torch.tensor(caps, device="cpu"))
