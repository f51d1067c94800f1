"""The loss of a training step, as Lightning passes it on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def loss_of(outputs: object, trainer: Any) -> Tensor | None:
    """Return the loss that a training step returned; None if it returned none.

    Args:
        outputs: What ``on_train_batch_end`` gets: Lightning divides the loss by the number of accumulated batches.
        trainer: The Trainer.
    """
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        return None
    parts = int(trainer.accumulate_grad_batches)
    automatic = getattr(trainer.lightning_module, "automatic_optimization", True)
    return loss.detach() * parts if automatic and parts > 1 else loss.detach()
