"""Processes that end by the interpreter's own exit: ``python -m tests.distributed.exits DIRECTORY CASE...``.

What became of each process of a case goes to ``DIRECTORY/CASE/ends.json``: its exit code, negative for a signal, and
the seconds from its last line to its end; what it says itself to ``DIRECTORY/CASE/RANK.json``.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from bnmonitor import Monitor

LONGER = 6.0
"""Seconds for which the second process stays, where the first one does not wait for it."""


def network(*channels: int) -> nn.Sequential:
    parts = [part for c in channels for part in (nn.LazyLinear(c), nn.BatchNorm1d(c))]
    net = nn.Sequential(*parts)
    with torch.no_grad():
        net.eval()(torch.zeros(2, 6))
    return net.train()


def steps(monitor: Monitor, net: nn.Module, count: int) -> None:
    """Processes in step with each other, each of whose exchanges arrives before the coming one."""
    for _ in range(count):
        net(torch.randn(16, 6)).square().mean().backward()
        monitor.step()
        dist.barrier()
        time.sleep(0.05)


def watch(net: nn.Module) -> Monitor:
    monitor = Monitor(net, sinks=[], on_alert="log", check_every_n_steps=1, log_every_n_steps=1)
    monitor.share_ranks()
    return monitor


def said(monitor: Monitor) -> dict[str, Any]:
    heard = monitor.ranks
    found = {"skipped": monitor.skipped.get("rank-divergence", ""), "steps": monitor.steps}
    return {**found, "heard": None if heard is None else [heard.step, len(heard.batch_mean)]}


def different(rank: int) -> dict[str, Any]:
    """The processes train networks that are not the same."""
    net = network(*((8, 5), (8,))[rank])
    with watch(net) as monitor:
        steps(monitor, net, 4)
        return said(monitor)


def resized(rank: int, *channels: int) -> dict[str, Any]:
    """The layers of a process change when all have begun to tell each other of them."""
    net = network(8)
    with watch(net) as monitor:
        steps(monitor, net, 3)
        net[0], net[1] = nn.Linear(6, channels[rank]), nn.BatchNorm1d(channels[rank])
        steps(monitor, net, 5)
        return said(monitor)


def unanswered(rank: int) -> dict[str, Any]:
    """The first process leaves, having told something, and the second neither answers nor ends."""
    net = network(8)
    start = time.monotonic()
    monitor = watch(net)
    if rank == 0:
        monitor.start()
        net(torch.randn(16, 6)).square().mean().backward()
        monitor.step()
        start = time.monotonic()
        monitor.close(wait=False)
    else:
        time.sleep(LONGER)
    return {"waited": time.monotonic() - start}


def failing(rank: int) -> dict[str, Any]:
    """The same, where the first process ends by an exception."""
    net = network(8)
    monitor = watch(net)
    if rank == 1:
        time.sleep(LONGER)
        return {}
    try:
        with monitor:
            net(torch.randn(16, 6)).square().mean().backward()
            monitor.step()
            start = time.monotonic()
            raise ValueError("the training fails")
    except ValueError:
        return {"waited": time.monotonic() - start}


CASES: dict[str, Callable[[int], dict[str, Any]]] = {
    "different": different,
    "narrowed": lambda rank: resized(rank, 5, 5),
    "widened": lambda rank: resized(rank, 9, 9),
    "widened-in-one": lambda rank: resized(rank, 8, 9),
    "narrowed-in-one": lambda rank: resized(rank, 5, 8),
    "unanswered": unanswered,
    "failing": failing,
}


def run(directory: Path, name: str) -> None:
    directory.mkdir(parents=True)
    pids: list[int] = []
    for rank in range(2):
        pid = os.fork()
        if not pid:
            child(directory, name, rank)
        pids.append(pid)
    ends: list[Any] = [None, None]
    while None in ends:
        for rank, pid in enumerate(pids):
            ended, status = (0, 0) if ends[rank] else os.waitpid(pid, os.WNOHANG)
            if ended:
                last = directory / f"{rank}.last"
                took = time.time() - float(last.read_text()) if last.exists() else None
                ends[rank] = [os.waitstatus_to_exitcode(status), took]
        time.sleep(0.01)
    (directory / "ends.json").write_text(json.dumps(ends))


def child(directory: Path, name: str, rank: int) -> None:
    code = 0
    try:
        store = dist.FileStore(str(directory / "store"), 2)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
        torch.manual_seed(rank)
        (directory / f"{rank}.json").write_text(json.dumps(CASES[name](rank)))
        dist.destroy_process_group()
    except Exception:
        code = 1
        (directory / f"{rank}.json").write_text(json.dumps({"error": traceback.format_exc()}))
    (directory / f"{rank}.last").write_text(str(time.time()))
    sys.exit(code)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case in sys.argv[2:]:
        run(Path(sys.argv[1]) / case, case)
