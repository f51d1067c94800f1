"""What holds on a GPU: exactness, waits, launches, CUDA graphs, streams, and what watching costs there.

Each part runs in a process of its own with a limit of time, cheapest first, and prints each result as soon as it is
there; a Markdown table of all follows at the end. The whole takes at most 12 minutes.

    python benchmarks/gpu.py                         on the GPU of this machine
    python benchmarks/gpu.py --part exactness        one part
    python benchmarks/gpu.py --device cpu --quick    whether the script itself works, without a GPU
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import queue
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used: for deterministic results

import gpu_parts as parts
import torch
from gpu_parts import Place, Result

WHOLE = 700
"""Seconds for all parts."""

PARTS: dict[Callable[[Place], Iterator[Result]], int] = {
    parts.environment: 40,
    parts.waits: 60,
    parts.launches: 60,
    parts.streams: 40,
    parts.graphs: 50,
    parts.latency: 40,
    parts.recomputation: 40,
    parts.exactness: 120,
    parts.identity: 60,
    parts.overhead_small: 60,
    parts.overhead_large: 150,
}
"""The parts, and the seconds that each may take."""


def _run(part: Callable[[Place], Iterator[Result]], name: str, quick: bool, results: Any) -> None:
    """In a process of its own: send each result, and at the end None."""
    try:
        device = torch.device(name)
        if device.type == "cuda" and not torch.cuda.is_available():
            results.put("no GPU")
            return
        for result in part(Place(device, quick)):
            results.put(result)
    except Exception as error:
        results.put(
            (part.__name__, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", False)
        )
    results.put(None)


def run(part: Callable[[Place], Iterator[Result]], device: str, quick: bool, seconds: float) -> list[Result] | None:
    """Run a part and print its results; None if there is no such device."""
    context = multiprocessing.get_context("fork")  # the imports are done, and nothing has touched the GPU yet
    results: Any = context.Queue()
    process = context.Process(target=_run, args=(part, device, quick, results))
    process.start()
    found, until = [], time.monotonic() + seconds
    while True:
        try:
            result = results.get(timeout=max(0.1, min(1.0, until - time.monotonic())))
        except queue.Empty:
            alive = process.is_alive()
            if alive and time.monotonic() < until:
                continue
            said = f"stopped after {seconds:.0f} s" if alive else f"the process ended with {process.exitcode}"
            result = (part.__name__, said, False)
            process.kill()
        if result == "no GPU":
            return None
        if result is None:
            break
        found.append(result)
        print(
            f"{part.__name__}: {result[0]}: {result[1]}{'' if result[2] is not False else '  <-- not as it should be'}",
            flush=True,
        )
        if not process.is_alive() and result[0] == part.__name__:
            break
    process.join()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes: whether the script works")
    parser.add_argument("--part", choices=[part.__name__ for part in PARTS], action="append")
    options = parser.parse_args()
    end, table = time.monotonic() + WHOLE, []
    for part, seconds in PARTS.items():
        if options.part and part.__name__ not in options.part:
            continue
        found = run(part, options.device, options.quick, min(seconds, end - time.monotonic()))
        if found is None:
            print("There is no GPU that PyTorch can use here; --device cpu --quick runs the script without one.")
            return 2
        table += [(part.__name__, *result) for result in found]
    print("\n| part | what | result | as it should be |\n|---|---|---|---|")
    for name, what, result, good in table:
        print(f"| {name} | {what} | {result} | {'' if good is None else 'yes' if good else '**no**'} |")
    return int(any(good is False for *_, good in table))


if __name__ == "__main__":
    sys.exit(main())
