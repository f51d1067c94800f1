"""``python -m tests.fuzz``: run programs for as long as asked, or one of them again."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
import time
import traceback

from tests.fuzz.comparison import Result, check
from tests.fuzz.program import Block, Program, compose


def main() -> int:
    """Run what the command line asks for; return how many programs failed, at most 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, help="run the program of this seed alone, and say what is wrong")
    parser.add_argument("--shrink", action="store_true", help="with --seed: leave out choices that do not matter")
    parser.add_argument("--first", type=int, default=0, help="seed of the first of many programs")
    parser.add_argument("--seconds", type=float, default=60, help="how long to begin new programs")
    parser.add_argument("--programs", type=int, help="how many programs at most")
    parser.add_argument("--other-writes", action="store_true", default=None, help="let other code write to buffers")
    arguments = parser.parse_args()
    logging.getLogger("bnmonitor").propagate = False
    if arguments.seed is not None:
        return _one(arguments.seed, arguments.other_writes, arguments.shrink)
    return _many(arguments)


def examined(program: Program) -> Result:
    """Check a program; an error of the test itself is a result, too."""
    try:
        return check(program)
    except Exception:
        return Result(program, ["the test itself: " + traceback.format_exc(limit=-4)])


def _one(seed: int, other_writes: bool | None, shrink: bool) -> int:
    result = examined(compose(seed, other_writes))
    if shrink and result.wrong:
        result = _shrunk(result)
    _report(result)
    return int(bool(result.wrong))


def _many(arguments: argparse.Namespace) -> int:
    began = time.monotonic()
    totals, first = Totals(), arguments.first
    print(f"programs from seed {first} on", flush=True)
    try:
        while time.monotonic() - began < arguments.seconds and totals.programs != arguments.programs:
            totals.add(examined(compose(first + totals.programs, arguments.other_writes)))
            if totals.programs % 100 == 0:
                print(totals, flush=True)
    except KeyboardInterrupt:
        print("interrupted")
    print(totals)
    if totals.failures:
        print("again: " + "; ".join(f"python -m tests.fuzz --seed {seed}" for seed in totals.failures[:10]))
    return int(bool(totals.failures))


@dataclasses.dataclass
class Totals:
    """What has come of the programs so far."""

    programs: int = 0
    failures: list[int] = dataclasses.field(default_factory=list)
    steps: int = 0
    rows: int = 0
    withheld: int = 0
    unsteady: int = 0

    def add(self, result: Result) -> None:
        """Add the result of a program, and print it if it failed."""
        self.programs += 1
        self.steps += result.steps
        self.rows += result.rows
        self.withheld += result.withheld
        self.unsteady += result.unsteady
        if result.wrong:
            self.failures.append(result.program.seed)
            _report(result)

    def __str__(self) -> str:
        """Return the numbers in one line."""
        return (
            f"{self.programs} programs, {len(self.failures)} failures, {self.steps} steps, {self.rows} rows true, "
            f"{self.withheld} withheld, {self.unsteady} not deterministic, {time.process_time():.0f} s of CPU time"
        )


def _report(result: Result) -> None:
    print("FAILED" if result.wrong else "passed", result.program)
    for line in result.wrong[:8]:
        print("   ", line)
    if not result.wrong:
        print(f"    {result.steps} steps, {result.rows} rows true, {result.withheld} withheld")
    sys.stdout.flush()


def _shrunk(result: Result) -> Result:
    """Set choices to the usual ones, one after the other, as long as the program fails."""
    changed = True
    while changed:
        changed = False
        for smaller in _smaller(result.program):
            tried = examined(smaller)
            if tried.wrong:
                result, changed = tried, True
                break
    return result


def _smaller(program: Program) -> list[Program]:
    found = []
    for i in range(len(program.blocks)):
        if len(program.blocks) > 1:
            found.append(dataclasses.replace(program, blocks=program.blocks[:i] + program.blocks[i + 1 :]))
    for i in range(len(program.events)):
        found.append(dataclasses.replace(program, events=program.events[:i] + program.events[i + 1 :]))
    for field in dataclasses.fields(Program):
        usual = field.default
        if usual is not dataclasses.MISSING and field.name != "events" and getattr(program, field.name) != usual:
            found.append(dataclasses.replace(program, **{field.name: usual}))
    for i, block in enumerate(program.blocks):
        for field in dataclasses.fields(Block):
            if field.default is not dataclasses.MISSING and getattr(block, field.name) != field.default:
                simpler = dataclasses.replace(block, **{field.name: field.default})
                found.append(
                    dataclasses.replace(program, blocks=(*program.blocks[:i], simpler, *program.blocks[i + 1 :]))
                )
    return found


if __name__ == "__main__":
    sys.exit(main())
