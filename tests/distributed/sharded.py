"""Trainings whose parameters are split over processes: ``python -m tests.distributed.sharded DIRECTORY CASE...``.

Every process writes what it saw to ``DIRECTORY/CASE/RANK.pt``, as in :mod:`tests.distributed.run`.
"""

from __future__ import annotations

import hashlib
import os
import sys
import warnings
from collections.abc import Callable
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.multiprocessing.spawn import start_processes
from torch.utils.data import DataLoader, TensorDataset

from bnmonitor import BatchNormMonitor, Monitor
from bnmonitor.layers import local_part, norms
from tests.processes import arrived

STEPS, LOG_EVERY = 24, 4


class Block(nn.Sequential):
    """A convolution, which has a bias that the normalization removes, and what follows it."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU())


def network(last: int = 4) -> nn.Sequential:
    """Channels that two and three processes cannot share evenly; with a ``last`` of 3, four have one without any."""
    torch.manual_seed(0)
    return nn.Sequential(Block(3, 7), Block(7, last), nn.Flatten(), nn.Linear(last * 25, 2))


def keep_inputs(model: nn.Module) -> dict[str, Tensor]:
    """What each normalization layer is given, in float64; filled in by each forward."""
    kept: dict[str, Tensor] = {}
    for name, layer in zip(("0.1", "1.1"), [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)], strict=True):
        layer.register_forward_pre_hook(
            lambda _, args, name=name: kept.update({name: args[0].detach().double().transpose(0, 1).flatten(1).T})
        )
    return kept


def with_fsdp2(model: nn.Module, mesh: Any, *, each: tuple[type[nn.Module], ...] = ()) -> nn.Module:
    for module in [m for m in model.modules() if isinstance(m, each)]:
        fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def with_fsdp1(model: nn.Module, mesh: Any, *, each: tuple[type[nn.Module], ...] = (), orig: bool) -> nn.Module:
    policy = ModuleWrapPolicy(each) if each else None
    device = torch.device("cpu")
    return FullyShardedDataParallel(model, auto_wrap_policy=policy, use_orig_params=orig, device_id=device)


def with_others_whole(model: nn.Module, mesh: Any) -> nn.Module:
    """The parameters of the first normalization are left out: each process has them whole."""
    fully_shard(model, mesh=mesh, ignored_params=set(next(iter(norms([model]))).parameters()))
    return model


def whole(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Gamma and beta of each normalization, gathered by PyTorch: every process has to ask."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    return {name: (_full(m.weight), _full(m.bias)) for name, m in layers.items()}


def _full(parameter: Tensor) -> Tensor:
    return (parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter).detach().clone()


def digest(model: nn.Module) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)).items()):
        found.update(name.encode() + tensor.detach().cpu().numpy().tobytes())
    return found.hexdigest()


def _seen(monitor: Monitor) -> dict[str, Any]:
    names = ("batch_mean", "batch_var", "running_mean", "running_var", "gamma", "beta", "gamma_grad")
    return {
        "names": monitor.layers.names,
        "steps": monitor.steps,
        "failed": monitor.failure,
        "skipped": monitor.skipped,
        "alerts": [a.to_dict() for a in monitor.alerts],
        "incidents": [i.to_dict() for i in monitor.incidents],
        "structure": str(monitor.structure()),
        "history": {layer: {n: monitor.history(layer, n) for n in names} for layer in monitor.layers.names},
        "ranks": None if monitor.ranks is None else vars(monitor.ranks),
        "summary": str(monitor.summary()),
        "table": monitor.summary().table,
    }


def plain(
    directory: Path,
    wrap: Callable[[nn.Module, Any], nn.Module],
    *,
    mesh: tuple[int, ...] = (2,),
    watched: bool = True,
    **more: Any,
) -> None:
    """A loop of one's own."""
    directory.mkdir(parents=True, exist_ok=True)
    start_processes(_plain, args=(directory, wrap, mesh, watched, more), nprocs=prod(mesh), start_method="fork")


def _plain(
    rank: int,
    directory: Path,
    wrap: Callable[[nn.Module, Any], nn.Module],
    mesh: tuple[int, ...],
    watched: bool,
    more: dict[str, Any],
) -> None:
    torch.set_num_threads(1)
    world = prod(mesh)
    dist.init_process_group("gloo", store=dist.FileStore(str(directory / "store"), world), rank=rank, world_size=world)
    before, gathers = more.pop("before", False), more.get("gather_affine", False)
    faulty, apart = more.pop("faulty", None), more.pop("apart", None)
    model = network(more.pop("last", 4))
    kept = keep_inputs(model)
    monitor = None
    if before and watched:
        settings = {"check_every_n_steps": 4, "log_every_n_steps": LOG_EVERY, "gather_affine": gathers}
        monitor = Monitor(model, sinks=[], on_alert="log", **settings)
    model = wrap(model, init_device_mesh("cpu", mesh, mesh_dim_names=("replicas", "shards")[-len(mesh) :]))
    start = whole(model) if gathers else {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    if watched:
        select = () if rank and (faulty is not None or apart is not None) else ("all",)
        settings = {"check_every_n_steps": 4, "log_every_n_steps": LOG_EVERY, "select": select, **more}
        where = directory / "log" if rank == 0 else None
        monitor = monitor or Monitor(
            model, optimizer=optimizer, log_dir=where, sinks=None if where else [], on_alert="log", **settings
        )
        monitor.watch_optimizers(optimizer)
        monitor.share_ranks()
        monitor.start()
    make = torch.Generator().manual_seed(rank)
    seen: dict[str, Any] = {"inputs": {}, "start": start, "whole": {}}
    for step in range(STEPS):
        x = torch.randn(16, 3, 5, 5, generator=make) + 3.0 * (rank == apart)
        loss = nn.functional.cross_entropy(model(x), (x[:, 0, 0, 0] > 0).long())
        loss.backward()
        optimizer.step()
        if not gathers:
            optimizer.zero_grad()
        if step == faulty and rank == world - 1:
            local_part(model[1][1].weight)[-1] = 200.0
        seen["inputs"][step] = dict(kept)
        if monitor is not None:
            monitor.step()
            arrived(monitor)
        if gathers:
            optimizer.zero_grad()
            seen["whole"][step] = whole(model)
        if step % 10 == 9:
            if monitor is not None:
                monitor.begin_evaluation()
            model.eval()
            with torch.no_grad():
                model(torch.zeros(4, 3, 5, 5))
            if monitor is not None:
                monitor.end_evaluation()
            model.train()
    if monitor is not None:
        seen |= _seen(monitor)
        monitor.close()
    seen["buffers"] = {
        n: [m.running_mean.clone(), m.running_var.clone()] for n, m in zip(kept, norms([model]), strict=True)
    }
    torch.save({**seen, "digest": digest(model)}, directory / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


class OnCpu(FSDPStrategy):
    """Lightning refuses its own class without a GPU, and does not tell FSDP which device that leaves."""

    def _setup_model(self, model: nn.Module) -> nn.Module:
        return with_fsdp1(model, None, each=(Block,), orig=True)


class Module(pl.LightningModule):
    """The same network for Lightning."""

    def __init__(self, shard: bool) -> None:
        super().__init__()
        self.net, self.shard = network(), shard
        self.kept = keep_inputs(self.net)
        self.at: dict[int, dict[str, Tensor]] = {}

    def configure_model(self) -> None:
        if self.shard:
            with_fsdp2(self.net, self.device_mesh["data_parallel"], each=(Block,))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.at[self.trainer.global_step] = dict(self.kept)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.net(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.01)

    def train_dataloader(self) -> DataLoader[Any]:
        make = torch.Generator().manual_seed(self.trainer.global_rank)
        x = torch.randn(STEPS * 8, 3, 5, 5, generator=make)
        return DataLoader(TensorDataset(x, (x[:, 0, 0, 0] > 0).long()), batch_size=16)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(torch.zeros(8, 3, 5, 5), torch.zeros(8).long()), batch_size=4)


class Keep(pl.Callback):
    """Writes what this process saw."""

    def __init__(self, directory: Path, watch: BatchNormMonitor | None) -> None:
        self.directory, self.watch = directory, watch
        self.whole: dict[int, dict[str, tuple[Tensor, Tensor]]] = {}

    def on_train_batch_end(self, trainer: Any, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.watch is not None and self.watch.settings.gather_affine:
            arrived(self.watch.monitor)
            self.whole[self.watch.monitor.steps[-1]] = whole(module)

    def on_train_end(self, trainer: Any, module: Module) -> None:
        seen: dict[str, Any] = {"inputs": module.at, "digest": digest(trainer.strategy.model), "whole": self.whole}
        if self.watch is not None:
            seen |= _seen(self.watch.monitor)
        torch.save(seen, self.directory / f"{trainer.global_rank}.pt")


def lightning(
    directory: Path, strategy: Callable[[], Any], *, shard: bool, watched: bool = True, world: int = 2, **settings: Any
) -> None:
    """A fit; with ``shard`` another one goes on from its checkpoint, which the older FSDP cannot write on a CPU."""
    directory.mkdir(parents=True, exist_ok=True)
    start_processes(
        _lightning, args=(directory, strategy, shard, watched, world, settings), nprocs=world, start_method="fork"
    )


def join(rank: int, directory: Path, world: int = 2) -> None:
    """Set what a launcher tells a process."""
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(world), "RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": (directory / "port").read_text()}


def _lightning(
    rank: int,
    directory: Path,
    strategy: Callable[[], Any],
    shard: bool,
    watched: bool,
    world: int,
    more: dict[str, Any],
) -> None:
    join(rank, directory, world)
    settings = {"check_every_n_steps": 4, "select": ("all",), "on_alert": "log", **more}
    for epochs, checkpoint in ((1, None), (2, str(directory / "half.ckpt")))[: 1 + shard]:
        watch = BatchNormMonitor(**settings) if watched else None
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=world,
            strategy=strategy(),
            max_epochs=epochs,
            log_every_n_steps=LOG_EVERY,
            default_root_dir=directory,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            use_distributed_sampler=False,
            callbacks=[*([watch] if watch else []), Keep(directory, watch)],
        )
        trainer.fit(Module(shard), ckpt_path=checkpoint)
        if checkpoint is None and shard:
            trainer.save_checkpoint(directory / "half.ckpt")


def fabric(directory: Path) -> None:
    """A loop with Lightning Fabric."""
    directory.mkdir(parents=True, exist_ok=True)
    start_processes(_fabric, args=(directory,), nprocs=2, start_method="fork")


def _fabric(rank: int, directory: Path) -> None:
    from lightning.fabric import Fabric
    from lightning.fabric.strategies import ModelParallelStrategy as Parallel

    join(rank, directory)
    shard = partial(with_fsdp2, each=(Block,))
    strategy = Parallel(
        lambda model, mesh: shard(model, mesh["data_parallel"]),
        data_parallel_size=2,
        tensor_parallel_size=1,
        process_group_backend="gloo",
    )
    launched = Fabric(accelerator="cpu", devices=2, strategy=strategy)
    launched.launch()
    net = network()
    kept = keep_inputs(net)
    model = launched.setup_module(net)
    optimizer = launched.setup_optimizers(torch.optim.AdamW(model.parameters(), lr=0.01))
    judges: dict[str, Any] = {"log_dir": directory / "log"} if launched.is_global_zero else {"sinks": [], "select": ()}
    settings = {"check_every_n_steps": 4, "log_every_n_steps": LOG_EVERY, "gather_affine": True, "on_alert": "log"}
    monitor = Monitor(net, optimizer=optimizer, **settings, **judges)
    monitor.share_ranks(model)
    make = torch.Generator().manual_seed(rank)
    seen: dict[str, Any] = {"inputs": {}, "whole": {}}
    with monitor:
        for step in range(STEPS):
            optimizer.zero_grad()
            x = torch.randn(16, 3, 5, 5, generator=make)
            launched.backward(nn.functional.cross_entropy(model(x), (x[:, 0, 0, 0] > 0).long()))
            optimizer.step()
            seen["inputs"][step] = dict(kept)
            monitor.step()
            arrived(monitor)
            seen["whole"][step] = whole(net)
        seen |= _seen(monitor)
    torch.save({**seen, "digest": ""}, directory / f"{rank}.pt")


def _port(directory: Path) -> None:
    import socket

    directory.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        (directory / "port").write_text(str(free.getsockname()[1]))


def _fsdp() -> Any:
    return OnCpu(process_group_backend="gloo")


def _parallel(world: int = 2) -> Any:
    return ModelParallelStrategy(data_parallel_size=world, tensor_parallel_size=1, process_group_backend="gloo")


WAYS: dict[str, Callable[[nn.Module, Any], nn.Module]] = {
    "fsdp2": with_fsdp2,
    "fsdp2-blocks": partial(with_fsdp2, each=(Block,)),
    "fsdp2-layers": partial(with_fsdp2, each=(nn.BatchNorm2d,)),
    "fsdp1": partial(with_fsdp1, orig=True),
    "fsdp1-blocks": partial(with_fsdp1, orig=True, each=(Block,)),
    "fsdp1-flat": partial(with_fsdp1, orig=False),
    "fsdp1-flat-blocks": partial(with_fsdp1, orig=False, each=(Block,)),
}
GATHERED: dict[str, dict[str, Any]] = {
    **{f"gathered-{name}": {"wrap": WAYS[name]} for name in ("fsdp2", "fsdp2-layers")},
    "gathered-before": {"wrap": WAYS["fsdp2"], "before": True},
    "gathered-some": {"wrap": with_others_whole},
    "gathered-of-four": {"wrap": WAYS["fsdp2-blocks"], "mesh": (4,), "last": 3},
    "gathered-of-replicas": {"wrap": WAYS["fsdp2"], "mesh": (2, 2), "last": 1},
    "gathered-fsdp1": {"wrap": WAYS["fsdp1"]},
}
"""Gamma and beta are gathered, where that is possible."""
CASES: dict[str, Callable[[Path], None]] = {
    **{name: partial(plain, wrap=wrap, probe=True) for name, wrap in WAYS.items()},
    **{f"{name}-unwatched": partial(plain, wrap=wrap, watched=False) for name, wrap in WAYS.items()},
    **{name: partial(plain, gather_affine=True, **way) for name, way in GATHERED.items()},
    **{
        f"{name}-unwatched": partial(plain, watched=False, **way)
        for name, way in GATHERED.items()
        if name != "gathered-fsdp1"
    },
    "before": partial(plain, wrap=WAYS["fsdp2-blocks"], before=True),
    "lightning-fsdp1": partial(lightning, strategy=_fsdp, shard=False),
    "lightning-fsdp2": partial(lightning, strategy=_parallel, shard=True),
    "gathered-fabric": fabric,
    "incident-of-two": partial(plain, wrap=WAYS["fsdp2"], gather_affine=True, faulty=10),
    "incident-of-four": partial(plain, wrap=WAYS["fsdp2-blocks"], gather_affine=True, faulty=10, mesh=(4,)),
    "incident-of-a-rank": partial(plain, wrap=WAYS["fsdp2-blocks"], apart=2, mesh=(4,)),
    "gathered-lightning": partial(lightning, strategy=_parallel, shard=True, gather_affine=True),
    "gathered-alone": partial(lightning, strategy=partial(_parallel, 1), shard=True, world=1, gather_affine=True),
    "lightning-fsdp1-unwatched": partial(lightning, strategy=_fsdp, shard=False, watched=False),
    "lightning-fsdp2-unwatched": partial(lightning, strategy=_parallel, shard=True, watched=False),
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
