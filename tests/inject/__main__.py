"""``python -m tests.inject``: raise an error at every line that the trainings pass, or at some of them."""

from __future__ import annotations

import argparse
import logging
import random
import sys

from tests.inject.injection import ERRORS, IN_SHELL, NOT_REACHED, Injection, Line, alone, outcome, passed
from tests.inject.trainings import TRAININGS, Ended


def warmed() -> tuple[dict[str, Ended], list[tuple[str, Line]]]:
    """Run each training, so that all is imported; return what they leave, and the lines that they pass, each once."""
    logging.getLogger("bnmonitor").propagate = False
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for name in TRAININGS:
        passed(name)
    lines: dict[Line, str] = {}
    for name in TRAININGS:
        for line in passed(name):
            lines.setdefault(line, name)
    return {name: alone(name) for name in TRAININGS}, [(name, line) for line, name in lines.items()]


def injections(lines: list[tuple[str, Line]]) -> list[Injection]:
    """Every error at every line."""
    return [Injection(name, line, error) for name, line in lines for error in ERRORS]


def main() -> int:
    """Run what the command line asks for; return 1 if something broke."""
    parser = argparse.ArgumentParser(prog="python -m tests.inject", description=__doc__)
    parser.add_argument("--only", help="FILE:LINE, relative to the package, or a part of the file's name")
    parser.add_argument("--sample", type=int, help="so many lines, chosen at random")
    parser.add_argument("--seed", type=int, default=0, help="of the choice")
    parser.add_argument("--share", default="1/1", help="K/N: the K-th of N parts, for N processes side by side")
    arguments = parser.parse_args()
    expected, lines = warmed()
    if arguments.only:
        file, _, number = arguments.only.partition(":")
        lines = [(n, at) for n, at in lines if file in at[0] and (not number or at[1] == int(number))]
    if arguments.sample is not None:
        lines = random.Random(arguments.seed).sample(lines, min(arguments.sample, len(lines)))
    else:
        random.Random(arguments.seed).shuffle(lines)  # what a broken-off run has tried is spread over the package
    share, of = map(int, arguments.share.split("/"))
    lines = lines[share - 1 :: of]
    print(f"{len(lines)} lines, {len(ERRORS)} errors each", flush=True)
    counts = dict.fromkeys(("injected", "held", "broken", "in the shell", "not reached"), 0)
    for injection in injections(lines):
        wrong = outcome(injection, expected[injection.training])
        counts["injected"] += 1
        counts[_verdict(wrong)] += 1
        if _verdict(wrong) == "broken":
            print(f"BROKEN {injection}: {'; '.join(wrong)}", flush=True)
        if counts["injected"] % 500 == 0:
            print(_totals(counts), flush=True)
    print(_totals(counts))
    return int(counts["broken"] > 0)


def _verdict(wrong: list[str]) -> str:
    return {"": "held", NOT_REACHED: "not reached", IN_SHELL: "in the shell"}.get("".join(wrong), "broken")


def _totals(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {what}" for what, number in counts.items())


if __name__ == "__main__":
    sys.exit(main())
