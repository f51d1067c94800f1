"""Detected faults and false alarms: every injected fault on every network it fits, and the healthy suite.

``python benchmarks/detection.py`` runs what has not been run yet in this state of the code, prints the result and
writes docs/detection.md. ``--quick`` runs a part, and writes nothing; ``--jobs 4`` runs four trainings at a time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from detection_page import matrix, page  # noqa: E402

from tests.end_to_end.faults.catalogue import INJECTIONS, fitting  # noqa: E402
from tests.end_to_end.faults.fits import FITS  # noqa: E402
from tests.end_to_end.faults.healthy import HEALTHY  # noqa: E402
from tests.end_to_end.faults.networks import NETWORKS  # noqa: E402
from tests.end_to_end.faults.ranks import tried  # noqa: E402
from tests.end_to_end.faults.trial import Outcome  # noqa: E402

CACHE = ROOT / "build" / "detection.jsonl"
PAGE, PICTURE = ROOT / "docs" / "detection.md", ROOT / "docs" / "pictures" / "confusion.svg"
CASES = {case.key: case for case in HEALTHY}

Task = tuple[str, str, str, int]
"""``fault``, ``sound`` or ``fit``, the name of the injection, case or fit, the network, the seed."""

logging.getLogger("bnmonitor").setLevel(logging.CRITICAL)


def tasks(*, seeds: int, networks: int, quick: bool, only: str) -> Iterator[Task]:
    """Yield every training to run."""
    for fault in INJECTIONS.values():
        fit = fitting(fault)
        for network in fit[:: max(1, len(fit) // networks)][:networks] if networks else fit:
            for seed in range(seeds):
                if only in fault.code or only == fault.name:
                    yield "fault", fault.name, network.name, seed
    for i, case in enumerate(HEALTHY):
        if (only in ("", "healthy") or only in case.key) and not (quick and i % 6):
            yield "sound", case.key, case.network, case.seed
    if only in ("", "healthy"):
        yield from (("fit", name, "residual", 0) for name in FITS)


def run(task: Task) -> tuple[Task, dict[str, Any]]:
    """Run one training; a crash counts as a result."""
    torch.set_num_threads(1)
    kind, name, network, seed = task
    try:
        if kind == "fault":
            return task, tried(NETWORKS[network], INJECTIONS[name], seed).to_dict()
        return task, (FITS[name]() if kind == "fit" else CASES[name].run()).to_dict()
    except Exception:
        return task, {"error": traceback.format_exc()}


def state() -> str:
    """A name for the state of the code that determines the results."""
    files = sorted([*(ROOT / "bnmonitor").rglob("*.py"), *(ROOT / "tests" / "end_to_end" / "faults").glob("*.py")])
    digest = hashlib.sha256(torch.__version__.encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def known(now: str) -> dict[Task, dict[str, Any]]:
    """Results of earlier runs in the same state of the code."""
    if not CACHE.exists():
        return {}
    rows = (json.loads(line) for line in CACHE.read_text(encoding="utf-8").splitlines())
    return {tuple(row["task"]): row["outcome"] for row in rows if row["state"] == now}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three networks a fault, one seed, a part of the suite")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    parser.add_argument("--seeds", type=int, default=2, help="seeds for each fault and network")
    parser.add_argument("--only", default="", help="a code, the beginning of one, the name of a fault, or healthy")
    parser.add_argument("--networks", type=int, default=0, help="networks for each fault; 0: all that it fits")
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.networks = 1, 3

    now = state()
    done = known(now)
    wanted = list(tasks(seeds=args.seeds, networks=args.networks, quick=args.quick, only=args.only))
    missing = [task for task in wanted if task not in done]
    print(f"{len(wanted)} trainings, {len(wanted) - len(missing)} of them known", flush=True)
    CACHE.parent.mkdir(exist_ok=True)
    began, shown = time.monotonic(), time.monotonic()
    with ProcessPoolExecutor(args.jobs) as pool, CACHE.open("a", encoding="utf-8") as cache:
        for count, future in enumerate(as_completed([pool.submit(run, task) for task in missing]), 1):
            task, outcome = future.result()
            done[task] = outcome
            if "error" in outcome:
                print(f"{'/'.join(map(str, task))} crashed:\n{outcome['error']}", flush=True)
                continue
            cache.write(json.dumps({"state": now, "task": task, "outcome": outcome}) + "\n")
            cache.flush()
            if time.monotonic() - shown > 30:
                shown = time.monotonic()
                print(f"{count} of {len(missing)} after {shown - began:.0f} s", flush=True)

    crashed = sum("error" in done[task] for task in wanted)
    outcomes = {task: Outcome.from_dict(done[task]) for task in wanted if "error" not in done[task]}
    faults = [outcome for task, outcome in outcomes.items() if task[0] == "fault"]
    sound = [(task[1], outcome) for task, outcome in outcomes.items() if task[0] != "fault"]
    text = page(faults, sound)
    print(text)
    if crashed:
        print(f"{crashed} trainings crashed")
    elif not args.quick and not args.only:
        PAGE.write_text(text, encoding="utf-8")
        PICTURE.write_text(matrix(faults, sound), encoding="utf-8")
    return 1 if crashed else 0


if __name__ == "__main__":
    sys.exit(main())
