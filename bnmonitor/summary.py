"""How every layer is now: what the console shows, TensorBoard draws and ``monitor.summary()`` returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from bnmonitor import measures
from bnmonitor._text import count
from bnmonitor.alerts import Alert
from bnmonitor.frame import Window
from bnmonitor.history import catalogue
from bnmonitor.layers import LayerTable
from bnmonitor.rules import Severity
from bnmonitor.statistics import Recovery

METRICS = tuple(statistic.name for statistic in catalogue.LAYER)
"""Columns of :attr:`Summary.table`, in order."""

_CAPS = {Severity.INFO: 100.0, Severity.WARNING: 60.0, Severity.ERROR: 20.0}


@dataclass(frozen=True, kw_only=True)
class LayerSummary:
    """One layer's row.

    Attributes:
        name: Dotted path of the layer.
        channels: Number of channels.
        health: 100 is well; at most 60 with an open warning, 20 with an open error.
        training: Whether the layer was in training mode at the last step.
        settled: Whether the window lies after the warm-up, so that a lag of the statistics is judged; a layer in
            evaluation mode has none to judge.
        batch_var: Mean of the channels' batch variances at each step of the window.
        running_gap: Distance of batch mean and running mean, noise averaged out, in deviations.
        gamma_min: Smallest absolute gamma.
        silent: Share of channels whose output was never positive in the last sample; NaN without one.
        alerts: Open alerts, each as ``rule since step``.
        recovery: Why batch statistics are missing; empty if they are not.
    """

    name: str
    channels: int
    health: float
    training: bool
    settled: bool
    batch_var: tuple[float, ...]
    running_gap: float
    gamma_min: float
    silent: float
    alerts: tuple[str, ...]
    recovery: str


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The state of all layers at one step; iterating gives a :class:`LayerSummary` each, in execution order.

    Attributes:
        step: The last step that was looked at; -1 before the first.
        epoch: The epoch, where there is one.
        table: ``[L, len(METRICS)]`` float32: the numbers by layer, in the order of :data:`METRICS`.
        layers: The layers' table.
        rows: A row per layer.
        alerts: Every alert so far, cleared ones too.
        skipped: Rules that could not run, with the reason.
        window: The steps it was made of, channel by channel; None before the first. Valid until the next step.
    """

    step: int
    epoch: int | None
    table: Tensor
    layers: LayerTable
    rows: tuple[LayerSummary, ...]
    alerts: tuple[Alert, ...]
    skipped: Mapping[str, str]
    window: Window | None = field(default=None, repr=False, compare=False)

    def __iter__(self) -> Iterator[LayerSummary]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def open(self, severity: Severity = Severity.INFO) -> list[Alert]:
        """Return the open alerts of a severity or worse."""
        return [a for a in self.alerts if a.state == "open" and a.severity >= severity]

    @property
    def health(self) -> float:
        """Health of the worst layer."""
        return min((row.health for row in self.rows), default=100.0)

    def headline(self) -> str:
        """One line: is it healthy, and if not, how bad."""
        where = "".join(
            part
            for part in (
                f" · epoch {self.epoch}" if self.epoch is not None else "",
                f" · step {self.step}" if self.step >= 0 else "",
            )
        )
        errors = len(self.open(Severity.ERROR))
        warnings = len(self.open(Severity.WARNING)) - errors
        if errors or warnings:
            found = [count(n, word) for n, word in ((errors, "error"), (warnings, "warning")) if n]
            return f"BatchNorm {'✗' if errors else '!'} {', '.join(found)} in {count(len(self), 'layer')}{where}"
        total = count(self.layers.total, "channel")
        infos = f" · {count(len(self.open()), 'note')}" if self.open() else ""
        young = sum(not row.settled for row in self.rows)
        waiting = f" · {count(young, 'layer')} still warming up" if young else ""
        return f"BatchNorm ✓ {count(len(self), 'layer')}, {total} healthy{where} · 0 alerts{infos}{waiting}"

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain types."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            "health": self.health,
            "layers": [asdict(row) for row in self.rows],
            "alerts": [alert.to_dict() for alert in self.alerts],
            "skipped": dict(self.skipped),
        }

    def __str__(self) -> str:
        lines = [self.headline()]
        for row in self.rows:
            told = f"  {', '.join(row.alerts)}" if row.alerts else ""
            lines.append(f"  {row.name}: health {row.health:.0f}, running gap {row.running_gap:.2g} sigma{told}")
        return "\n".join(lines)


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
    settled = (measures.settled(window) | ~window.training[-1]).tolist()
    reasons = window.recovery.amin(0).tolist()
    rows = tuple(
        LayerSummary(
            name=layers.names[i],
            channels=layers.channels[i],
            health=float(health[i]),
            training=bool(window.training[-1, i]),
            settled=settled[i],
            batch_var=tuple(course[:, i].tolist()),
            running_gap=float(mean_lag[i]),
            gamma_min=float(gamma_min[i]),
            silent=float(silent[i]),
            alerts=told[i][1],
            recovery="" if Recovery(reasons[i]).known else Recovery(reasons[i]).reason,
        )
        for i in range(len(layers))
    )
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
