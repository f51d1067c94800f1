"""The flight record of 90 epochs of ResNet-50: its size, error, cost and memory, and the time to read it.

The benchmark makes up the batch statistics of 53 layers with 26,560 channels at each of 450,000 steps, with drifts,
steps of the learning rate and single-step spikes, and passes them to the sinks as a monitor does. It keeps the truth of
one channel of each layer beside the record, and compares them at the end. Prints JSON. Run
``python benchmarks/flight.py [STEPS] [BUDGET_IN_BYTES] [DIRECTORY] [resnet50 | resnet18]``; with a directory the run
is kept there, and ``python benchmarks/flight.py read DIRECTORY`` times its reading again.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from long import resident

import bnmonitor
from bnmonitor.history.flight.budget import block_at
from bnmonitor.history.flight.layout import FOLDER, STATISTICS, Array
from bnmonitor.history.flight.reader import Flight
from bnmonitor.history.flight.writer import size_of
from bnmonitor.sinks import Run, TensorBoard
from bnmonitor.sinks.flight_record import FlightRecord
from bnmonitor.summary import METRICS, summarize
from bnmonitor.testing import make_sample, make_window

Model = tuple[list[int], list[int]]

CHECK, FRAME = 10, 50
STAGES = ((64, 256, 3, 56), (128, 512, 4, 28), (256, 1024, 6, 14), (512, 2048, 3, 7))
BATCH, MOMENTUM = 32, 0.1
SPIKE = 50.0
"""Standard deviations by which a single batch mean leaves its channel's usual range."""


def resnet50() -> tuple[list[int], list[int]]:
    """Channels of each normalization layer of ResNet-50 on ImageNet, and values per channel in a batch."""
    channels, values = [64], [BATCH * 112**2]
    for width, wide, blocks, side in STAGES:
        for block in range(blocks):
            channels += [width, width, wide] + ([wide] if block == 0 else [])
            values += [BATCH * side**2] * (4 if block == 0 else 3)
    return channels, values


def resnet18() -> tuple[list[int], list[int]]:
    """The same of ResNet-18 on CIFAR-10."""
    channels, values = [64], [4 * BATCH * 32**2]
    for width, side in ((64, 32), (128, 16), (256, 8), (512, 4)):
        count = 4 if width == 64 else 5
        channels += [width] * count
        values += [4 * BATCH * side**2] * count
    return channels, values


MODELS = {"resnet50": resnet50, "resnet18": resnet18}


class Training:
    """Statistics of a run that does not take place: what a monitor would recover at each step.

    Each channel has a mean and a variance that drift; a batch's are off by the noise of its ``n`` values, and by that
    of its 32 samples, which share what is the same everywhere in an image.
    """

    def __init__(self, channels: list[int], values: list[int], steps: int) -> None:
        self.total, self.steps = sum(channels), steps
        generator = np.random.default_rng(0)
        self._draw = generator
        # A pool that rows are taken from at random places, as drawing 24 billion numbers would take an hour.
        self._pool = generator.standard_normal((256, 2 * self.total), dtype=np.float32)
        n = np.repeat(np.array(values, np.float32), channels)
        self._noise = np.sqrt(1 / n + 0.1 / BATCH)
        self._center = generator.normal(0, 1, self.total).astype(np.float32)
        self._log_scale = generator.normal(-1, 1, self.total).astype(np.float32)
        self._gamma = np.ones(self.total, np.float32)
        self._beta = np.zeros(self.total, np.float32)
        self._mean, self._var = np.zeros(self.total, np.float32), np.ones(self.total, np.float32)
        self.spikes = {int(s): int(c) for s, c in zip(*self._spikes(generator, channels), strict=True)}
        self.rows = {name: np.empty((CHECK, self.total), np.float32) for name in STATISTICS}

    def _spikes(self, generator: np.random.Generator, channels: list[int]) -> tuple[Any, Any]:
        starts = np.cumsum([0, *channels[:-1]])
        at = generator.choice(np.arange(self.steps // 100, self.steps), 40, replace=False)
        return np.sort(at), generator.choice(starts, 40)

    def rate(self, step: int) -> float:
        """The learning rate: a warm-up, and three falls."""
        return float(0.1 * min(1.0, 20 * (step + 1) / self.steps) * 0.1 ** (3 * step // self.steps))

    def advance(self, step: int) -> None:
        """Fill the rows with the next ten steps."""
        size = np.float32(self.rate(step) ** 0.5 * 0.01)
        drift = self._pool[self._draw.integers(256)]
        self._center += size * np.exp(self._log_scale) * drift[: self.total]
        self._log_scale += 0.5 * size * drift[self.total :]
        other = self._pool[self._draw.integers(256)]
        self._gamma += 0.1 * size * other[: self.total]
        self._beta += 0.1 * size * other[self.total :]
        sigma = np.exp(self._log_scale)
        for row in range(CHECK):
            drawn = self._pool[self._draw.integers(256)]
            turn = int(self._draw.integers(self.total))
            mean, var = self.rows["batch_mean"][row], self.rows["batch_var"][row]
            noise = np.roll(drawn, turn)
            np.multiply(noise[: self.total], self._noise * sigma, out=mean)
            mean += self._center
            np.multiply(noise[self.total :], 1.4 * self._noise, out=var)
            np.exp(var, out=var)
            var *= sigma**2
            if (channel := self.spikes.get(step + row)) is not None:
                mean[channel] += SPIKE * sigma[channel]
            self._mean += MOMENTUM * (mean - self._mean)
            self._var += MOMENTUM * (var - self._var)
            self.rows["running_mean"][row], self.rows["running_var"][row] = self._mean, self._var
        self.rows["gamma"][:], self.rows["beta"][:] = self._gamma, self._beta


def milliseconds(call: Callable[[], object], times: int = 1) -> list[tuple[float, float]]:
    """How long each of some calls takes by the clock, and of the processor."""
    taken = []
    for _ in range(times):
        begin, worked = time.perf_counter(), time.process_time()
        call()
        taken.append((1e3 * (time.perf_counter() - begin), 1e3 * (time.process_time() - worked)))
    return taken


def forget(directory: Path) -> None:
    """Drop what the system keeps of the record in memory."""
    os.sync()
    for path in (directory / FOLDER).iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def write(directory: Path, truth: Path, model: Model, steps: int, budget: int) -> dict[str, Any]:
    """Write the run, and the truth of each layer's first channel."""
    channels, values = model
    training = Training(channels, values, steps)
    firsts = np.cumsum([0, *channels[:-1]])
    window = make_window(channels=channels, steps=CHECK)
    window = replace(
        window, sample=make_sample(window.layers, values=1), fresh=CHECK, facts=replace(window.facts, structure=None)
    )
    assert window.sample is not None
    window = replace(window, sample=replace(window.sample, values=torch.tensor(values)))
    rows = {name: torch.from_numpy(row) for name, row in training.rows.items()}
    summary = summarize(replace(window, **rows), (), {})
    board = TensorBoard(directory)
    board.open(Run(layers=summary.layers))
    flight = FlightRecord(directory, budget)
    variance = METRICS.index("batch_var")
    taken = frames = 0.0
    early, largest, most = 0, 0, 0
    writing = 0.0
    with truth.open("wb") as kept:
        for step in range(0, steps, CHECK):
            training.advance(step)
            kept.write(np.stack([row[:, firsts] for row in training.rows.values()], axis=1).tobytes())
            losses = tuple(6.0 * 0.5 ** (5 * (step + i) / steps) for i in range(CHECK))
            facts = replace(window.facts, losses=losses, group_rates=(training.rate(step),))
            given = replace(window, steps=tuple(range(step, step + CHECK)), facts=facts, **rows)
            begin = time.thread_time()
            flight.take(given, ())
            taken += time.thread_time() - begin
            if step % FRAME == 0:
                table = summary.table.clone()
                table[:, variance] *= torch.empty(len(channels)).normal_(0, 0.05).exp()
                board.frame(replace(summary, step=step, table=table))
                frames += 1
            if step % 1000 == 0:
                writing = thread_time(flight)
                largest, most = max(largest, size_of(flight.folder)), max(most, resident())
                early = early or (most if step >= steps // 5 else 0)
            while flight._writer is not None and flight._writer.waiting > 32 << 20:
                time.sleep(0.01)  # a training takes a day for what is made up here in minutes
        flight.close()
        board.close(replace(summary, step=steps - 1))
    return {
        "steps": steps,
        "channels": sum(channels),
        "budget": budget,
        "bytes": size_of(flight.folder),
        "most_bytes": largest,
        "failures": [str(error) for error in flight.failures()],
        "training_thread_ms_a_step": round(1e3 * taken / steps, 4),
        "writers_thread_ms_a_step": round(1e3 * writing / (steps - steps % 1000), 4),
        "memory_at_a_fifth": early,
        "memory_growth_after": most - early,
        "frames": int(frames),
        "event_bytes": sum(path.stat().st_size for path in directory.rglob("*tfevents*")),
    }


def thread_time(flight: FlightRecord) -> float:
    """Processor time of the thread that writes the record, in seconds."""
    thread = None if flight._writer is None else flight._writer._thread
    clock = None if thread is None else time.pthread_getcpuclockid(thread.ident or 0)
    return 0.0 if clock is None else time.clock_gettime(clock)


def looked_at(total: int, steps: int) -> Array:
    """Whether averages and parameters are looked at: on the last step of each check, and of each block."""
    ends, end = list(range(CHECK, steps + 1, CHECK)), 0
    while end < steps:
        end += block_at(total, end)
        ends.append(min(end, steps))
    found = np.zeros(steps, bool)
    found[np.array(ends) - 1] = True
    return found


def compare(directory: Path, truth: Path) -> dict[str, Any]:
    """The largest errors of every block's mean, minimum and maximum, against the truth."""
    run, flight = bnmonitor.open(directory).only, Flight.of(directory)
    assert flight is not None
    true = np.memmap(truth, np.float32, "r").reshape(-1, len(STATISTICS), len(run.layers))
    worst = dict.fromkeys(STATISTICS, 0.0)
    typical: dict[str, list[float]] = {name: [] for name in STATISTICS}
    sigma_at = STATISTICS.index("batch_var")
    looked = looked_at(sum(flight.layers.values()), len(true))
    lengths: set[int] = set()
    for place, layer in enumerate(run.layers):
        sigma = np.sqrt(np.asarray(true[:, sigma_at, place], np.float64))
        for which, name in enumerate(STATISTICS):
            series = run.series(layer, name)
            exact = np.asarray(true[:, which, place], np.float64)
            for row, (first, last) in enumerate(zip(series.first, series.last, strict=True)):
                span = exact[first : last + 1]
                if not name.startswith("batch") and last > first:
                    span = span[looked[first : last + 1]]
                scale = sigma[first : last + 1].mean() if name in ("batch_mean", "running_mean") else 1.0
                off = [
                    abs(float(got[row, 0]) - float(wanted))
                    for got, wanted in (
                        (series.mean, span.mean()),
                        (series.minimum, span.min()),
                        (series.maximum, span.max()),
                    )
                ]
                if name.endswith("_var"):
                    off = [e / w for e, w in zip(off, (span.mean(), span.min(), span.max()), strict=True)]
                worst[name] = max(worst[name], max(off) / scale)
                typical[name].append(max(off) / scale)
            lengths |= set((series.last - series.first + 1).tolist())
    return {
        "largest_error": {name: round(error, 4) for name, error in worst.items()},
        "median_error": {name: round(float(np.median(errors)), 5) for name, errors in typical.items()},
        "stated_error": {name: round(max(flight.error(n, name) for n in run.layers), 4) for name in STATISTICS},
        "steps_in_a_block": sorted(lengths),
    }


def spikes(directory: Path, model: Model, steps: int) -> dict[str, int]:
    """How many spikes of a single step are in the record, and how many of them at their very step."""
    channels, values = model
    expected = Training(channels, values, steps).spikes
    run = bnmonitor.open(directory).only
    names, starts = list(run.layers), np.cumsum([0, *channels[:-1]]).tolist()
    seen = exact = 0
    for step, channel in expected.items():
        layer = names[starts.index(channel)]
        series = run.series(layer, "batch_mean", step, step)
        sigma = np.sqrt(run.series(layer, "batch_var", step, step).mean[0, 0])
        seen += bool(series.maximum[:, 0].max() - series.minimum[:, 0].min() > SPIKE / 2 * sigma)
        exact += bool(((series.first == step) & (series.last == step)).any())
    return {"spikes": len(expected), "in_the_record": seen, "at_their_step": exact}


def reading(directory: Path) -> dict[str, Any]:
    """Times of opening, reading, exporting and drawing."""
    times = {"open": milliseconds(lambda: bnmonitor.open(directory).only.verdict, 3)}
    run = bnmonitor.open(directory).only
    parts: list[tuple[float, float]] = []
    generator, end = np.random.default_rng(1), int(run.steps[-1])
    for layer, name in product(run.layers, ("batch_mean", "running_var")):
        first = int(generator.integers(end))
        parts += milliseconds(partial(run.series, layer, name, first, int(generator.integers(first, end))))
    times["any_span_of_any_layer"] = parts
    for width in sorted(set(run.channels.values())):
        layer = next(name for name, count in run.channels.items() if count == width)
        whole = partial(run.series, layer, "batch_mean")
        times[f"series_{width}"] = milliseconds(whole, 9)
        times[f"history_{width}"] = milliseconds(partial(run.history, layer, "batch_mean"), 9)
        cold = times[f"series_{width}_cold"] = list[tuple[float, float]]()
        for _ in range(9):
            forget(directory)
            cold += milliseconds(whole)
    layer = run.layers[-1]
    times |= {
        "plot_layer": milliseconds(partial(run.plot, layer, "batch_var"), 3),
        "plot_map": milliseconds(partial(run.plot_map, "health"), 3),
        "to_frame_layer": milliseconds(partial(run.to_frame, layer, "batch_var"), 3),
        "export_layers_csv": milliseconds(partial(export, directory, "--csv")),
        "export_channels_json": milliseconds(
            partial(export, directory, "--json", "--layer", layer, "--statistic", "batch_var")
        ),
    }
    found = {}
    for name, each in times.items():
        clock, processor = np.array(each).T
        found[f"{name}_ms"] = {
            "median": round(float(np.median(clock)), 1),
            "most": round(float(clock.max()), 1),
            "processor_median": round(float(np.median(processor)), 1),
        }
    return found


def export(directory: Path, *arguments: str) -> None:
    """Export a run by the command."""
    command = [sys.executable, "-m", "bnmonitor", "export", str(directory), *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def main(steps: int, budget: int, place: str | None = None, name: str = "resnet50") -> None:
    """Write, compare and read."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        directory, truth = Path(place or Path(temporary) / "run"), Path(temporary) / "truth"
        directory.mkdir(parents=True, exist_ok=True)
        model = MODELS[name]()
        result = {"write": write(directory, truth, model, steps, budget)}
        print(json.dumps(result, indent=1), flush=True)
        print(json.dumps({"read": reading(directory)}, indent=1), flush=True)
        print(json.dumps({**compare(directory, truth), **spikes(directory, model, steps)}, indent=1), flush=True)
        print(json.dumps({"peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "pid": os.getpid()}))


if __name__ == "__main__":
    given = sys.argv[1:]
    if given[:1] == ["read"]:
        print(json.dumps({"read": reading(Path(given[1]))}, indent=1))
        sys.exit()
    main(
        int(given[0]) if given else 450_000,
        int(given[1]) if len(given) > 1 else 2 * 10**9,
        *given[2:4],
    )
