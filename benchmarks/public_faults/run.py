"""Run the public faults, and write what bnmonitor says of each into the README: ``python run.py [NAME ...]``."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

import torch  # noqa: E402
from lists import DEEPCNN, POSTS  # noqa: E402
from training import Program, train  # noqa: E402

README = HERE / "README.md"
BEGIN, END = "<!-- results -->", "<!-- end of results -->"


def row(program: Program) -> str:
    """Train one, and tell of it in a row."""
    accuracy, monitor = train(program)
    told = {f"{alert.code} {alert.severity}": None for alert in monitor.alerts}
    loud = {alert.code for alert in monitor.alerts}
    verdict = "–" if not program.ours else "yes" if loud & {*program.ours} else "**no**"
    leads = ", ".join(dict.fromkeys(incident.cause for incident in monitor.incidents)) or "–"
    ours = " or ".join(program.ours) if program.ours else f"no: {program.why}" if program.why else "–"
    cells = (program.name, program.what, f"{100 * accuracy:.0f} %", ours, verdict, leads, ", ".join(told) or "–")
    return f"| {' | '.join(cells)} |"


def table(programs: Iterable[Program], names: list[str]) -> list[str]:
    """A table of those that are named, or of all."""
    head = "| program | what is broken | accuracy | ours to name | named | causes | everything that was said |"
    rows = []
    for program in programs:
        if not names or program.name in names:
            rows.append(row(program))
            print(rows[-1], flush=True)
    return [head, "|---|---|---|---|---|---|---|", *rows, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="programs; all of them, and the README, if none is given")
    names = parser.parse_args().names
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("bnmonitor").setLevel(logging.CRITICAL)
    lines = ["### TheDeepChecker's deepCNN programs", "", *table(DEEPCNN, names)]
    lines += ["### Questions and programs of other lists", "", *table(POSTS, names)]
    if not names:
        before, rest = README.read_text(encoding="utf-8").split(BEGIN)
        after = rest.split(END)[1]
        README.write_text(f"{before}{BEGIN}\n\n" + "\n".join(lines) + f"\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
