"""What is known of the run besides the statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bnmonitor.frame import Facts, RankStatistics
from bnmonitor.runfacts import RunFacts
from bnmonitor.structure import Structure


def distributed() -> bool:
    """Whether several processes may train together."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def world_size() -> int:
    """Processes that train together; 1 where that is unknown."""
    return torch.distributed.get_world_size() if distributed() else 1


def facts(
    modules: Sequence[nn.Module],
    optimizers: Sequence[Optimizer],
    *,
    steps: Sequence[int],
    rates: Sequence[float],
    structure: Structure | None,
    run: RunFacts,
    ranks: RankStatistics | None = None,
    shards: Mapping[int, tuple[Tensor, ...]] | None = None,
) -> Facts:
    """Return the facts of the layers' modules and of the run as they are now.

    Args:
        modules: The layers.
        optimizers: The optimizers, as far as they are known.
        steps: Numbers of the steps in the window.
        rates: The learning rate in force at each of them.
        structure: What the autograd graph told.
        run: What the run tells of itself.
        ranks: What all processes last told each other.
        shards: The parameters that hold a part of a layer's gamma and beta, by ``id(module)``, where these are split;
            empty where they could not be found: such a layer is taken to train.
    """
    trained = {id(p) for o in optimizers for g in o.param_groups for p in g["params"]}
    own = [_own(m, shards or {}) for m in modules]
    affine = [of is None or any(p.requires_grad and (not optimizers or id(p) in trained) for p in of) for of in own]
    known = _decays(optimizers)
    decays = [_decay(of or (), known) for of in own]
    scales, skipped = run.scales(steps)
    kept = [m._buffers.get("running_mean") for m in modules]
    return Facts(
        affine_trains=torch.tensor(affine, dtype=torch.bool, device="cpu"),
        optimizers=bool(optimizers),
        learning_rates=tuple(rates),
        world_size=world_size(),
        structure=structure,
        decay=torch.tensor([d for d, _ in decays], device="cpu"),
        decoupled=torch.tensor([apart for _, apart in decays], dtype=torch.bool, device="cpu"),
        buffer_dtypes=tuple(None if t is None else t.dtype for t in kept),
        train_loader=run.train_loader,
        val_loader=run.val_loader,
        accumulate=run.accumulate,
        scales=scales,
        skipped_steps=skipped,
        ranks=ranks,
    )


def _own(module: nn.Module, shards: Mapping[int, tuple[Tensor, ...]]) -> tuple[Tensor, ...] | None:
    """The parameters behind a layer's gamma and beta; None where they are somewhere, and nobody knows where."""
    if id(module) in shards:
        return shards[id(module)] or None
    return tuple(p for p in (module._parameters.get("weight"), module._parameters.get("bias")) if p is not None)


def _decays(optimizers: Sequence[Optimizer]) -> dict[int, tuple[float, bool]]:
    """The largest weight decay on each parameter, by its id, and whether it is decoupled from the gradient."""
    found: dict[int, tuple[float, bool]] = {}
    for optimizer in optimizers:
        decouples = _decouples(optimizer)
        for group in optimizer.param_groups:
            decay = float(group.get("weight_decay") or 0.0), bool(group.get("decoupled_weight_decay")) or decouples
            for p in group["params"]:
                found[id(p)] = max(decay, found.get(id(p), decay))
    return found


def _decay(affine: tuple[Tensor, ...], known: dict[int, tuple[float, bool]]) -> tuple[float, bool]:
    """The largest weight decay on a layer's gamma or beta, and whether it is decoupled."""
    found = [known[id(p)] for p in affine if p.requires_grad and id(p) in known]
    return max(found, default=(0.0, False))


def _decouples(optimizer: Optimizer) -> bool:
    """Whether an optimizer is by name one that takes weight decay off the parameters, not through the gradient."""
    names = [kind.__name__ for kind in type(optimizer).__mro__]
    return any(word in name for name in names for word in ("AdamW", "SGDW", "Lion", "Lamb"))
