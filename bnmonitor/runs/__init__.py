"""Recorded runs in Python: read, tabulated and drawn. Free of torch."""

from bnmonitor.runs.runs import Run, Runs, open  # noqa: A004 -- as gzip and zipfile have one
from bnmonitor.runs.tables import rows, write_csv, write_json, write_parquet

__all__ = ["Run", "Runs", "open", "rows", "write_csv", "write_json", "write_parquet"]
