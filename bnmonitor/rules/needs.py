"""What a rule may need before it can judge, and why it may not be there."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

NEEDS: Mapping[str, str] = {
    "buffers": "running statistics",
    "affine": "gamma and beta, whole in each process (no FSDP, no ZeRO-3)",
    "whole": "parameters that are whole in each process (no FSDP, no ZeRO-3)",
    "ledger": "the count of who called each layer",
    "samples": "activation samples (sample_every_n_steps above 0, no torch.compile)",
    "optimizer": "the optimizer (optimizer=)",
    "loader": "the training loader (train_loader=)",
    "batch_size": "the number of samples in a batch (train_loader=, or activation samples)",
    "scaler": "the gradient scaler (scaler=)",
    "accumulation": "the number of micro-batches per optimizer step (accumulate_grad_batches=)",
    "dataflow": "the autograd graph of a training step (no torch.compile, or probe=True)",
    "validation": "a validation",
    "probe": "an extra forward at the start of a validation (probe=True)",
    "ranks": "several processes that train together",
    "exchange": "what these processes tell each other (monitor.share_ranks() in each; Lightning does it)",
}
"""Every word of :attr:`bnmonitor.Rule.needs`, and what it stands for."""

_SPLIT = (
    "needs gamma and beta, of which each process has a part only (FSDP, ZeRO-3): the whole would have to be gathered"
)
_COPIES = (
    "needs to know whose each parameter is, and the optimizer trains copies of them; with DeepSpeed pass the one that "
    "deepspeed.initialize returned"
)


def missing(
    *,
    tracking: bool,
    affine: bool,
    unsampled: str,
    untraced: str,
    optimizers: bool,
    loader: bool | None,
    scaler: bool,
    validated: bool,
    probe: bool,
    ranks: bool,
    exchange: bool,
    split: bool = False,
    copies: bool = False,
) -> dict[str, str]:
    """Return what is not there now, by the word of the vocabulary, each with the reason.

    Args:
        tracking: Whether a layer keeps running statistics.
        affine: Whether a layer has a gamma.
        unsampled: Why no activation is sampled; empty if it is.
        untraced: Why no autograd graph is known; empty if one is.
        optimizers: Whether the optimizers are known.
        loader: Whether the training loader is known; None if one was given that tells nothing.
        scaler: Whether there is a gradient scaler.
        validated: Whether a validation was seen.
        probe: Whether an extra forward is allowed.
        ranks: Whether several processes train together.
        exchange: Whether they tell each other what they see.
        split: Whether gamma and beta of a layer are split over them.
        copies: Whether the optimizers train copies of the parameters, of which nobody knows whose they are.
    """
    told = "needs a DataLoader, whose batch size and length are known: what train_loader= got tells neither"
    reasons: dict[str, tuple[Any, str]] = {
        "buffers": (tracking, "needs running statistics, and no layer keeps any"),
        "affine": (affine and not split, _SPLIT if split else "needs gamma and beta, and no layer has any"),
        "whole": (
            not split and not copies,
            "needs to know whose each parameter is, and FSDP or ZeRO-3 puts others in their place in each forward"
            if split
            else _COPIES,
        ),
        "samples": (not unsampled, unsampled),
        "optimizer": (optimizers and not copies, _COPIES if copies else "needs the optimizer: pass optimizer="),
        "loader": (loader, "needs the training loader: pass train_loader=" if loader is False else told),
        "batch_size": (
            not unsampled or loader,
            f"needs the batch size: pass train_loader=, or let activations be sampled; it {unsampled}",
        ),
        "scaler": (scaler, "needs a gradient scaler, which trains in fp16: pass scaler= if there is one"),
        "dataflow": (not untraced, untraced),
        "validation": (validated, "needs a validation, and none was seen yet: wrap it in monitor.evaluation()"),
        "probe": (probe, "needs an extra forward at the start of a validation: pass probe=True"),
        "ranks": (ranks, "needs several processes that train together, and there is one"),
        "exchange": (exchange, "needs what all processes see: call monitor.share_ranks() in each of them"),
    }
    return {need: why for need, (there, why) in reasons.items() if not there}


def unmet(needs: Collection[str], absent: Mapping[str, str]) -> str:
    """Return the reason why needs are not met, the first in the order of the vocabulary; empty if they are."""
    if absent.keys().isdisjoint(needs):
        return ""
    return next(why for need, why in absent.items() if need in needs)
