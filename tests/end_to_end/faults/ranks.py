"""Faults of several processes that train together, each on its own part of the data."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, distributed, multiprocessing
from torch.optim import Optimizer

from bnmonitor import Severity
from tests.end_to_end.faults.injection import Injection
from tests.end_to_end.faults.networks import NETWORKS, Network
from tests.end_to_end.faults.recipes import Recipe
from tests.end_to_end.faults.trial import Outcome, Trial

WORLD = 2
"""Processes."""


@dataclass(frozen=True, kw_only=True)
class Together(Injection):
    """Every process draws batches of its own; gradients are averaged, statistics are not."""

    only: ClassVar[tuple[str, ...]] = ("residual", "mlp")

    def before_start(self, trial: Trial) -> None:
        trial.monitor.share_ranks()

    def epoch(self, trial: Trial) -> None:
        trial.model.train()
        if trial.step == 0:
            trial.generator.manual_seed(100 * trial.seed + distributed.get_rank())

    def update(self, trial: Trial, optimizer: Optimizer) -> None:
        for group in optimizer.param_groups:
            for p in group["params"]:
                distributed.all_reduce(p.grad)
                p.grad /= WORLD
        optimizer.step()


@dataclass(frozen=True, kw_only=True)
class Unsynchronized(Together):
    """Every process normalizes a few samples, where all of them together have enough."""

    code: ClassVar[str] = "BN205"
    steps: int = 60
    batch_size: int = 8

    def recipe(self, recipe: Recipe) -> Recipe:
        return replace(recipe, batch=self.batch_size, lr=0.01)

    def took_place(self, trial: Trial) -> bool:
        return distributed.get_world_size() == WORLD and trial.loader.batch_size == self.batch_size


@dataclass(frozen=True, kw_only=True)
class Diverging(Together):
    """The processes see different kinds of data, and keep different statistics."""

    code: ClassVar[str] = "BN503"
    name: str = "diverging-ranks"
    steps: int = 160

    def build(self, trial: Trial) -> None:
        trial.blame(trial.root)

    def batch(self, trial: Trial, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return (1.6 * x + 1.0 if distributed.get_rank() else x), y

    def took_place(self, trial: Trial) -> bool:
        layer = trial.model.get_submodule(trial.root)
        means = [torch.empty_like(layer.running_mean) for _ in range(WORLD)]
        distributed.all_gather(means, layer.running_mean)
        return bool(((means[0] - means[1]).abs() / layer.running_var.sqrt()).median() > 0.1)


def _process(rank: int, folder: str, network: str, fault: Injection, seed: int) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=120),
    )
    try:
        outcome = Trial(NETWORKS[network], injection=fault, seed=seed).run()
        if rank == 0:
            (Path(folder) / "outcome").write_text(json.dumps(outcome.to_dict()), encoding="utf-8")
    finally:
        distributed.destroy_process_group()


def tried(network: Network, fault: Injection, seed: int = 0) -> Outcome:
    """Try a fault on a network, in as many processes as it takes."""
    if not isinstance(fault, Together):
        return Trial(network, injection=fault, seed=seed).run()
    with tempfile.TemporaryDirectory() as folder:
        try:
            multiprocessing.start_processes(
                _process, (folder, network.name, fault, seed), nprocs=WORLD, start_method="spawn"
            )
        except multiprocessing.ProcessExitedException:
            # How a process ends once its work is done is not what is tried here.
            if not (Path(folder) / "outcome").exists():
                raise
        return Outcome.from_dict(json.loads((Path(folder) / "outcome").read_text(encoding="utf-8")))


RANKS: tuple[Injection, ...] = (
    Unsynchronized(name="eight-a-process"),
    Unsynchronized(name="four-a-process", batch_size=4, severity=Severity.ERROR),
    Diverging(),
)
