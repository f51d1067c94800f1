"""Make trainings of two and three processes fail at random, and check whether the monitor keeps a process waiting.

The failures: uneven numbers of batches with and without ``ddp.join()``, and a process that raises, is killed, is slow
by seconds, or has no monitor. A process is stuck if it still runs after the time-out of the training's own collectives
plus the waits of the monitor. If a process is stuck, or ends in an unexpected way, the benchmark repeats the run
without a monitor: only a failure that does not occur there counts against the monitor. Processes end by the
interpreter's own exit, so that the benchmark also sees a process that dies there.

Run ``python benchmarks/deadlocks.py [RUNS] [SEED]``; it prints a line per run and JSON at the end, and exits with 1
unless none was stuck. It needs ``os.fork``.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch._dynamo  # DistributedDataParallel would import it again in every process
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bnmonitor import Monitor
from bnmonitor.distributed import exchange, group

STEPS = 16
TRAINING_TIMEOUT = 40.0
"""Seconds after which a collective of the training itself fails."""

group.GATHERING = 3.0
LIMIT = TRAINING_TIMEOUT + group.GATHERING + exchange.PATIENCE + 20.0
"""Seconds after which a process counts as stuck: the sum of its permitted waits and a slow start."""

KINDS = ("even", "uneven", "join", "raise", "kill", "slow", "unwatched")


@dataclass(frozen=True)
class Scenario:
    """The events of one run."""

    kind: str
    world: int
    broadcast: bool
    odd: int
    at: int
    seconds: float

    @classmethod
    def drawn(cls, draw: random.Random, kind: str) -> Scenario:
        """Draw all but the kind."""
        world = draw.choice((2, 3))
        at = draw.randrange(1, STEPS - 1)
        return cls(kind, world, draw.random() < 0.5, draw.randrange(world), at, draw.uniform(0.5, 3.0))

    def fates(self) -> list[str]:
        """How the processes should end."""
        own = {"raise": "ValueError", "kill": f"signal {int(signal.SIGKILL)}"}.get(self.kind, "finished")
        others = "RuntimeError" if self.kind in ("uneven", "raise", "kill") else "finished"
        return [own if rank == self.odd else others for rank in range(self.world)]


def train(rank: int, folder: str, scenario: Scenario, watched: bool) -> None:
    """Train as one process of a scenario."""
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=scenario.world,
        timeout=timedelta(seconds=TRAINING_TIMEOUT),
    )
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
    model = DistributedDataParallel(net, broadcast_buffers=scenario.broadcast)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    odd = rank == scenario.odd
    monitor = None
    if watched and not (odd and scenario.kind == "unwatched"):
        where = Path(folder) / "log" if rank == 0 else None
        monitor = Monitor(
            net,
            optimizer=optimizer,
            log_dir=where,
            sinks=None if where else [],
            on_alert=lambda alert: None,
            check_every_n_steps=2,
            log_every_n_steps=2,
        )
        monitor.share_ranks(model)
    steps = scenario.at if odd and scenario.kind in ("uneven", "join") else STEPS
    torch.manual_seed(rank)
    with monitor or nullcontext(), model.join() if scenario.kind == "join" else nullcontext():
        for step in range(steps):
            if odd and step == scenario.at:
                if scenario.kind == "raise":
                    raise ValueError("a process of the training fails")
                if scenario.kind == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                if scenario.kind == "slow":
                    time.sleep(scenario.seconds)
            model(torch.randn(16, 8)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            if monitor is not None:
                monitor.step()
    dist.destroy_process_group()


def run(scenario: Scenario, watched: bool) -> tuple[list[str], float]:
    """Make one run; return how each process ended, and the seconds until the last one had."""
    start, fates = time.monotonic(), ["stuck"] * scenario.world
    folder = tempfile.mkdtemp()
    pids = [_fork(rank, folder, scenario, watched) for rank in range(scenario.world)]
    while "stuck" in fates and time.monotonic() - start < LIMIT:
        for rank in (r for r, fate in enumerate(fates) if fate == "stuck"):
            ended, status = os.waitpid(pids[rank], os.WNOHANG)
            if ended:
                report = Path(folder) / f"{rank}.end"
                fates[rank] = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else report.read_text()
        time.sleep(0.02)
    took = time.monotonic() - start
    for rank, pid in enumerate(pids):
        if fates[rank] == "stuck":
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    shutil.rmtree(folder)
    return fates, took


def _fork(rank: int, folder: str, scenario: Scenario, watched: bool) -> int:
    pid = os.fork()
    if pid:
        return pid
    fate = "finished"
    try:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        train(rank, folder, scenario, watched)
    except BaseException as error:
        fate = type(error).__name__
    (Path(folder) / f"{rank}.end").write_text(fate)
    sys.exit(0)


def main(runs: int, seed: int) -> int:
    """Make the runs and print their results."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    draw = random.Random(seed)
    found = {
        "runs": runs,
        "processes": 0,
        "stuck": 0,
        "ended otherwise": 0,
        "in the training alone": 0,
        "longest, s": 0.0,
    }
    for number in range(runs):
        scenario = Scenario.drawn(draw, KINDS[number % len(KINDS)])
        fates, took = run(scenario, watched=True)
        bare = scenario.fates()
        if fates != bare:
            bare, _ = run(scenario, watched=False)
            found["in the training alone"] += bare != scenario.fates()
        found["processes"] += scenario.world
        found["stuck"] += fates.count("stuck") if "stuck" not in bare else 0
        found["ended otherwise"] += fates != bare
        found["longest, s"] = max(found["longest, s"], round(took, 1))
        print(number, json.dumps(asdict(scenario)), fates, bare, f"{took:.1f} s", flush=True)
    print(json.dumps(found))
    return int(found["stuck"] > 0)


if __name__ == "__main__":
    numbers = [int(a) for a in sys.argv[1:3]]
    sys.exit(main(*[*numbers, *(60, 0)[len(numbers) :]]))
