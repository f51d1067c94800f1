"""Runs as tables: for pandas, for files, and for a notebook."""

from __future__ import annotations

import csv
import importlib
import json
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bnmonitor._text import nearest
from bnmonitor.history.flight.layout import STATISTICS
from bnmonitor.runs.data import RunData

if TYPE_CHECKING:
    import pandas


Row = dict[str, Any]


def needed(module: str, what: str) -> Any:
    """Import a library that only some people need.

    Raises:
        ImportError: It is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        name = module.split(".")[0]
        extra = "pyarrow" if name == "pyarrow" else "'bnmonitor[tables]'"
        raise ImportError(f"{what} needs {name}: pip install {extra}") from None


def matching(run: RunData, pattern: str | None) -> tuple[str, ...]:
    """Return the layers of a run that a name or a glob pattern means.

    Raises:
        KeyError: It means none; the message names the nearest layer.
    """
    if pattern is None or pattern in run.layers:
        return run.layers if pattern is None else (pattern,)
    found = tuple(name for name in run.layers if fnmatchcase(name, pattern))
    if not found:
        raise KeyError(f"the run has no layer {pattern!r}{nearest(pattern, run.layers)}")
    return found


def rows(run: RunData, layer: str | None = None, statistic: str | None = None) -> Iterator[Row]:
    """Yield a row for each step and layer; with a statistic of channels, for each block and channel.

    Raises:
        KeyError: Nothing has that name; the message names the nearest one.
    """
    names = matching(run, layer)
    if statistic not in STATISTICS:
        yield from _of_layers(run, names, statistic)
        return
    for name in names:
        series = run.series(name, statistic)
        for block in range(len(series)):
            about = {"layer": name, "first_step": int(series.first[block]), "last_step": int(series.last[block])}
            parts = zip(series.mean[block], series.minimum[block], series.maximum[block], strict=True)
            for channel, (mean, low, high) in enumerate(parts):
                yield {
                    **about,
                    "channel": channel,
                    statistic: float(mean),
                    "minimum": float(low),
                    "maximum": float(high),
                }


def _of_layers(run: RunData, names: Sequence[str], statistic: str | None) -> Iterator[Row]:
    metrics = run.metrics if statistic is None else (statistic,)
    places = [(name, run.layers.index(name)) for name in names]
    tables = {metric: run.table(metric) for metric in metrics}
    for at, step in enumerate(run.steps.tolist()):
        about = {"step": step, "wall_time": float(run.wall_time[at]), "loss": float(run.loss[at])}
        about |= {f"lr {group}": float(rate) for group, rate in enumerate(run.learning_rate[at])}
        for name, place in places:
            yield {**about, "layer": name, **{metric: float(table[at, place]) for metric, table in tables.items()}}


def frame(run: RunData, layer: str | None, statistic: str | None) -> pandas.DataFrame:
    """Return a table for pandas, as :meth:`bnmonitor.runs.Run.to_frame` describes it."""
    pandas = needed("pandas", "to_frame()")
    if statistic not in STATISTICS:
        return pandas.DataFrame(list(rows(run, layer, statistic)))
    columns: dict[tuple[str, int], Any] = {}
    for name in matching(run, layer):
        series = run.series(name, statistic)
        index = pandas.Index(series.last, name="step")
        for channel in range(series.mean.shape[1]):
            columns[name, channel] = pandas.Series(series.mean[:, channel], index=index)
    found = pandas.DataFrame(columns)
    found.columns = pandas.MultiIndex.from_tuples(columns, names=["layer", "channel"])
    return found


def write_csv(path: Path | None, table: Iterable[Row], out: Any) -> int:
    """Write rows as CSV to a file, or to a stream if there is no path; return how many."""
    file = out if path is None else path.open("w", newline="", encoding="utf-8")
    try:
        writer, written = None, 0
        for row in table:
            if writer is None:
                writer = csv.DictWriter(file, list(row))
                writer.writeheader()
            writer.writerow({name: "" if value != value else value for name, value in row.items()})
            written += 1
        return written
    finally:
        if path is not None:
            file.close()


def write_json(path: Path | None, table: Iterable[Row], out: Any) -> int:
    """Write rows as JSON, an object a line, to a file, or to a stream if there is no path; return how many."""
    file = out if path is None else path.open("w", encoding="utf-8")
    try:
        written = 0
        for row in table:
            plain = {name: None if isinstance(v, float) and not np.isfinite(v) else v for name, v in row.items()}
            file.write(json.dumps(plain) + "\n")
            written += 1
        return written
    finally:
        if path is not None:
            file.close()


def write_parquet(path: Path, table: Iterable[Row]) -> int:
    """Write rows as Parquet; return how many.

    Raises:
        ImportError: pandas or pyarrow is not installed.
    """
    pandas = needed("pandas", "--parquet")
    needed("pyarrow", "--parquet")
    found = pandas.DataFrame(list(table))
    found.to_parquet(path, index=False)
    return len(found)
