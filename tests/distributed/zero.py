"""Trainings with DeepSpeed on the CPU: ``python -m tests.distributed.zero DIRECTORY CASE...``.

Every process writes what it saw to ``DIRECTORY/CASE/RANK.pt``, as in :mod:`tests.distributed.sharded`.
"""

from __future__ import annotations

import hashlib
import os
import sys
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.strategies import DeepSpeedStrategy, Strategy
from torch import nn
from torch.multiprocessing.spawn import start_processes

from bnmonitor import BatchNormMonitor, Monitor
from tests.distributed.sharded import LOG_EVERY, STEPS, Module, _port, _seen, join, keep_inputs, network

import_module("deepspeed.comm.torch").build_shm_op = lambda: None  # would be compiled, and is faster only
SETTINGS = {"check_every_n_steps": 4, "select": ("all",), "on_alert": "log"}


def config(stage: int, **zero: Any) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 16,
        "zero_optimization": {"stage": stage, **zero},
        "zero_allow_untested_optimizer": True,
    }


def digest(model: nn.Module) -> str:
    """Of all parameters, gathered if they are split, and buffers."""
    found = hashlib.sha256()
    whole = [p for p in model.parameters() if hasattr(p, "ds_id")]
    with deepspeed.zero.GatheredParameters(whole, enabled=bool(whole)):
        for name, tensor in sorted(model.state_dict().items()):
            found.update(name.encode() + tensor.detach().cpu().numpy().tobytes())
    return found.hexdigest()


def plain(
    directory: Path, settings: dict[str, Any], *, world: int = 2, watched: bool = True, inner: bool = False
) -> None:
    """A loop of one's own around DeepSpeed's engine; ``inner``: the monitor is given the optimizer that it wraps."""
    directory.mkdir(parents=True, exist_ok=True)
    start_processes(_plain, args=(directory, settings, world, watched, inner), nprocs=world, start_method="fork")


def _plain(rank: int, directory: Path, settings: dict[str, Any], world: int, watched: bool, inner: bool) -> None:
    join(rank, directory, world)
    deepspeed.init_distributed("gloo")
    net = network()
    kept = keep_inputs(net)
    adam = torch.optim.AdamW(net.parameters(), lr=0.01)
    engine, optimizer, *_ = deepspeed.initialize(model=net, optimizer=adam, config=settings)
    monitor = None
    if watched:
        where = directory / "log" if rank == 0 else None
        monitor = Monitor(
            net,
            optimizer=adam if inner else optimizer,
            log_dir=where,
            sinks=None if where else [],
            log_every_n_steps=LOG_EVERY,
            probe=True,
            **SETTINGS,
        )
        monitor.share_ranks(engine)
        monitor.start()
    make = torch.Generator().manual_seed(rank)
    seen: dict[str, Any] = {"inputs": {}}
    for step in range(STEPS):
        x = torch.randn(16, 3, 5, 5, generator=make)
        loss = nn.functional.cross_entropy(engine(x), (x[:, 0, 0, 0] > 0).long())
        engine.backward(loss)
        engine.step()
        seen["inputs"][step] = dict(kept)
        if monitor is not None:
            monitor.step()
        if step % 10 == 9:
            if monitor is not None:
                monitor.begin_evaluation()
            engine.eval()
            with torch.no_grad():
                engine(torch.zeros(4, 3, 5, 5))
            if monitor is not None:
                monitor.end_evaluation()
            engine.train()
    if monitor is not None:
        seen |= _seen(monitor)
        monitor.close()
    torch.save({**seen, "digest": digest(net)}, directory / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


class OnCpu(DeepSpeedStrategy):
    """Lightning refuses its own class without a GPU, and DeepSpeed wants the device to have a number."""

    root_device = torch.device("cpu", 0)

    def setup_environment(self) -> None:
        Strategy.setup_environment(self)


class Keep(pl.Callback):
    """Writes what this process saw."""

    def __init__(self, directory: Path, watch: BatchNormMonitor | None) -> None:
        self.directory, self.watch = directory, watch

    def on_train_end(self, trainer: Any, module: Module) -> None:
        seen: dict[str, Any] = {"inputs": module.at, "digest": digest(module)}
        if self.watch is not None:
            seen |= _seen(self.watch.monitor)
        torch.save(seen, self.directory / f"{trainer.global_rank}.pt")


def lightning(directory: Path, settings: dict[str, Any], *, world: int = 2, watched: bool = True) -> None:
    """A fit, and another one that goes on from its checkpoint."""
    directory.mkdir(parents=True, exist_ok=True)
    start_processes(_lightning, args=(directory, settings, world, watched), nprocs=world, start_method="fork")


def _lightning(rank: int, directory: Path, settings: dict[str, Any], world: int, watched: bool) -> None:
    join(rank, directory, world)
    for epochs, checkpoint in ((1, None), (2, str(directory / "half.ckpt"))):
        watch = BatchNormMonitor(**SETTINGS) if watched else None
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=world,
            strategy=OnCpu(config=dict(settings), process_group_backend="gloo"),
            max_epochs=epochs,
            log_every_n_steps=LOG_EVERY,
            default_root_dir=directory,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            use_distributed_sampler=False,
            callbacks=[*([watch] if watch else []), Keep(directory, watch)],
        )
        trainer.fit(Module(False), ckpt_path=checkpoint)
        if checkpoint is None:
            trainer.save_checkpoint(directory / "half.ckpt")


CONFIGS: dict[str, dict[str, Any]] = {
    "zero1": config(1),
    "zero2": config(2),
    "zero3": config(3),
    "zero3-small": config(3, stage3_param_persistence_threshold=0),
}
"""By default ZeRO-3 splits no parameter as small as these, but manages them all."""
WAYS: dict[str, Callable[..., None]] = {
    **{f"plain-{name}": partial(plain, settings=each) for name, each in CONFIGS.items()},
    **{f"lightning-{name}": partial(lightning, settings=each) for name, each in CONFIGS.items()},
    "alone-zero1": partial(plain, settings=CONFIGS["zero1"], world=1),
    "alone-zero3": partial(plain, settings=CONFIGS["zero3-small"], world=1),
    "inner": partial(plain, settings=CONFIGS["zero2"], inner=True),
}
CASES: dict[str, Callable[[Path], None]] = {
    **WAYS,
    **{f"{name}-unwatched": partial(way, watched=False) for name, way in WAYS.items()},
}


def main(directory: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in names:
        try:
            _port(directory / name)
            CASES[name](directory / name)
        except Exception as error:
            (directory / name / "error.txt").write_text(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
