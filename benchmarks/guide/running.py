"""Runs experiments in several processes, and writes their results as they come."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from multiprocessing import get_context
from typing import Any

import torch

from .experiment import Context, Experiment, Key, added, label, measured, path_of
from .experiments import EXPERIMENTS


def task(given: tuple[str, Key, int]) -> tuple[str, Key, int, dict[str, Any], float]:
    """Measure one setting with one seed, in a process of its own."""
    name, key, seed = given
    torch.set_num_threads(1)
    logging.getLogger("bnmonitor").setLevel(logging.CRITICAL)
    begin = time.perf_counter()
    experiment = next(each for each in EXPERIMENTS if each.name == name)
    return (*given, measured(experiment, key, Context(seed)), time.perf_counter() - begin)


def run(
    experiments: Sequence[Experiment], seeds: int, jobs: int, *, anew: bool = True
) -> Iterator[tuple[Experiment, int, float]]:
    """Run experiments seed by seed, and write the results of each experiment after each of its seeds.

    Args:
        experiments: Which.
        seeds: How many seeds each setting is measured with.
        jobs: Processes.
        anew: Whether to forget the results that are there; else only seeds that are missing are run.

    Yields:
        An experiment, how many seeds its results have now, and the seconds of its trainings so far.
    """
    for each in experiments:
        if anew:
            path_of(each).unlink(missing_ok=True)
    there = {each.name: _there(each)["seeds"] for each in experiments}
    tasks = [
        (each.name, key, seed)
        for seed in range(seeds)
        for each in experiments
        if seed not in there[each.name]
        for key in each.settings
    ]
    parts: dict[str, dict[tuple[Key, int], dict[str, Any]]] = {each.name: {} for each in experiments}
    spent = dict.fromkeys(parts, 0.0)
    with get_context("spawn").Pool(jobs) as pool:
        for name, key, seed, part, seconds in pool.imap_unordered(task, tasks):
            parts[name][key, seed] = part
            spent[name] += seconds
            experiment = next(each for each in experiments if each.name == name)
            if all((each, seed) in parts[name] for each in experiment.settings):
                kept = save(experiment, {each: parts[name][each, seed] for each in experiment.settings}, seed)
                yield experiment, kept, spent[name]


def save(experiment: Experiment, parts: dict[Key, dict[str, Any]], seed: int) -> int:
    """Write the results of a seed, each setting in a line of its own, and return how many seeds there are now."""
    there = _there(experiment)
    seeds = [*there["seeds"], seed]
    found = {label(key): added(there["settings"].get(label(key)), part) for key, part in parts.items()}
    head = {"experiment": experiment.name, "seeds": seeds, "torch": torch.__version__}
    lines = ",\n".join(f"{json.dumps(name, ensure_ascii=False)}: {json.dumps(part)}" for name, part in found.items())
    path = path_of(experiment)
    path.parent.mkdir(exist_ok=True)
    text = f'{json.dumps(head)[:-1]}, "settings": {{\n{lines}\n}}}}\n'
    path.write_text(text, encoding="utf-8", newline="\n")
    return len(seeds)


def _there(experiment: Experiment) -> dict[str, Any]:
    """The results that are there, if they have all settings of the experiment."""
    path = path_of(experiment)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    fits = {label(key) for key in experiment.settings} <= found.get("settings", {}).keys()
    return found if fits and found else {"seeds": [], "settings": {}}
