"""Recorded runs in Python: read, tabulated and drawn. Free of torch."""

from bnmonitor.history.flight.layout import STATISTICS
from bnmonitor.history.flight.series import Series
from bnmonitor.runs.data import RunData
from bnmonitor.runs.notebook import of_incidents, of_run
from bnmonitor.runs.plots import plot
from bnmonitor.runs.runs import Run, Runs, open  # noqa: A004 -- as gzip and zipfile have one
from bnmonitor.runs.tables import frame, rows, write_channels, write_csv, write_json, write_parquet

__all__ = [
    "STATISTICS",
    "Run",
    "RunData",
    "Runs",
    "Series",
    "frame",
    "of_incidents",
    "of_run",
    "open",
    "plot",
    "rows",
    "write_channels",
    "write_csv",
    "write_json",
    "write_parquet",
]
