"""Runs as pictures, with matplotlib: the colors and words of the tab."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bnmonitor.history.statistics import BY_NAME
from bnmonitor.runs.data import RunData
from bnmonitor.runs.tables import matching, needed

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_BANDS = ((5, 95, 0.15), (25, 75, 0.3))
_COLOR = "#3465a4"
_SEVERE = {"warning": "#c17d11", "error": "#a40000", "info": "#888888"}
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
        series = run.series(name, chosen)
        with np.errstate(all="ignore"):
            for low, high, alpha in _BANDS:
                below, above = np.nanpercentile(series.mean, [low, high], axis=1)
                ax.fill_between(series.last, below, above, color=_COLOR, alpha=alpha, linewidth=0)
            ax.plot(series.last, np.nanmedian(series.mean, axis=1), color=_COLOR, linewidth=1.2)
        if chosen in _LOGARITHMIC and np.nanmin(series.mean, initial=1.0) > 0:
            ax.set_yscale("log")
        ax.set_ylabel(_label(chosen))
        ax.set_title(name, loc="left", fontsize="medium")
    _marks(run, ax, layer)
    ax.set_xlabel("step")
    return ax


def plot_map(run: RunData, statistic: str, ax: Axes | None) -> Axes:
    """Draw a statistic of every layer at every logged step."""
    ax = _axes(ax)
    table = run.table(statistic).T
    known = BY_NAME.get(statistic)
    span: dict[str, Any] = {"vmin": 0, "vmax": 100} if known is not None and known.scale == "health" else {}
    steps = run.steps if len(run.steps) else np.zeros(1)
    extent = (float(steps[0]), float(steps[-1]), len(run.layers) - 0.5, -0.5)
    picture = ax.imshow(table, aspect="auto", interpolation="nearest", cmap="viridis", extent=extent, **span)
    ax.set_yticks(range(len(run.layers)), run.layers, fontsize="small")
    ax.set_xlabel("step")
    ax.figure.colorbar(picture, ax=ax, label=_label(statistic))
    _marks(run, ax, None)
    return ax


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
            ax.axvline(incident.first_step, color=_SEVERE[str(incident.severity)], linewidth=1, linestyle="--")
