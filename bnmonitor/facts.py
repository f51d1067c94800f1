"""What is known of the run besides the statistics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from bnmonitor.frame import Facts, Structure


def distributed() -> bool:
    """Whether several processes may train together."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def facts(
    modules: Sequence[nn.Module], optimizers: Sequence[Optimizer], rates: Sequence[float], structure: Structure | None
) -> Facts:
    """Return the facts of the layers' modules as they are now."""
    trained = {id(p) for o in optimizers for g in o.param_groups for p in g["params"]}
    affine = [
        any(
            p is not None and p.requires_grad and (not optimizers or id(p) in trained)
            for p in (m._parameters.get("weight"), m._parameters.get("bias"))
        )
        for m in modules
    ]
    return Facts(
        affine_trains=torch.tensor(affine, dtype=torch.bool, device="cpu"),
        optimizers=bool(optimizers),
        learning_rates=tuple(rates),
        world_size=torch.distributed.get_world_size() if distributed() else 1,
        structure=structure,
    )
