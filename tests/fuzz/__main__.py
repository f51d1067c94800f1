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
    unsteady = 0
    began, cpu = time.monotonic(), time.process_time()
    seed, failures, rows, withheld, steps = arguments.first, [], 0, 0, 0
    print(f"programs from seed {seed} on", flush=True)
    try:
        while time.monotonic() - began < arguments.seconds:
            if arguments.programs is not None and seed - arguments.first >= arguments.programs:
                break
            result = examined(compose(seed, arguments.other_writes))
            rows, withheld, steps = rows + result.rows, withheld + result.withheld, steps + result.steps
            unsteady += result.unsteady
            if result.wrong:
                failures.append(seed)
                _report(result)
            seed += 1
            if (seed - arguments.first) % 100 == 0:
                print(
                    _total(
                        seed - arguments.first, failures, rows, withheld, steps, unsteady, time.process_time() - cpu
                    ),
                    flush=True,
                )
    except KeyboardInterrupt:
        print("interrupted")
    print(_total(seed - arguments.first, failures, rows, withheld, steps, unsteady, time.process_time() - cpu))
    if failures:
        print("again: " + "; ".join(f"python -m tests.fuzz --seed {s}" for s in failures[:10]))
    return int(bool(failures))


def _total(programs: int, failures: list[int], rows: int, withheld: int, steps: int, unsteady: int, cpu: float) -> str:
    compared = f"{steps} steps, {rows} rows true, {withheld} withheld, {unsteady} not deterministic"
    return f"{programs} programs, {len(failures)} failures, {compared}, {cpu:.0f} s of CPU time"


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
