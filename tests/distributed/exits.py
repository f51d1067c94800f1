"""Processes that end by the interpreter's own exit: ``python -m tests.distributed.exits DIRECTORY CASE...``.

What became of each process of a case goes to ``DIRECTORY/CASE/ends.json``: its exit code, negative for a signal; what
it says itself to ``DIRECTORY/CASE/RANK.json``. Once a process has ended there is a ``DIRECTORY/CASE/RANK.ended``.
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
from bnmonitor.distributed import exchange
from tests.processes import arrived

GUARD = 120.0
"""Seconds after which the second process gives up to wait for the end of the first one."""


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
        arrived(monitor)


def watch(net: nn.Module) -> Monitor:
    monitor = Monitor(net, sinks=[], on_alert="log", check_every_n_steps=1, log_every_n_steps=1)
    monitor.share_ranks()
    return monitor


def said(monitor: Monitor) -> dict[str, Any]:
    heard = monitor.ranks
    found = {"skipped": monitor.skipped.get("rank-divergence", ""), "steps": monitor.steps}
    return {**found, "heard": None if heard is None else [heard.step, len(heard.batch_mean)]}


def different(rank: int, _: Path) -> dict[str, Any]:
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


def outlived(directory: Path) -> dict[str, Any]:
    """Stay until the first process has ended; say whether it has."""
    until = time.monotonic() + GUARD
    while not (directory / "0.ended").exists() and time.monotonic() < until:
        time.sleep(0.01)
    return {"outlived": (directory / "0.ended").exists()}


def unanswered(rank: int, directory: Path) -> dict[str, Any]:
    """The first process leaves, having told something, and the second neither answers nor ends."""
    exchange.PATIENCE = 2 * GUARD  # a process that waited at all would wait for longer than the second one stays
    net = network(8)
    monitor = watch(net)
    if rank == 1:
        return outlived(directory)
    monitor.start()
    net(torch.randn(16, 6)).square().mean().backward()
    monitor.step()
    monitor.close(wait=False)
    return {}


def failing(rank: int, directory: Path) -> dict[str, Any]:
    """The same, where the first process ends by an exception."""
    exchange.PATIENCE = 2 * GUARD
    net = network(8)
    monitor = watch(net)
    if rank == 1:
        return outlived(directory)
    try:
        with monitor:
            net(torch.randn(16, 6)).square().mean().backward()
            monitor.step()
            raise ValueError("the training fails")
    except ValueError:
        return {}


CASES: dict[str, Callable[[int, Path], dict[str, Any]]] = {
    "different": different,
    "narrowed": lambda rank, _: resized(rank, 5, 5),
    "widened": lambda rank, _: resized(rank, 9, 9),
    "widened-in-one": lambda rank, _: resized(rank, 8, 9),
    "narrowed-in-one": lambda rank, _: resized(rank, 5, 8),
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
            ended, status = (0, 0) if ends[rank] is not None else os.waitpid(pid, os.WNOHANG)
            if ended:
                ends[rank] = os.waitstatus_to_exitcode(status)
                (directory / f"{rank}.ended").touch()
        time.sleep(0.01)
    (directory / "ends.json").write_text(json.dumps(ends))


def child(directory: Path, name: str, rank: int) -> None:
    code = 0
    try:
        store = dist.FileStore(str(directory / "store"), 2)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
        torch.manual_seed(rank)
        (directory / f"{rank}.json").write_text(json.dumps(CASES[name](rank, directory)))
        dist.destroy_process_group()
    except Exception:
        code = 1
        (directory / f"{rank}.json").write_text(json.dumps({"error": traceback.format_exc()}))
    sys.exit(code)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case in sys.argv[2:]:
        run(Path(sys.argv[1]) / case, case)
