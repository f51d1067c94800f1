"""Runs experiments in several processes, and writes their results as they come."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from multiprocessing import get_context
from typing import Any

import torch

from .experiment import Context, Experiment, Key, joined, label, measured, path_of
from .experiments import EXPERIMENTS


def task(given: tuple[str, Key, int]) -> tuple[str, Key, int, dict[str, Any], float]:
    """Measure one setting with one seed, in a process of its own."""
    name, key, seed = given
    torch.set_num_threads(1)
    begin = time.perf_counter()
    experiment = next(each for each in EXPERIMENTS if each.name == name)
    return (*given, measured(experiment, key, Context(seed)), time.perf_counter() - begin)


def run(experiments: Sequence[Experiment], seeds: int, jobs: int) -> Iterator[tuple[Experiment, int, float]]:
    """Run experiments seed by seed, and write the results of each experiment after each of its seeds.

    Args:
        experiments: Which.
        seeds: How many seeds each setting is measured with.
        jobs: Processes.

    Yields:
        An experiment, how many seeds its results have now, and the seconds of its trainings so far.
    """
    tasks = [(each.name, key, seed) for seed in range(seeds) for each in experiments for key in each.settings]
    parts: dict[str, dict[tuple[Key, int], dict[str, Any]]] = {each.name: {} for each in experiments}
    spent, written = dict.fromkeys(parts, 0.0), dict.fromkeys(parts, 0)
    with get_context("spawn").Pool(jobs) as pool:
        for name, key, seed, part, seconds in pool.imap_unordered(task, tasks):
            parts[name][key, seed] = part
            spent[name] += seconds
            experiment = next(each for each in experiments if each.name == name)
            done = written[name]
            while done < seeds and all((each, done) in parts[name] for each in experiment.settings):
                done += 1
            if done > written[name]:
                written[name] = done
                save(experiment, parts[name], done)
                yield experiment, done, spent[name]


def save(experiment: Experiment, parts: dict[tuple[Key, int], dict[str, Any]], seeds: int) -> None:
    """Write the results of the first seeds, each setting in a line of its own."""
    found = {label(key): joined([parts[key, seed] for seed in range(seeds)]) for key in experiment.settings}
    head = {"experiment": experiment.name, "seeds": list(range(seeds)), "torch": torch.__version__}
    lines = ",\n".join(f"{json.dumps(name, ensure_ascii=False)}: {json.dumps(part)}" for name, part in found.items())
    path = path_of(experiment)
    path.parent.mkdir(exist_ok=True)
    text = f'{json.dumps(head)[:-1]}, "settings": {{\n{lines}\n}}}}\n'
    path.write_text(text, encoding="utf-8", newline="\n")
