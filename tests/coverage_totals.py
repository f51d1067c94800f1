"""``python -m tests.coverage_totals REPORT.json``: the share of lines and of branches that the tests pass."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def main() -> int:
    """Print both shares; return 1 if one is below what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.coverage_totals", description=__doc__)
    parser.add_argument("report", type=Path, help="what `coverage json` has written")
    parser.add_argument("--least", type=float, default=0.0, help="percent of the lines, and of the branches")
    arguments = parser.parse_args()
    totals = json.loads(arguments.report.read_text("utf-8"))["totals"]
    shares = []
    for what, covered, of in (
        ("lines", totals["covered_lines"], totals["num_statements"]),
        ("branches", totals["covered_branches"], totals["num_branches"]),
    ):
        shares.append(100 * covered / of)
        print(f"{what}: {covered:,} of {of:,}, {shares[-1]:.1f} %")
    return int(min(shares) < arguments.least)


if __name__ == "__main__":
    sys.exit(main())
