"""The pictures of the guide: lines with bands over the settings or the steps, and maps as bnmonitor draws them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import numpy as np

from bnmonitor.runs import plots
from bnmonitor.runs.colors import LINE

from .experiment import Experiment, Interval, Key, Panel, Results

MODES = ("light", "dark")
PALETTE = (Path(plots.__file__).parents[1] / "viewer" / "palette.css").read_text(encoding="utf-8")

LINES = {
    "light": (LINE, "#c2571a", "#2c6e63", "#762a83", "#6b7885", "#1c2126"),
    "dark": ("#7fb2ff", "#f0a35c", "#79c2b4", "#d2a8e0", "#98a2ad", "#e6e9ec"),
}
"""Colors of lines: neither the red nor the amber of incidents."""
MARKERS = "osD^vP"


def color(name: str, mode: str) -> str:
    """A color of the tab."""
    part = PALETTE.split(":root.dark")[mode == "dark"]
    found = re.search(rf"--{name}: (#[0-9a-f]+)", part)
    assert found is not None, f"palette.css has no {name}"
    return found[1]


@dataclass(frozen=True)
class Kept:
    """What was kept of a run, in the shape in which :mod:`bnmonitor.runs.plots` reads one."""

    kept: Mapping[str, Any]

    @property
    def steps(self) -> Any:
        """The logged steps that were kept."""
        return np.asarray(self.kept["steps"])

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, without what the meters of the experiments are called."""
        return tuple(re.sub(r"\.(of|norm|meter\.of)$", "", name) for name in self.kept["layers"])

    @property
    def incidents(self) -> Sequence[Any]:
        """Its warnings and errors."""
        return [SimpleNamespace(**each) for each in self.kept["incidents"] if each["severity"] != "info"]

    def table(self, statistic: str) -> Any:
        """``[S, L]`` float32: the statistic that was kept."""
        return np.asarray(self.kept["values"], np.float32)


def style(mode: str) -> dict[str, Any]:
    """Settings of matplotlib."""
    text, muted, line, surface = (color(name, mode) for name in ("text", "muted", "line", "surface"))
    return {
        "font.size": 9,
        "font.family": "sans-serif",
        "svg.fonttype": "none",
        "font.sans-serif": ["DejaVu Sans"],
        "svg.hashsalt": "bnmonitor",
        "figure.facecolor": surface,
        "savefig.facecolor": surface,
        "axes.facecolor": surface,
        "axes.edgecolor": line,
        "axes.labelcolor": muted,
        "axes.titlecolor": text,
        "axes.titlesize": 9,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": line,
        "grid.linewidth": 0.6,
        "text.color": text,
        "xtick.color": muted,
        "ytick.color": muted,
        "legend.frameon": False,
        "legend.fontsize": 8,
    }


def draw(experiment: Experiment, results: Results, mode: str, path: Path) -> None:
    """Draw the picture of an experiment.

    Args:
        experiment: The experiment.
        results: What it gave.
        mode: ``light`` or ``dark``.
        path: The file to write.
    """
    import matplotlib.pyplot as plt

    maps = [key for key in experiment.maps if "map" in results.setting(key) and results.setting(key)["map"]["steps"]]
    wide = len(experiment.panels) == 1  # the maps beside the panel, or below the panels
    with mpl.rc_context(style(mode)):
        figure = plt.figure(figsize=(8.8, 3.4 if wide else 4.9), layout="constrained")
        upper, lower = figure.subfigures(1, 2) if wide else figure.subfigures(2, 1, height_ratios=(3.3, 1.6))
        for panel, ax in zip(
            experiment.panels, upper.subplots(1, len(experiment.panels), squeeze=False).flat, strict=True
        ):
            (_course if panel.course else _sweep)(experiment, results, panel, ax, mode)
        shape = (len(maps), 1) if wide else (1, len(maps))
        for key, ax in zip(maps, lower.subplots(*shape, squeeze=False).flat if maps else (), strict=True):
            _map(results, key, ax, mode)
        save(figure, path)


def save(figure: Any, path: Path) -> None:
    """Write a figure as SVG: the same bytes each time."""
    import matplotlib.pyplot as plt

    figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    path.write_text(_smaller(path.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")


def _smaller(svg: str) -> str:
    """Leave out what says nothing: a tenth of a pixel is enough, and one list of fonts."""
    svg = re.sub(r"font-family: [^;]*;?\s?", "", svg).replace("<svg ", "<svg font-family='DejaVu Sans, sans-serif' ", 1)
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r' transform="rotate\(-?0 [^"]*\)"', "", svg)
    svg = re.sub(r"(\d\.\d\d)\d+", r"\1", svg)
    svg = re.sub(r"<g>\s*(<use [^>]*>)\s*</g>", r"\1", svg)
    return re.sub(r"\s*\n\s*", "\n", svg)


def _series(experiment: Experiment, panel: Panel) -> dict[str, list[float | str]]:
    found: dict[str, list[float | str]] = {}
    for series, x in experiment.settings:
        if not panel.only or series in panel.only or (series, x) in panel.only:
            found.setdefault(series, []).append(x)
    return found


def _sweep(experiment: Experiment, results: Results, panel: Panel, ax: Any, mode: str) -> None:
    metric = experiment.metric(panel.metric)
    series = _series(experiment, panel)
    words = [x for xs in series.values() for x in xs if isinstance(x, str)]
    places = {x: float(number) for number, x in enumerate(dict.fromkeys(words))}
    for number, (name, xs) in enumerate(series.items()):
        found = [results.of(name, x, panel.metric) for x in xs]
        at = [places[x] + 0.12 * (number - (len(series) - 1) / 2) if isinstance(x, str) else float(x) for x in xs]
        _interval(ax, at, found, LINES[mode][number], MARKERS[number], name, line=not places)
    if places:
        ax.set_xticks(
            list(places.values()),
            list(places),
            rotation=20 if len(places) > 3 else 0,
            ha="right" if len(places) > 3 else "center",
        )
    _axes(ax, panel, panel.y or metric.label, len(series))
    if panel.log_x:
        ticks = sorted({float(x) for xs in series.values() for x in xs})
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()


def _interval(
    ax: Any, at: Sequence[float], found: Sequence[Interval], line_color: str, marker: str, name: str, *, line: bool
) -> None:
    means = np.array([each.mean for each in found])
    low, high = (np.array([getattr(each, end) for each in found]) for end in ("low", "high"))
    known = np.isfinite(low)
    low, high = np.where(known, low, means), np.where(known, high, means)
    ax.errorbar(
        at,
        means,
        yerr=np.maximum(0, np.stack([means - low, high - means])),
        color=line_color,
        marker=marker,
        markersize=4,
        linewidth=1.4 if line else 0,
        elinewidth=1,
        capsize=2,
        label=name,
    )


def _course(experiment: Experiment, results: Results, panel: Panel, ax: Any, mode: str) -> None:
    keys: list[Key] = [
        key for key in experiment.settings if not panel.only or key in panel.only or key[0] in panel.only
    ]
    names = [panel.metric]
    if len(keys) == 1:
        names = list(results.setting(keys[0])["courses"])
    several = len({key[0] for key in keys}) > 1, len({key[1] for key in keys}) > 1
    number = 0
    for key in keys:
        for name in names:
            course = results.setting(key)["courses"][name]
            lines = [[np.nan if v is None else v for v in line] for line in course["y"]]
            length = min(map(len, lines))
            table = np.array([line[:length] for line in lines], float)
            x = np.array([np.nan if v is None else v for v in course["x"][:length]], float)
            with np.errstate(all="ignore"):
                values = np.log(table) if panel.log_y else table
                found = [Interval.of(list(column)) for column in values.T]
            ends = [np.array([getattr(each, end) for each in found]) for end in ("mean", "low", "high")]
            mean, low, high = (np.exp(end) if panel.log_y else end for end in ends)
            label = (
                _legend(key, several)
                if len(names) == 1
                else name.replace("_", " of ").replace("ema", "running averages")
            )
            ax.plot(x, mean, color=LINES[mode][number], linewidth=1.4, label=label)
            ax.fill_between(x, low, high, color=LINES[mode][number], alpha=0.18, linewidth=0)
            number += 1
    _axes(ax, panel, panel.y or experiment.metric(panel.metric).label, number)


def _legend(key: Key, several: tuple[bool, bool]) -> str:
    x = key[1] if isinstance(key[1], str) else f"{key[1]:g}"
    parts = [part for part, differs in zip((key[0], x), several, strict=True) if differs]
    return ", ".join(part for part in parts if part) or key[0]


def _axes(ax: Any, panel: Panel, label: str, lines: int) -> None:
    if panel.log_x:
        ax.set_xscale("log")
    if panel.log_y:
        ax.set_yscale("log")
    ax.set_xlabel(panel.x)
    ax.set_title(f"{label}, {panel.title}" if panel.title else label)
    if lines > 1:
        columns = 3 if lines > 4 else 2
        ax.legend(loc="upper left", bbox_to_anchor=(-0.05, -0.24), ncols=columns, columnspacing=1.2, handlelength=1.6)


def _map(results: Results, key: Key, ax: Any, mode: str) -> None:
    draw_map(results.setting(key)["map"], ax, mode)
    x = key[1] if isinstance(key[1], str) else f"{key[1]:g}"
    ax.set_title(f"bnmonitor: {', '.join(part for part in (key[0], x) if part)}")


def draw_map(kept: Mapping[str, Any], ax: Any, mode: str) -> None:
    """Draw the map of a run of which something was kept, as bnmonitor draws it, in the light or in the dark."""
    plots.plot_map(Kept(kept), kept["statistic"], ax)  # type: ignore[arg-type]
    ax.grid(visible=False)
    if mode == "dark" and kept["statistic"] == "health":
        colors = re.findall(r"#[0-9a-f]{6}", PALETTE.split(":root.dark")[1].split("--health:")[1])[:5]
        from bnmonitor.runs.colors import HEALTH, HEALTH_STOPS

        dark = dict(zip(HEALTH.values(), colors, strict=True))
        stops = [(stop / 100, dark[each]) for stop, each in HEALTH_STOPS]
        ramp = mpl.colors.LinearSegmentedColormap.from_list("bnmonitor-health-dark", stops, N=2001)
        ax.images[0].set_cmap(ramp.with_extremes(bad=color("gap", "dark")))
