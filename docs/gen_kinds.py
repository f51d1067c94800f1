"""Write the table of the kinds of layers from the list that the tests go by: ``python docs/gen_kinds.py [--check]``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = Path("layer-kinds.md")

INTRODUCTION = """\
# Kinds of layers

What is recorded of each kind of layer. The page is written by `python docs/gen_kinds.py` from
`tests/end_to_end/kinds.py`; the tests train every kind in it and compare what is recorded with the truth in
float64. The errors are the largest that a test accepts at momentum 0.1: of the mean in standard deviations, of the
variance relative to the true one.

- *exact*: recovered, or read, to the precision of float32;
- *fallback*: another way, or a coarser number;
- *not possible*: the layer is listed and its parameters are recorded, but not its batch statistics; the summary says
  why;
- *not watched*: the layer is not listed.

Training is bit-identical with and without the monitor for every kind that is watched. On layers without running
statistics there is a forward hook for as long as training is watched, though not in an evaluation, nor with
`sample_every_n_steps=0`; on all others only in sampled steps.
"""

TABLE = """
| kind | batch statistics | how, or why not | error of the mean | error of the variance |
|---|---|---|---|---|
"""


def page() -> str:
    """Return the page."""
    sys.path.insert(0, str(ROOT))
    try:
        from tests.end_to_end.kinds import KINDS
    finally:
        sys.path.remove(str(ROOT))
    rows = []
    for kind in KINDS:
        known = kind.status in ("exact", "fallback")
        limits = f"{kind.mean:.0e} | {kind.var:.0e}" if known else "|"
        rows.append(f"| {kind.name} | {kind.status} | {kind.how} | {limits} |\n".replace("  ", " "))
    return f"{INTRODUCTION}{TABLE}{''.join(rows)}"


def stale(docs: Path = ROOT / "docs") -> list[Path]:
    """Return the page if it is missing or not what the list says."""
    there = docs / PAGE
    return [] if there.is_file() and there.read_text("utf-8") == page() else [PAGE]


def main() -> int:
    """Write the page, or say whether it is stale."""
    parser = argparse.ArgumentParser(description="Write the table of the kinds of layers.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page is stale")
    if parser.parse_args().check:
        found = stale()
        if found:
            print(f"stale: {PAGE}; run `python docs/gen_kinds.py`")
        return 1 if found else 0
    (ROOT / "docs" / PAGE).write_text(page(), encoding="utf-8", newline="\n")
    print(f"docs/{PAGE}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
