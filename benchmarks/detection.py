"""Detected faults, false alarms and power: every injected fault, the healthy suite, and faults of graded size.

``python benchmarks/detection.py`` runs what has not been run yet in this state of the code, prints the result and
writes docs/detection.md. Results are kept one by one in build/detection.jsonl, so that a run that was broken off goes
on where it was. ``--part power`` runs a part; the page is written once all three parts are there. ``--known`` runs
nothing and writes the page of what there is, which then says so; without power curves until all are there. ``--quick``
runs a few of each, and writes nothing; ``--jobs 4`` runs four trainings at a time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402
from detection_page import matrix, page  # noqa: E402
from detection_power import picture  # noqa: E402

from tests.end_to_end.faults.catalogue import INJECTIONS, fitting  # noqa: E402
from tests.end_to_end.faults.fits import FITS  # noqa: E402
from tests.end_to_end.faults.graded import CURVES  # noqa: E402
from tests.end_to_end.faults.healthy import HEALTHY  # noqa: E402
from tests.end_to_end.faults.networks import NETWORKS  # noqa: E402
from tests.end_to_end.faults.ranks import tried  # noqa: E402
from tests.end_to_end.faults.trial import Outcome, Trial  # noqa: E402

CACHE = ROOT / "build" / "detection.jsonl"
PAGE, PICTURES = ROOT / "docs" / "detection.md", ROOT / "docs" / "pictures"
PARTS = ("faults", "sound", "power")

POWER_SEEDS = 5
"""Seeds of each size and network at least: of three, the loss of accuracy is too uncertain."""

logging.getLogger("bnmonitor").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Task:
    """One training.

    Attributes:
        kind: ``fault``, ``sound``, ``fit`` or ``power``.
        name: Of the injection, case, fit or curve.
        size: Of the fault, of a curve; None: without.
        again: How often the seed of a sound case has been changed.
    """

    kind: str
    name: str
    network: str
    seed: int
    size: float | None = None
    again: int = 0

    @property
    def key(self) -> str:
        """What the result is kept under."""
        size = "" if self.kind != "power" else f"/{'none' if self.size is None else f'{self.size:g}'}"
        return f"{self.kind}/{self.name}/{self.network}/{self.seed}{size}"

    def run(self) -> Outcome:
        """Train."""
        if self.kind == "fault":
            return tried(NETWORKS[self.network], INJECTIONS[self.name], self.seed)
        if self.kind == "fit":
            return FITS[self.name]()
        if self.kind == "sound":
            [case] = [case for case in HEALTHY if case.again(self.again).key == self.name]
            return case.again(self.again).run()
        [curve] = [curve for curve in CURVES if curve.name == self.name]
        outcome = Trial(NETWORKS[self.network], injection=curve.training(self.size), seed=self.seed).run()
        outcome.code = curve.code
        return outcome


def faults(args: argparse.Namespace) -> Iterator[Task]:
    """Every fault on the networks that it fits."""
    for fault in INJECTIONS.values():
        fit = fitting(fault)
        for network in fit[:: max(1, len(fit) // args.networks)][: args.networks] if args.networks else fit:
            for seed in range(args.seeds):
                if args.only in fault.code or args.only == fault.name:
                    yield Task("fault", fault.name, network.name, seed)


def sound(args: argparse.Namespace) -> Iterator[Task]:
    """The healthy suite, as often as it takes to have so many steps."""
    chosen = [case for i, case in enumerate(HEALTHY) if args.only in case.key and not (args.quick and i % 6)]
    steps, again = 0, 0
    while chosen and (steps < args.steps or again == 0):
        for case in (case.again(again) for case in chosen):
            steps += case.injection.steps
            yield Task("sound", case.key, case.network, case.seed, again=again)
        again += 1
        if args.quick:
            break
    if not args.only:
        yield from (Task("fit", name, "residual", 0) for name in FITS)


def power(args: argparse.Namespace) -> Iterator[Task]:
    """Faults of graded size, each beside the same training without it."""
    for curve in CURVES:
        if args.only and args.only not in curve.name:
            continue
        for network in curve.networks[: args.networks or None]:
            for seed in range(args.seeds if args.quick else max(args.seeds, POWER_SEEDS)):
                for size in (None, *curve.sizes):
                    yield Task("power", curve.name, network, seed, size)


def run(task: Task) -> tuple[Task, dict[str, Any]]:
    """Run one training; a crash counts as a result."""
    torch.set_num_threads(1)
    try:
        return task, task.run().to_dict()
    except Exception:
        return task, {"error": traceback.format_exc()}


def state() -> str:
    """A name for the state of the code that determines the results."""
    files = sorted([*(ROOT / "bnmonitor").rglob("*.py"), *(ROOT / "tests" / "end_to_end" / "faults").glob("*.py")])
    digest = hashlib.sha256(torch.__version__.encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def known(now: str) -> dict[str, dict[str, Any]]:
    """Results of earlier runs in the same state of the code, by the key of their task."""
    if not CACHE.exists():
        return {}
    found = {}
    for line in CACHE.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # a run that was killed leaves half a line, at most
            continue
        if row["state"] == now and isinstance(row["task"], str):
            found[row["task"]] = row["outcome"]
    return found


def work(tasks: list[Task], done: dict[str, dict[str, Any]], now: str, jobs: int) -> int:
    """Run what is missing, keep it, and return how many crashed."""
    missing = [task for task in tasks if task.key not in done]
    print(f"{len(tasks)} trainings, {len(tasks) - len(missing)} of them known", flush=True)
    CACHE.parent.mkdir(exist_ok=True)
    began = shown = time.monotonic()
    crashed = 0
    with ProcessPoolExecutor(jobs) as pool, CACHE.open("a", encoding="utf-8") as cache:
        for count, future in enumerate(as_completed([pool.submit(run, task) for task in missing]), 1):
            task, outcome = future.result()
            if "error" in outcome:
                crashed += 1
                print(f"{task.key} crashed:\n{outcome['error']}", flush=True)
                continue
            done[task.key] = outcome
            cache.write(json.dumps({"state": now, "task": task.key, "outcome": outcome}) + "\n")
            cache.flush()
            for alert in Outcome.from_dict(outcome).alarms() if task.kind in ("sound", "fit") else ():
                print(
                    f"{task.key}: {alert['code']} {alert['severity']} {alert['layer']}: {alert['message']}", flush=True
                )
            if time.monotonic() - shown > 30:
                shown = time.monotonic()
                left = (shown - began) / count * (len(missing) - count)
                print(f"{count} of {len(missing)} after {shown - began:.0f} s, {left:.0f} s left", flush=True)
    return crashed


def unfinished(counts: dict[str, tuple[int, int]]) -> str:
    """Return a sentence on the parts that have not been run to their end; empty if all have."""
    named = {"faults": "trainings with a fault", "sound": "sound trainings", "power": "trainings of graded faults"}
    parts = [f"{known:,} of {total:,} {named[part]}" for part, (known, total) in counts.items() if known < total]
    return f"Not everything has been run in this state of the code: {', '.join(parts)}." if parts else ""


def measured() -> str:
    """Return a sentence on when and at which commit this is measured; empty without git."""
    try:
        asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return ""
    if asked.returncode:
        return ""
    return f"Measured on {date.today()} at commit {asked.stdout.strip()}: later changes are in the changelog."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", default=",".join(PARTS), help="faults, sound, power, or several with commas")
    parser.add_argument("--seeds", type=int, default=3, help="seeds for each fault, network and size")
    parser.add_argument("--networks", type=int, default=0, help="networks for each fault; 0: all that it fits")
    parser.add_argument("--steps", type=int, default=200_000, help="sound steps at least")
    parser.add_argument("--only", default="", help="a code, the beginning of one, or a part of a name")
    parser.add_argument("--quick", action="store_true", help="three networks a fault, one seed, a part of the suite")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    parser.add_argument("--known", action="store_true", help="run nothing, and write the page of what has been run")
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.networks = 1, 3

    makers = {"faults": faults, "sound": sound, "power": power}
    now = state()
    done = known(now)
    wanted = {part: list(maker(args)) for part, maker in makers.items()}
    chosen = [] if args.known else [task for part in args.part.split(",") for task in wanted[part]]
    crashed = work(chosen, done, now, args.jobs)
    found = {part: [(t, Outcome.from_dict(done[t.key])) for t in wanted[part] if t.key in done] for part in PARTS}
    results = (
        [outcome for _, outcome in found["faults"]],
        [(task.key.split("/", 1)[1], outcome) for task, outcome in found["sound"]],
        [(task.size, outcome) for task, outcome in found["power"] if len(found["power"]) == len(wanted["power"])],
    )
    counts = {part: (len(found[part]), len(wanted[part])) for part in PARTS}
    text = page(*results, unfinished=unfinished(counts) if args.known else "", measured=measured())
    print(text)
    missing = 0 if args.known else sum(total - known for known, total in counts.values())
    if crashed:
        print(f"{crashed} trainings crashed")
    elif missing:
        print(f"{missing} trainings of other parts are missing: nothing is written")
    elif not args.quick and not args.only:
        PAGE.write_text(text, encoding="utf-8")
        (PICTURES / "confusion.svg").write_text(matrix(*results[:2]), encoding="utf-8")
        if results[2]:
            (PICTURES / "power.svg").write_text(picture(results[2]), encoding="utf-8")
    return 1 if crashed else 0


if __name__ == "__main__":
    sys.exit(main())
