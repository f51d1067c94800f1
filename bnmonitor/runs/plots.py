"""Runs as pictures, with matplotlib: the colors and words of the tab."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from bnmonitor.history.percentiles import percentiles
from bnmonitor.history.source import Array
from bnmonitor.history.statistics import BY_NAME
from bnmonitor.runs.colors import HEALTH_STOPS, HEALTH_TICKS, LINE, SEVERITY, SIGNED, UNKNOWN
from bnmonitor.runs.data import RunData
from bnmonitor.runs.tables import matching, needed

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_PERCENTS = (5, 25, 50, 75, 95)
_COLUMNS = 1000
_LABEL_INCHES = 0.15
_MOST_STEPS = 7
_LOGARITHMIC = ("batch_var", "running_var")


def plot(run: RunData, layer: str | None, statistic: str | None, ax: Axes | None) -> Axes:
    """Draw a statistic over the run, as :meth:`bnmonitor.runs.Run.plot` describes it."""
    ax = _axes(ax)
    if layer is None:
        chosen = statistic or ("health" if "health" in run.metrics else "batch_var")
        table = run.table(chosen)
        for column, name in enumerate(run.layers):
            ax.plot(run.steps, table[:, column], linewidth=1, label=name)
        if len(run.layers) <= 10:
            ax.legend(fontsize="small", frameon=False)
        ax.set_ylabel(_label(chosen))
    else:
        [name] = matching(run, layer)[:1]
        chosen = statistic or "batch_var"
        steps, values = run.history(name, chosen)
        lowest, low, middle, high, highest = percentiles(values.T, _PERCENTS)
        ax.fill_between(steps, lowest, highest, color=LINE, alpha=0.15, linewidth=0)
        ax.fill_between(steps, low, high, color=LINE, alpha=0.3, linewidth=0)
        ax.plot(steps, middle, color=LINE, linewidth=1.2)
        if chosen in _LOGARITHMIC and np.nanmin(values, initial=1.0) > 0:
            ax.set_yscale("log")
        ax.set_title("median, middle 50 % and 90 % of its channels", loc="right", fontsize="small", color="gray")
        ax.set_ylabel(_label(chosen))
        ax.set_title(name, loc="left", fontsize="medium")
    _marks(run, ax, layer)
    ax.set_xlabel("step")
    return ax


def plot_map(run: RunData, statistic: str, ax: Axes | None) -> Axes:
    """Draw a statistic of every layer at every logged step; of steps that share a column the most extreme one."""
    table = run.table(statistic).T
    ax = _axes(ax)
    kind = known.scale if (known := BY_NAME.get(statistic)) is not None else "linear"
    ends = (float(run.steps[0]), float(run.steps[-1])) if len(run.steps) else (0.0, 0.0)
    picture = ax.imshow(
        _even(run.steps, table, kind),
        aspect="auto",
        interpolation="nearest",
        extent=(ends[0], max(ends[1], ends[0] + 1), len(run.layers) - 0.5, -0.5),
        **_scale(kind, table),
    )
    room = ax.get_window_extent().height / ax.figure.dpi / _LABEL_INCHES
    every = max(1, math.ceil(len(run.layers) / max(room, 1)))
    ax.set_yticks(range(0, len(run.layers), every), run.layers[::every], fontsize="small")
    ax.locator_params(axis="x", nbins=_MOST_STEPS)
    ax.set_xlabel("step")
    bar = ax.figure.colorbar(picture, ax=ax, label=_label(statistic))
    if kind == "health":
        bar.set_ticks(HEALTH_TICKS)
    _marks(run, ax, None)
    return ax


def _even(steps: Array, table: Array, kind: str) -> Array:
    """``[L, N]``: columns at even distances, however the steps were logged. One stands for what was since the last."""
    if len(steps) < 2:
        return table
    borders = np.searchsorted(steps, np.linspace(steps[0], steps[-1], _COLUMNS + 1), side="right")
    borders[0] = 0
    starts, ends = np.minimum(borders[:-1], len(steps) - 1), borders[1:]
    if kind == "signed":
        least, most = _extremes(table, starts, ends)
        return np.where(np.abs(np.nan_to_num(least)) > np.abs(np.nan_to_num(most)), least, most)
    return _extremes(table, starts, ends)[0 if kind == "health" else 1]


def _extremes(table: Array, starts: Array, ends: Array) -> tuple[Array, Array]:
    """``[L, N]`` the smallest and the largest value of each column; one of no steps has that of its start."""
    spans = np.stack([starts, np.maximum(ends, starts + 1)], axis=1).reshape(-1)
    padded = np.concatenate([table, np.full((len(table), 1), np.nan, table.dtype)], axis=1)
    return np.fmin.reduceat(padded, spans, axis=1)[:, ::2], np.fmax.reduceat(padded, spans, axis=1)[:, ::2]


def _scale(kind: str, table: Array) -> dict[str, Any]:
    """The colors of a map, and where they begin and end."""
    colors = needed("matplotlib.colors", "plot_map()")
    known = table[np.isfinite(table)]
    if kind == "health":
        stops = [(stop / 100, color) for stop, color in HEALTH_STOPS]
        ramp = colors.LinearSegmentedColormap.from_list("bnmonitor-health", stops, N=2001)
        norm = colors.Normalize(0, 100)
    elif kind == "signed":
        ramp = colors.LinearSegmentedColormap.from_list("bnmonitor-signed", SIGNED)
        most = float(np.abs(known).max(initial=0)) or 1.0
        norm = colors.Normalize(-most, most)
    else:
        ramp = needed("matplotlib", "plot_map()").colormaps["cividis"]
        positive = known[known > 0]
        logarithmic = kind == "log" and len(positive) > 0
        norm = colors.LogNorm(positive.min(), positive.max() * 1.001) if logarithmic else None
    return {"cmap": ramp.with_extremes(bad=UNKNOWN), "norm": norm}


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    found: Axes = needed("matplotlib.pyplot", "plot()").subplots(layout="constrained")[1]
    return found


def _label(statistic: str) -> str:
    known = BY_NAME.get(statistic)
    if known is None:
        return statistic.replace("_", " ")
    return f"{known.label} ({known.unit})" if known.unit else known.label


def _marks(run: RunData, ax: Axes, layer: str | None) -> None:
    """A line where each incident began that concerns the layer."""
    for incident in run.incidents:
        if layer is None or layer in incident.layers:
            ax.axvline(incident.first_step, color=SEVERITY[str(incident.severity)], linewidth=1, linestyle="--")
