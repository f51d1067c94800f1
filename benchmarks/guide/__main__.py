"""Run the experiments of the guide, and write its pages and pictures.

``python -m benchmarks.guide`` runs all of them; ``python -m benchmarks.guide depth`` one; ``--pages`` only writes the
pages and pictures of the results that are there.
"""

from __future__ import annotations

import argparse
import time

from .experiments import EXPERIMENTS
from .pages import write
from .running import run

SEEDS = 5


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guide", description="Run the experiments of the guide.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="of experiments; none: all of them")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many for each setting (%(default)s)")
    parser.add_argument("--missing", action="store_true", help="keep the results that are there, and add seeds")
    parser.add_argument("--jobs", type=int, default=2, help="processes (%(default)s)")
    parser.add_argument("--pages", action="store_true", help="train nothing, write the pages of the results there are")
    given = parser.parse_args()
    known = [each.name for each in EXPERIMENTS]
    if wrong := [name for name in given.names if name not in known]:
        parser.error(f"there is no experiment {wrong[0]!r}; there are {', '.join(known)}")
    chosen = [each for each in EXPERIMENTS if each.name in (given.names or known)]
    if not given.pages:
        begin = time.perf_counter()
        for experiment, there, seconds in run(chosen, given.seeds, given.jobs, anew=not given.missing):
            print(f"{experiment.name:20} {there} seeds, {seconds:6.1f} s of training", flush=True)
        print(f"{'in all':20} {time.perf_counter() - begin:7.1f} s")
    for path in write(EXPERIMENTS):
        print(path)


if __name__ == "__main__":
    main()
