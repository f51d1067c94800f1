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
from lists import CLEAN, DEEPCNN, POSTS  # noqa: E402
from training import Program, train  # noqa: E402

README = HERE / "README.md"
BEGIN, END = "<!-- results -->", "<!-- end of results -->"


def said(program: Program, seed: int = 0) -> tuple[float, dict[str, int], list[str], list[str]]:
    """Train; return the accuracy, the worst severity of each rule that spoke, as words too, and the causes."""
    accuracy, monitor = train(program, seed)
    worst: dict[str, int] = {}
    words: dict[str, str] = {}
    for alert in monitor.alerts:
        if alert.severity >= worst.get(alert.code, 0):
            worst[alert.code], words[alert.code] = int(alert.severity), f"{alert.code} {alert.severity}"
    return accuracy, worst, list(words.values()), list(dict.fromkeys(i.cause for i in monitor.incidents))


def row(program: Program, sound: dict[str, int]) -> str:
    """Train one, and tell of it in a row; what is said of the sound program as loudly names nothing."""
    accuracy, worst, words, causes = said(program)
    named = [code for code in program.ours if worst.get(code, 0) > sound.get(code, 0)]
    verdict = "–" if not program.ours else ", ".join(named) or "**no**"
    ours = " or ".join(program.ours) if program.ours else f"no: {program.why}" if program.why else "–"
    cells = (program.name, program.what, f"{100 * accuracy:.0f} %", ours, verdict, ", ".join(causes), ", ".join(words))
    return f"| {' | '.join(cell or '–' for cell in cells)} |"


def table(programs: Iterable[Program], names: list[str], sound: dict[str, int]) -> list[str]:
    """A table of those that are named, or of all."""
    head = "| program | what is broken | accuracy | ours to name | named by | causes | everything that was said |"
    rows = []
    for program in programs:
        if not names or program.name in names:
            rows.append(row(program, {} if program is CLEAN else sound))
            print(rows[-1], flush=True)
    return [head, "|---|---|---|---|---|---|---|", *rows, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="programs; all of them, and the README, if none is given")
    names = parser.parse_args().names
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("bnmonitor").setLevel(logging.CRITICAL)
    sound = said(CLEAN)[1]
    lines = ["### TheDeepChecker's deepCNN programs", "", *table(DEEPCNN, names, sound)]
    lines += ["### Questions and programs of other lists", "", *table(POSTS, names, sound)]
    if not names:
        before, rest = README.read_text(encoding="utf-8").split(BEGIN)
        after = rest.split(END)[1]
        README.write_text(f"{before}{BEGIN}\n\n" + "\n".join(lines) + f"\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
