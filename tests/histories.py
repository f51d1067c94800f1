"""Histories made to order, in event files as the TensorBoard sink writes them, without training anything."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bnmonitor.history import encode
from bnmonitor.history import statistics as catalogue
from bnmonitor.history.course import record
from bnmonitor.history.flight.layout import FOLDER
from bnmonitor.history.flight.layout import STATISTICS as RECORDED
from bnmonitor.history.flight.layout import columns as course_columns
from bnmonitor.history.flight.writer import FlightWriter
from bnmonitor.history.schema import CHANNELS, COURSE, FACTS, FRAME, Schema, alert_tag, incident_tag

METRICS = tuple(s.name for s in catalogue.LAYER)
STATISTICS = tuple(s.name for s in catalogue.CHANNEL)

HOSTILE = (
    '<img src=x onerror="document.title=1">',
    "quote'\"`&amp;${7*7}{{7*7}}",
    "../../../etc/passwd",
    "слой.层.レイヤー.🧠\u202egnp",
    "backbone." + "very_long_module_name." * 5 + "bn2",
)


def resnet(layers: int) -> tuple[str, ...]:
    """Names in the manner of a residual network: stem, four stages of blocks."""
    wide = -(-(layers - 1) // 4)
    inner = [(i // wide + 1, i % wide // 3, i % wide % 3 + 1) for i in range(layers - 1)]
    return ("backbone.bn1", *(f"backbone.layer{stage}.{block}.bn{i}" for stage, block, i in inner))


def an_alert(layer: str | None, step: int, **more: Any) -> dict[str, Any]:
    """An alert as it is stored."""
    return {
        "code": "BN106",
        "rule": "variance-explosion",
        "severity": "error",
        "layer": layer,
        "layers": [] if layer is None else [layer],
        "channels": [3, 5, 7],
        "first_step": step,
        "last_step": step + 100,
        "state": "open",
        "value": 2.1e4,
        "threshold": 1e4,
        "message": "batch variance of 3 channels is up to 21 000 times its own baseline; lr = 0.8",
        "advice": "lower the peak learning rate or clip gradients: Trainer(gradient_clip_val=1.0)",
        "url": "https://github.com/bnmonitor/bnmonitor/blob/main/docs/rules/BN106.md",
        **more,
    }


def an_incident(*evidence: dict[str, Any], index: int = 0, **more: Any) -> dict[str, Any]:
    """An incident as it is stored, of alerts as they are stored, the leading one first."""
    lead = evidence[0]
    over = all(alert["state"] == "cleared" for alert in evidence)
    return {
        "index": index,
        "code": lead["code"],
        "cause": lead["rule"],
        "severity": "error" if any(alert["severity"] == "error" for alert in evidence) else "warning",
        "title": lead["rule"].replace("-", " "),
        "detail": lead["message"],
        "layer": lead["layer"],
        "layers": list(dict.fromkeys(name for alert in evidence for name in alert["layers"])),
        "of_layers": 0,
        "first_step": min(alert["first_step"] for alert in evidence),
        "last_step": max(alert["last_step"] for alert in evidence),
        "state": "resolved" if over else "open",
        "evidence": list(evidence),
        "advice": lead["advice"],
        "url": lead["url"],
        **more,
    }


class Writer:
    """Writes a run's event file value by value."""

    def __init__(
        self,
        log_dir: Path,
        names: Sequence[str],
        channels: int = 32,
        metrics: Sequence[str] = METRICS,
        session: int = 1,
    ) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.schema = Schema(tuple(names), (channels,) * len(names), tuple(metrics), session)
        self._file = EventFileWriter(str(log_dir), max_queue_size=1000, flush_secs=3600)
        self._random = np.random.default_rng(0)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def flush(self) -> None:
        self._file.flush()

    def add(self, step: int, wall: float, *values: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._file.add_event(Event(step=step, wall_time=wall, summary=Summary(value=values)))

    def frames(self, steps: Sequence[int], table: np.ndarray[Any, Any]) -> None:
        """Write ``[S, L, M]`` at the steps; a second of wall time apart."""
        tag = FRAME + self.schema.key
        for place, step in enumerate(steps):
            about = self.schema.encode() if place == 0 else b""
            self.add(step, 1e9 + step, encode.floats(tag, table[place], about))

    def facts(self, step: int) -> None:
        facts = [
            {
                "name": name,
                "kind": "BatchNorm2d",
                "channels": channels,
                "eps": 1e-5,
                "momentum": 0.1,
                "training": True,
                "trains": True,
                "producer": "Conv2d",
                "consumers": ["relu"],
            }
            for name, channels in zip(self.schema.layers, self.schema.channels, strict=True)
        ]
        self.add(step, 1e9 + step, encode.plain(FACTS + self.schema.key, facts))

    def alert(self, alert: dict[str, Any]) -> None:
        key = (alert["code"], alert["layer"], alert["first_step"])
        self.add(alert["last_step"], 1e9 + alert["last_step"], encode.plain(alert_tag(key), alert))

    def incident(self, incident: dict[str, Any], step: int | None = None) -> None:
        """Write the alerts and the incident, as they are at a step."""
        for alert in incident["evidence"]:
            self.alert(alert)
        at = incident["last_step"] if step is None else step
        tag = incident_tag(self.schema.session, incident["index"])
        self.add(at, 1e9 + at, encode.plain(tag, incident))

    def course(self, steps: Sequence[int], losses: Sequence[float], rates: Sequence[Sequence[float]]) -> None:
        """Write the loss and the learning rates at the steps; an epoch has 100 steps."""
        for step, loss, rate in zip(steps, losses, rates, strict=True):
            self.add(step, 1e9 + step, encode.plain(COURSE + self.schema.key, record(loss, rate, step // 100)))

    def scalars(self, tag: str, steps: Sequence[int], values: Sequence[float]) -> None:
        """Write a scalar as the user's own code does."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        for step, value in zip(steps, values, strict=True):
            self.add(step, 1e9 + step, Summary.Value(tag=tag, simple_value=value))

    def channels(self, layer: int, steps: Sequence[int], values: np.ndarray[Any, Any]) -> None:
        """Write ``[S, K, C]`` of a layer."""
        tag = f"{CHANNELS}{self.schema.key}/{layer}"
        about = json.dumps({"v": 2, "layer": self.schema.layers[layer], "statistics": STATISTICS}).encode()
        for place, step in enumerate(steps):
            self.add(step, 1e9 + step, encode.floats(tag, values[place], about if place == 0 else b""))


def lagging(values: np.ndarray[Any, Any], steps: int) -> np.ndarray[Any, Any]:
    """The mean of the last steps."""
    padded = np.concatenate([np.repeat(values[:1], steps - 1, 0), values])
    return np.lib.stride_tricks.sliding_window_view(padded, steps, 0).mean(-1)


def course(layers: int, steps: int, metrics: Sequence[str] = METRICS, sick: Sequence[int] = ()) -> np.ndarray[Any, Any]:
    """A plausible table ``[S, L, M]``; the variance of sick layers explodes after two thirds."""
    random = np.random.default_rng(layers)
    time = np.linspace(0, 1, steps)[:, None]
    depth = np.linspace(0, 1, layers)[None]
    noise = 0.05 * random.normal(size=(steps, layers))
    var = np.exp(0.6 * random.normal(size=(1, layers)) + 1.2 * np.tanh(3 * time) * (1 - depth) + noise)
    gap = 0.02 + 0.05 * np.exp(-6 * time) + 0.01 * np.abs(random.normal(size=(steps, layers)))
    health = 100 - 40 * np.minimum(1, gap / 0.1) ** 2 * 0.5
    for layer in sick:
        late = np.clip((time[:, 0] - 0.66) * 30, 0, 9)
        var[:, layer] *= np.exp(late)
        gap[:, layer] += 0.3 * late
        health[:, layer] = np.where(late > 0.5, np.where(late > 4, 20, 60), health[:, layer])
    columns = {
        "health": health,
        "batch_var": var,
        "running_var": np.apply_along_axis(
            lambda v: np.convolve(np.r_[[v[0]] * 9, v], np.ones(10) / 10, "valid"), 0, var
        ),
        "offset": 0.4 * np.tanh(2 * time) + 0.1 * depth + noise * 0.2,
        "batch_offset": 0.4 * np.tanh(2 * time) + 0.1 * depth + noise,
        "mean_lag": gap,
        "log_lag": gap * 0.7,
        "var_gap": gap * 0.7 + noise * 0.2,
        "noise": 0.2 + np.abs(noise),
        "var_noise": 0.1 + np.abs(noise),
        "covariate_shift": np.exp(-5 * time - 2) * np.exp(noise * 8),
        "gamma": 1 - 0.3 * np.tanh(2 * time) + 0.2 * depth,
        "gamma_min": 0.5 - 0.4 * time + 0 * depth,
        "gamma_max": 1.2 + time + 0 * depth,
        "beta": 0.3 * np.sin(4 * time) * (depth - 0.5),
        "dead": np.clip(time * depth - 0.5, 0, 1),
        "silent": np.clip(time * depth - 0.4, 0, 1),
        "gamma_grad": 1e-3 * np.exp(noise * 10 - time),
        "gamma_update": 1e-4 * np.exp(noise * 8 - 2 * time),
        "updates": 64 + 0 * time * depth,
        "size": 128 + 0 * time * depth,
        "values": 128 * 64 + 0 * time * depth,
        "training": 1 + 0 * time * depth,
    }
    ones = np.ones((steps, layers))  # of a statistic that has no course above
    return np.stack([columns.get(name, ones) for name in metrics], 2).astype(np.float32)


def detail(steps: int, channels: int, sick: bool = False) -> np.ndarray[Any, Any]:
    """Channels of one layer ``[S, K, C]``, in the order of the catalogue."""
    random = np.random.default_rng(channels)
    time = np.linspace(0, 1, steps)[:, None]
    level = random.normal(size=(1, channels))
    mean = level + 0.8 * np.tanh(3 * time) + 0.08 * random.normal(size=(steps, channels))
    var = np.exp(0.5 * random.normal(size=(1, channels)) + 0.1 * random.normal(size=(steps, channels)) + time)
    if sick:
        var[:, 3::9] *= np.exp(np.clip((time - 0.66) * 30, 0, 9))
    ema, run = lagging(var, 6), lagging(mean, 6)
    gamma = 1 + 0.3 * level * time
    beta = -0.2 * time * np.abs(level)
    gradient = 1e-3 * random.normal(size=(steps, channels))
    silent = 0.5 + 0.1 * level + 0 * time
    return np.stack([mean, var, run, ema, gamma, beta, gradient, silent, 4 * np.sqrt(var)], 1).astype(np.float32)


def recorded(log_dir: Path, names: Sequence[str], channels: int, steps: int) -> np.ndarray[Any, Any]:
    """Write a flight record of every step; gives gamma ``[T, L, C]``; every third falls."""
    random, total = np.random.default_rng(1), len(names) * channels
    time = np.linspace(0, 1, steps)[:, None]
    level = random.normal(size=(1, total))
    mean = level + 0.1 * random.normal(size=(steps, total))
    var = np.exp(0.5 * level + 0.1 * random.normal(size=(steps, total)))
    down = np.arange(total) % 3 == 0
    gamma = 1 + 0.2 * level * time - np.where(down, time, 0)
    beta = -0.2 * np.abs(level) * time
    rows = dict(zip(RECORDED, (mean, var, mean, var, gamma, beta), strict=True))
    about = np.full((steps, len(course_columns(1))), np.nan)
    about[:, 0] = 1e9 + np.arange(steps)
    writer = FlightWriter(log_dir / FOLDER, 2**24)
    errors = [0.01] * len(names)
    writer.begin(
        list(names),
        [channels] * len(names),
        groups=1,
        mean_error=errors,
        variance_error=errors,
    )
    writer.add(list(range(steps)), {name: row.astype(np.float32) for name, row in rows.items()}, about)
    writer.close()
    assert writer.failures() == []
    return gamma.reshape(steps, len(names), channels)


def write(
    log_dir: Path,
    names: Sequence[str],
    steps: Sequence[int],
    sick: Sequence[int] = (),
    channels: int = 32,
    metrics: Sequence[str] = METRICS,
    detailed: Sequence[int] | None = None,
    incidents: bool = True,
) -> None:
    """A whole run: frames, facts, course, channels of some layers, and what went wrong if layers are sick.

    Args:
        log_dir: The directory.
        names: Of the layers.
        steps: Of the frames.
        sick: Layers whose variance explodes; an early lag of the last layer is over by then.
        channels: Of each layer.
        metrics: The statistics.
        detailed: Layers whose channels are written.
        incidents: Whether there are incidents and a course; a run of before there were any has alerts only.
    """
    with Writer(log_dir, names, channels, metrics) as writer:
        writer.frames(steps, course(len(names), len(steps), metrics, sick))
        writer.facts(steps[0])
        sparse = steps[:: max(1, len(steps) // 200)]
        for layer in range(min(len(names), 6)) if detailed is None else detailed:
            writer.channels(layer, sparse, detail(len(sparse), channels, layer in sick))
        put = writer.incident if incidents else (lambda incident: writer.alert(incident["evidence"][0]))
        if incidents:
            fall = [2.3 * float(np.exp(-3 * i / len(steps))) + 0.02 for i in range(len(steps))]
            writer.course(steps, fall, [[0.1 if i < len(steps) / 2 else 0.01] for i in range(len(steps))])
        if sick:
            begin = steps[len(steps) * 2 // 3]
            layers = [names[i] for i in sick]
            late = an_alert(layers[0], begin, layers=layers, last_step=steps[-1])
            warning = {"code": "BN304", "rule": "stale-statistics", "severity": "warning", "state": "cleared"}
            early = steps[len(steps) // 4]
            text = "running statistics lag behind the batches by 0.14 deviations"
            over = an_alert(
                names[-1],
                early,
                **warning,
                channels=[],
                message=text,
                advice="raise momentum to 0.2",
                last_step=steps[len(steps) // 3],
                url="https://github.com/bnmonitor/bnmonitor/blob/main/docs/rules/BN304.md",
            )
            put(an_incident(over))
            put(an_incident(late, index=1, of_layers=len(names)))
