"""Ways of training that really train: optimizers, schedules, batches, precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "plain": lambda params, lr, decay: torch.optim.SGD(params, lr, weight_decay=decay),
    "sgd": lambda params, lr, decay: torch.optim.SGD(params, lr, 0.9, weight_decay=decay, nesterov=True),
    "adam": lambda params, lr, decay: torch.optim.Adam(params, lr, weight_decay=decay),
    "rmsprop": lambda params, lr, decay: torch.optim.RMSprop(params, lr, weight_decay=decay),
    "adamw": lambda params, lr, decay: torch.optim.AdamW(params, lr, weight_decay=decay),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained.

    Attributes:
        optimizer: A name of :data:`OPTIMIZERS`.
        lr: The highest learning rate.
        schedule: ``constant``, ``cosine`` (after a warm-up from zero over a tenth), ``steps``, ``restarts`` or
            ``onecycle``.
        decay: Weight decay.
        spare: Whether gamma, beta and biases are spared the weight decay.
        batch: Samples a batch.
        drop_last: Whether the loader drops what is left over.
        accumulate: Micro-batches an optimizer step.
        momentum: Of the BatchNorm layers; None: as the network made them.
        augment: Shift images by up to a pixel, and add noise.
        bf16: Forward under bf16 autocast.
        clip: Largest norm of the gradients; 0: any.
    """

    optimizer: str = "sgd"
    lr: float = 0.05
    schedule: str = "constant"
    decay: float = 1e-4
    spare: bool = True
    batch: int = 32
    drop_last: bool = True
    accumulate: int = 1
    momentum: float | None = None
    augment: bool = False
    bf16: bool = False
    clip: float = 0.0

    def minimizer(self, model: nn.Module) -> Optimizer:
        """Return an optimizer of the parameters that require a gradient."""
        params = [p for p in model.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [{"params": params}]
        if self.spare:
            groups = [
                {"params": [p for p in params if p.dim() > 1]},
                {"params": [p for p in params if p.dim() <= 1], "weight_decay": 0.0},
            ]
        return OPTIMIZERS[self.optimizer]([g for g in groups if g["params"]], self.lr, self.decay)

    def scheduler(self, optimizer: Optimizer, steps: int) -> LRScheduler:
        """Return the schedule over a number of optimizer steps."""
        if self.schedule == "onecycle":
            return OneCycleLR(optimizer, max_lr=self.lr, total_steps=steps + 1)
        return LambdaLR(optimizer, SCHEDULES[self.schedule](steps))

    def vary(self, x: Tensor) -> Tensor:
        """Augment a batch, if the recipe says so."""
        if not self.augment:
            return x
        if x.dim() > 2:
            x = x.roll(tuple(torch.randint(-1, 2, (2,)).tolist()), (-1, -2)) if x.dim() > 3 else x
        return x + 0.1 * torch.randn_like(x)


def _constant(steps: int) -> Callable[[int], float]:
    return lambda step: 1.0


def _half_cosine(length: int) -> Callable[[int], float]:
    return lambda step: 0.5 + 0.5 * math.cos(math.pi * min(step, length) / length)


def _cosine(steps: int) -> Callable[[int], float]:
    rise = max(1, steps // 10)
    return lambda step: (
        step / rise if step < rise else 0.5 + 0.5 * math.cos(math.pi * (step - rise) / max(1, steps - rise))
    )


def _steps(steps: int) -> Callable[[int], float]:
    return lambda step: 0.1 ** ((step >= steps // 2) + (step >= 3 * steps // 4))


def _restarts(steps: int) -> Callable[[int], float]:
    cycle = max(1, steps // 3)
    fall = _half_cosine(cycle)
    return lambda step: fall(step % cycle)


SCHEDULES = {"constant": _constant, "cosine": _cosine, "steps": _steps, "restarts": _restarts}

PLAIN = Recipe()
"""What injections are tried under, unless they need another."""

ROTATION: Sequence[Recipe] = (
    Recipe(schedule="cosine", lr=0.1, decay=5e-4),
    Recipe(optimizer="adam", lr=1e-3, decay=0.0),
    Recipe(optimizer="adamw", lr=2e-3, decay=0.05, schedule="cosine"),
    Recipe(schedule="onecycle", lr=0.2),
    Recipe(batch=128, lr=0.1, schedule="steps"),
    Recipe(batch=16, lr=0.01),
    Recipe(augment=True, schedule="restarts"),
    Recipe(bf16=True, schedule="cosine"),
)
"""Recipes that every network is well under."""
