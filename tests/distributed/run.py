"""Trainings over several processes: ``python -m tests.distributed.run DIRECTORY CASE...``.

One process imports everything and forks the others for each case. Every process writes what it saw to
``DIRECTORY/CASE/RANK.pt``.
"""

from __future__ import annotations

import hashlib
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.utils.data import DataLoader, TensorDataset

from bnmonitor import BatchNormMonitor, Monitor
from bnmonitor.distributed import RankExchange, group
from bnmonitor.testing import make_window
from tests.processes import GUARD, arrived

STEPS, LOG_EVERY = 24, 4


class Net(pl.LightningModule):
    """A small network that keeps what each normalization layer was given in the last training step, in float64."""

    def __init__(
        self,
        batch: int = 16,
        apart: float = 0.0,
        idle: bool = False,
        poison: int | None = None,
        odd: int | None = None,
    ) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(6, 8),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.Linear(8, 5),
            nn.BatchNorm1d(5),
            nn.ReLU(),
            nn.Linear(5, 2),
        )
        self.idle = nn.Linear(2, 2) if idle else nn.Identity()
        self.batch, self.apart, self.poison, self.odd = batch, apart, poison, odd
        self.inputs: dict[str, Tensor] = {}
        self.at: dict[int, dict[str, Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        for name, layer in self.net.named_children():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                self.inputs[f"net.{name}"] = x.detach().double().clone()
            x = layer(x)
        return x

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x = batch[0] * torch.nan if batch_idx == self.poison else batch[0]
        loss = nn.functional.cross_entropy(self(x), batch[1])
        self.at[batch_idx] = dict(self.inputs)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

    def train_dataloader(self) -> DataLoader[Any]:
        rank = self.trainer.global_rank
        make = torch.Generator().manual_seed(rank)
        by = rank if self.odd is None else rank == self.odd
        x = torch.randn(STEPS * self.batch, 6, generator=make) + self.apart * by
        return DataLoader(TensorDataset(x, (x[:, 0] > x[:, 1]).long()), batch_size=self.batch)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(torch.randn(8, 6), torch.zeros(8).long()), batch_size=4)


class Keep(pl.Callback):
    """Writes what this process saw."""

    def __init__(self, directory: Path, monitor: BatchNormMonitor | None) -> None:
        self.directory, self.watch = directory, monitor
        self.ranks: dict[int, Any] = {}

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.watch is not None:
            arrived(self.watch.monitor)
        heard = self.watch.monitor.ranks if self.watch is not None else None
        if heard is not None:
            self.ranks[heard.step] = vars(heard)

    def on_train_end(self, trainer: Any, module: Any) -> None:
        digest = hashlib.sha256()
        for tensor in module.state_dict().values():
            digest.update(tensor.detach().cpu().numpy().tobytes())
        seen: dict[str, Any] = {
            "digest": digest.hexdigest(),
            "inputs": module.at,
            "ranks": self.ranks,
            "steps": trainer.global_step,
            "kinds": [type(m).__name__ for m in module.net],
        }
        if self.watch is not None:
            monitor = self.watch.monitor
            seen["layers"] = monitor.layers.kinds
            seen["batch_var"] = {n: monitor.history(n, "batch_var") for n in monitor.layers.names}
            seen["alerts"] = [a.to_dict() for a in monitor.alerts]
            seen["incidents"] = [i.to_dict() for i in monitor.incidents]
            seen["recorded"] = monitor.steps
            seen["skipped"] = monitor.skipped
            seen["batch_mean"] = {n: monitor.history(n, "batch_mean") for n in monitor.layers.names}
            seen["files"] = sorted(str(p) for p in Path(trainer.default_root_dir).rglob("events*"))
        torch.save(seen, self.directory / f"{trainer.global_rank}.pt")


def case(
    directory: Path,
    *,
    devices: int = 2,
    watched: bool = True,
    net: dict[str, Any] | None = None,
    strategy: dict[str, Any] | None = None,
    monitor: dict[str, Any] | None = None,
    others: tuple[Any, ...] = (),
    goes_on: Path | None = None,
    **trainer: Any,
) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    callback = None
    if watched:
        callback = BatchNormMonitor(**{"check_every_n_steps": 4, "window": 64, **(monitor or {})})
    pl.seed_everything(0, verbose=False)
    pl.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=DDPStrategy(start_method="fork", process_group_backend="gloo", **(strategy or {})),
        log_every_n_steps=LOG_EVERY,
        default_root_dir=directory,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[*others, *([callback] if callback else []), Keep(directory, callback)],
        **{"max_epochs": 1, "num_sanity_val_steps": 0, "limit_val_batches": 0, **trainer},
    ).fit(Net(**(net or {})), ckpt_path=goes_on)


def synchronized(layer: nn.SyncBatchNorm, x: Tensor) -> Tensor:
    """What a forward of SyncBatchNorm does on a GPU, and refuses on a CPU: statistics of all processes together."""
    if not layer.training:
        return nn.functional.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias)
    world = dist.get_world_size()
    mean = all_reduce(x.mean(0)) / world
    var = all_reduce((x - mean).square().mean(0)) / world
    with torch.no_grad():
        count = len(x) * world
        layer.num_batches_tracked.add_(1)
        layer.running_mean.lerp_(mean, layer.momentum)
        layer.running_var.lerp_(var * count / (count - 1), layer.momentum)
    return (x - mean) / (var + layer.eps).sqrt() * layer.weight + layer.bias


def synced(directory: Path) -> None:
    """The Trainer converts to SyncBatchNorm, which is lent a forward for the CPU."""
    refuse = "_passing_sync_batchnorm_handle"
    with (
        patch.object(nn.SyncBatchNorm, "forward", synchronized),
        patch.object(nn.parallel.DistributedDataParallel, refuse, lambda self, module: None),
    ):
        case(directory, net={"batch": 6}, sync_batchnorm=True)


def resumed(directory: Path) -> None:
    """Two epochs in two fits, the second from the checkpoint of the first."""
    save = ModelCheckpoint(directory / "saved", filename="end")
    epochs = {"strategy": OWN, "limit_train_batches": 12}
    case(directory, max_epochs=1, others=(save,), enable_checkpointing=True, **epochs)
    case(directory, max_epochs=2, goes_on=directory / "saved" / "end.ckpt", **epochs)


def two(play: Callable[[int, Path, dist.Store], None], directory: Path) -> None:
    """Let two processes play a part each, given its number."""
    directory.mkdir(parents=True)
    torch.multiprocessing.start_processes(_play, args=(play, directory), nprocs=2, start_method="fork")


def _play(rank: int, play: Callable[[int, Path, dist.Store], None], directory: Path) -> None:
    store = dist.FileStore(str(directory / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    play(rank, directory, store)
    dist.barrier()
    dist.destroy_process_group()


def joined(rank: int, directory: Path, store: dist.Store) -> None:
    """Uneven numbers of batches: the buffers broadcast are no more those of the first process."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    model = nn.parallel.DistributedDataParallel(net)
    monitor = Monitor(net, sinks=[], on_alert="log", log_every_n_steps=2, check_every_n_steps=2)
    monitor.share_ranks(model)
    with monitor, model.join():
        for _ in range(8 - 2 * rank):
            model(torch.randn(16, 6)).square().mean().backward()
            monitor.step()
    torch.save({"history": monitor.history("1", "batch_mean"), "ranks": monitor.ranks}, directory / f"{rank}.pt")


class Clock:
    """A clock that only sleep advances."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def absent(rank: int, directory: Path, store: dist.Store) -> None:
    """The second process has no monitor: the first does not wait for it for ever, and goes on."""
    if rank == 0:
        net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8))
        monitor = Monitor(net, sinks=[], on_alert="log", log_every_n_steps=1)
        with patch.object(group, "time", Clock()) as clock:
            monitor.share_ranks()
        with monitor:
            for _ in range(4):
                net(torch.randn(16, 6)).square().mean().backward()
                monitor.step()
            skipped, steps = monitor.skipped, monitor.steps
        torch.save({"skipped": skipped, "steps": steps, "waited": clock.now}, directory / "0.pt")
    dist.barrier()
    if rank == 1:
        late = RankExchange(make_window().layers)
        torch.save({"failure": late.failure}, directory / "1.pt")
        late.close()


def silent(rank: int, directory: Path, store: dist.Store) -> None:
    """The second process never answers, and leaves only when the first has gone on without it."""
    window = make_window(channels=(3, 2), steps=4)
    exchange = RankExchange(window.layers)
    if rank == 0:
        results = []
        for _ in range(40):
            exchange.stepped()
            exchange.offer(window)
            results.append(exchange.result())
        store.add("gone on", 1)
        torch.save({"results": results, "failure": exchange.failure}, directory / "0.pt")
        return
    until = time.monotonic() + GUARD / 2
    while store.add("gone on", 0) == 0 and time.monotonic() < until:
        time.sleep(0.01)
    torch.save({"first_went_on": store.add("gone on", 0) == 1}, directory / "1.pt")


def overdue(rank: int, directory: Path, store: dist.Store) -> None:
    """The second process does not answer in the time that an exchange has."""
    window = make_window(channels=(3, 2), steps=4)
    exchange = RankExchange(window.layers, timeout=timedelta(seconds=1))
    if rank == 0:
        exchange.offer(window)
        until = time.monotonic() + GUARD / 2
        while not exchange.failure and time.monotonic() < until:
            assert exchange.result() is None
            time.sleep(0.01)
        store.add("failed", 1)
        torch.save({"failure": exchange.failure}, directory / "0.pt")
    while store.add("failed", 0) == 0:
        time.sleep(0.01)


def late(rank: int, directory: Path, store: dist.Store) -> None:
    """The second process tells the first two steps only when the first has gone on to the second."""
    window = make_window(channels=(3, 2), steps=4)
    exchange = RankExchange(window.layers)
    heard: list[int] = []

    def tell(step: int) -> None:
        exchange.offer(replace(window, steps=tuple(range(step - 3, step + 1))))

    def hear(step: int) -> None:
        until = time.monotonic() + GUARD / 2
        while step not in heard and not exchange.failure and time.monotonic() < until:
            found = exchange.result()
            heard.extend([] if found is None else [found.step])
            time.sleep(0.01)

    if rank == 0:
        tell(10), tell(20)
    store.add("gone on", 1 - rank)
    while store.add("gone on", 0) == 0:
        time.sleep(0.01)
    if rank == 1:
        tell(10), hear(10), tell(20)
    hear(20), tell(30), hear(30)
    torch.save({"heard": heard, "failure": exchange.failure}, directory / f"{rank}.pt")
    exchange.close()


BROADCAST = {"broadcast_buffers": True}
OWN = {"broadcast_buffers": False}

CASES: dict[str, Callable[[Path], None]] = {
    "broadcast": lambda d: case(d, strategy=BROADCAST),
    "broadcast-unwatched": lambda d: case(d, strategy=BROADCAST, watched=False),
    "own": lambda d: case(d, strategy=OWN),
    "own-unwatched": lambda d: case(d, strategy=OWN, watched=False),
    "three": lambda d: case(d, strategy=BROADCAST, devices=3),
    "unused": lambda d: case(d, strategy={"find_unused_parameters": True}, net={"idle": True}),
    "static": lambda d: case(d, strategy={"static_graph": True}),
    "validated": lambda d: case(d, strategy=BROADCAST, limit_val_batches=2, val_check_interval=6),
    "apart": lambda d: case(d, strategy=OWN, net={"apart": 3.0}),
    "apart-broadcast": lambda d: case(d, strategy=BROADCAST, net={"apart": 30.0}),
    "odd": lambda d: case(d, devices=4, strategy=OWN, net={"apart": 3.0, "odd": 2}),
    "odd-broadcast": lambda d: case(d, devices=4, strategy=BROADCAST, net={"apart": 30.0, "odd": 3}),
    "stop": lambda d: case(d, net={"poison": 9}, monitor={"on_alert": "stop"}),
    "answers": lambda d: case(
        d,
        net={"poison": 9},
        monitor={"on_alert": ["checkpoint", "log"], "ignore": ["BN303"]},
        others=(
            EarlyStopping("bnmonitor/errors", divergence_threshold=0.5, patience=99),
            ModelCheckpoint(d / "best", monitor="bnmonitor/health", mode="max"),
        ),
        limit_val_batches=2,
        val_check_interval=6,
    ),
    "two-epochs": lambda d: case(d, strategy=OWN, max_epochs=2, limit_train_batches=12),
    "resumed": resumed,
    "synced": synced,
    "joined": partial(two, joined),
    "absent": partial(two, absent),
    "silent": partial(two, silent),
    "overdue": partial(two, overdue),
    "late": partial(two, late),
    "raise": lambda d: case(d, net={"poison": 9}, monitor={"on_alert": "raise"}),
}


def main(directory: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in names:
        try:
            CASES[name](directory / name)
        except Exception as error:
            (directory / name).mkdir(parents=True, exist_ok=True)
            (directory / name / "error.txt").write_text(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
