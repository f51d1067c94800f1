"""Runs as tables: for pandas, for files, and for a notebook."""

from __future__ import annotations

import csv
import importlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
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
        values = np.stack([series.mean, series.minimum, series.maximum], axis=2)
        for first, last, block in zip(series.first.tolist(), series.last.tolist(), values, strict=True):
            yield from _of_block(name, statistic, first, last, block.tolist())


def _of_block(name: str, statistic: str, first: int, last: int, values: Sequence[Sequence[float]]) -> Iterator[Row]:
    for channel, (mean, low, high) in enumerate(values):
        about = {"layer": name, "first_step": first, "last_step": last, "channel": channel}
        yield {**about, statistic: mean, "minimum": low, "maximum": high}


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
    parts = []
    for name in matching(run, layer):
        last, values = run.history(name, statistic)
        index = pandas.Index(last, name="step")
        names = pandas.MultiIndex.from_product([[name], range(values.shape[1])], names=["layer", "channel"])
        found = pandas.DataFrame(values, index=index, columns=names)
        # A step that was kept by itself counts, and not the mean of the block that ends with it.
        parts.append(found[~index.duplicated(keep="last")])
    return pandas.concat(parts, axis=1, sort=True)


@contextmanager
def _opened(path: Path | None, out: Any) -> Iterator[Any]:
    """A file to write to, or a stream if there is no path, which stays open."""
    if path is None:
        yield out
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        yield file


def write_csv(path: Path | None, table: Iterable[Row], out: Any) -> int:
    """Write rows as CSV to a file, or to a stream if there is no path; return how many."""
    with _opened(path, out) as file:
        writer, written = None, 0
        for row in table:
            if writer is None:
                writer = csv.DictWriter(file, list(row), lineterminator="\n")
                writer.writeheader()
            writer.writerow({name: "" if value != value else value for name, value in row.items()})
            written += 1
        return written


def write_json(path: Path | None, table: Iterable[Row], out: Any) -> int:
    """Write rows as JSON, an object a line, to a file, or to a stream if there is no path; return how many."""
    with _opened(path, out) as file:
        written = 0
        for row in table:
            file.write(_json(row))
            written += 1
        return written


def _json(row: Row) -> str:
    plain = {name: None if isinstance(v, float) and not np.isfinite(v) else v for name, v in row.items()}
    return json.dumps(plain) + "\n"


def write_channels(path: Path | None, run: RunData, layer: str | None, statistic: str, out: Any, *, form: str) -> int:
    """Write the rows of a statistic of channels, which are millions, a block at a time; return how many.

    Args:
        path: The file; None: the stream.
        run: The run.
        layer: Name of a layer, or a glob pattern of names; None: every layer.
        statistic: One of a flight record.
        out: The stream.
        form: ``"csv"`` or ``"json"``.

    Raises:
        KeyError: Nothing has that name; the message names the nearest one.
    """
    as_json, written = form == "json", 0
    names = matching(run, layer)
    with _opened(path, out) as file:
        if not as_json:
            file.write(f"layer,first_step,last_step,channel,{statistic},minimum,maximum\n")
        for name in names:
            series = run.series(name, statistic)
            values = np.stack([series.mean, series.minimum, series.maximum], axis=2)
            template = _template(name, statistic, values.shape[1], as_json=as_json)
            for first, last, block in zip(series.first.tolist(), series.last.tolist(), values, strict=True):
                if np.isfinite(block).all():
                    text = template.replace("\x00", str(first)).replace("\x01", str(last))
                    file.write(text % tuple(block.reshape(-1).tolist()))
                else:
                    for row in _of_block(name, statistic, first, last, block.tolist()):
                        plain = ("" if v != v else str(v) for v in list(row.values())[1:])
                        file.write(_json(row) if as_json else f"{_quoted(name)},{','.join(plain)}\n")
                written += len(block)
    return written


def _template(name: str, statistic: str, channels: int, *, as_json: bool) -> str:
    """The rows of a block, with a place for each number."""
    if not as_json:
        head = _quoted(name).replace("%", "%%") + ",\x00,\x01,"
        return "".join(f"{head}{channel},%r,%r,%r\n" for channel in range(channels))
    head = json.dumps({"layer": name}).replace("%", "%%")[:-1] + ', "first_step": \x00, "last_step": \x01, "channel": '
    tail = f', "{statistic}": %r, "minimum": %r, "maximum": %r}}\n'
    return "".join(f"{head}{channel}{tail}" for channel in range(channels))


def _quoted(text: str) -> str:
    """A text as a field of CSV."""
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\r\n') else text


def write_parquet(path: Path, run: RunData, layer: str | None, statistic: str | None) -> int:
    """Write the rows that :func:`rows` yields as Parquet; return how many.

    Raises:
        ImportError: pandas or pyarrow is not installed.
        KeyError: Nothing has that name; the message names the nearest one.
    """
    pandas = needed("pandas", "--parquet")
    needed("pyarrow", "--parquet")
    if statistic in STATISTICS:
        parts = [pandas.DataFrame(_long(run, name, statistic)) for name in matching(run, layer)]
        found = pandas.concat(parts, ignore_index=True)
    else:
        found = pandas.DataFrame(list(rows(run, layer, statistic)))
    found.to_parquet(path, index=False)
    return len(found)


def _long(run: RunData, name: str, statistic: str) -> dict[str, Any]:
    """The columns of a layer's rows, each as an array."""
    series = run.series(name, statistic)
    blocks, channels = series.mean.shape
    return {
        "layer": np.full(blocks * channels, name, object),
        "first_step": np.repeat(series.first, channels),
        "last_step": np.repeat(series.last, channels),
        "channel": np.tile(np.arange(channels), blocks),
        statistic: series.mean.reshape(-1),
        "minimum": series.minimum.reshape(-1),
        "maximum": series.maximum.reshape(-1),
    }
