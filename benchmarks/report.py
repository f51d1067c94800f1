"""Waiting time for the report of a run: 53 layers, 5,000 frames, imports and all."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.histories import Writer, course, resnet

VARIANTS = {"terminal": [], "--json": ["--json"], "--markdown": ["--markdown"], "--html": ["--html", "page.html"]}


def main(layers: int, frames: int, rounds: int) -> None:
    """Print the median time of each form of the report over the rounds, in turn, and the page's size."""
    with tempfile.TemporaryDirectory() as folder:
        names = resnet(layers)
        with Writer(Path(folder, "run"), names) as writer:
            writer.facts(0)
            writer.frames(range(0, 50 * frames, 50), course(layers, frames))
        taken: dict[str, list[float]] = {name: [] for name in VARIANTS}
        for _ in range(rounds + 1):
            for name, more in VARIANTS.items():
                command = [sys.executable, "-m", "bnmonitor", "report", "run", *more]
                begin = time.perf_counter()
                subprocess.run(command, cwd=folder, check=True, capture_output=True)
                taken[name].append(time.perf_counter() - begin)
        print(f"{layers} layers, {frames} frames, median of {rounds}:")
        for name, times in taken.items():
            print(f"  {name:10} {statistics.median(times[1:]):5.2f} s")
        print(f"  the page has {Path(folder, 'page.html').stat().st_size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main(*(int(word) for word in (sys.argv[1:] or ("53", "5000", "7"))))
