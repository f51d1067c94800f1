"""What a rule may need before it can judge, and why it may be missing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from bnmonitor.layers import LayerTable


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """The state of a training at a check, as far as rules depend on it.

    Attributes:
        layers: The layers under watch.
        unsampled: Why no activation is sampled; empty if activations are.
        untraced: Why no autograd graph is known; empty if one is.
        unprobed: Why no extra forward is possible; empty if it is.
        exchange_failure: Why the processes cannot exchange statistics; empty if nothing has failed.
        untold: Why gamma and beta are not known of layers that are split over the processes; empty if they are, or none
            is split.
        optimizers: Whether the optimizers are known.
        copies: Whether the optimizers train copies of the parameters, which cannot be matched with the layers.
        loader: Whether the training loader is known; None if one was given whose batch size and length are not.
        scaler: Whether a gradient scaler is known.
        validated: Whether a validation was seen.
        probe: Whether the user allows extra forwards.
        ranks: Whether several processes train together.
        shares: Whether these processes exchange statistics.
    """

    layers: LayerTable
    unsampled: str
    untraced: str
    unprobed: str
    exchange_failure: str
    untold: str = ""
    optimizers: bool
    copies: bool
    loader: bool | None
    scaler: bool
    validated: bool
    probe: bool
    ranks: bool
    shares: bool

    @property
    def split(self) -> bool:
        """Whether each process holds only a part of gamma and beta of some layer."""
        return bool(self.layers.split)


@dataclass(frozen=True)
class Need:
    """One word of :attr:`bnmonitor.Rule.needs`.

    Attributes:
        word: The word.
        meaning: What it stands for, in the manual.
        why_absent: Returns why a training does not meet the need now; empty if it does.
    """

    word: str
    meaning: str
    why_absent: Callable[[Conditions], str]


def _never(now: Conditions) -> str:
    return ""


def _buffers(now: Conditions) -> str:
    there = not len(now.layers) or any(now.layers.tracking)
    return "" if there else "needs running statistics, and no layer keeps any"


def _affine(now: Conditions) -> str:
    if now.untold:
        return f"needs gamma and beta, and FSDP or ZeRO-3 splits them over the processes: {now.untold}"
    there = not len(now.layers) or any(now.layers.affine)
    return "" if there else "needs gamma and beta, and no layer has any"


def _gradients(now: Conditions) -> str:
    if now.split:
        return "needs gamma and its gradient at each step, and FSDP or ZeRO-3 splits them over the processes"
    return ""


def _whole(now: Conditions) -> str:
    if now.split:
        return (
            "needs to match each parameter with its layer, and FSDP or ZeRO-3 replaces the parameters in each forward"
        )
    return _copies(now)


def _copies(now: Conditions) -> str:
    if not now.copies:
        return ""
    return (
        "needs to match each parameter with its layer, and the optimizer trains copies of the parameters; with "
        "DeepSpeed pass the optimizer that deepspeed.initialize returned"
    )


def _optimizer(now: Conditions) -> str:
    return _copies(now) or ("" if now.optimizers else "needs the optimizer: pass optimizer=")


def _loader(now: Conditions) -> str:
    if now.loader is None:
        return "needs a DataLoader, whose batch size and length are known: those of the given train_loader= are not"
    return "" if now.loader else "needs the training loader: pass train_loader="


def _batch_size(now: Conditions) -> str:
    if now.loader or not now.unsampled:
        return ""
    return f"needs the batch size: pass train_loader=, or let activations be sampled; it {now.unsampled}"


def _scaler(now: Conditions) -> str:
    return "" if now.scaler else "needs a gradient scaler, which training in fp16 has (scaler=)"


def _validation(now: Conditions) -> str:
    return "" if now.validated else "needs a validation, and none was seen yet: wrap it in monitor.evaluation()"


def _probe(now: Conditions) -> str:
    allowed = "" if now.probe else "needs an extra forward at the start of a validation: pass probe=True"
    return now.unprobed or allowed


def _ranks(now: Conditions) -> str:
    return "" if now.ranks else "needs several processes that train together, and there is one"


def _exchange(now: Conditions) -> str:
    if now.exchange_failure:
        return f"needs the statistics of all processes, and {now.exchange_failure}"
    return "" if now.shares else "needs the statistics of all processes: call monitor.share_ranks() in each of them"


NEEDS: tuple[Need, ...] = (
    Need("buffers", "running statistics", _buffers),
    Need(
        "affine",
        "gamma and beta, whole in each process (no FSDP, no ZeRO-3) or gathered (FSDP2 with gather_affine=True)",
        _affine,
    ),
    Need("gradients", "gradients of gamma at each step, whole in each process (no FSDP, no ZeRO-3)", _gradients),
    Need("whole", "parameters that are whole in each process (no FSDP, no ZeRO-3)", _whole),
    Need("ledger", "the count of who called each layer", _never),
    Need(
        "samples",
        "activation samples (sample_every_n_steps above 0, no torch.compile)",
        lambda now: now.unsampled,
    ),
    Need("optimizer", "the optimizer (optimizer=)", _optimizer),
    Need("loader", "the training loader (train_loader=)", _loader),
    Need("batch_size", "the number of samples in a batch (train_loader=, or activation samples)", _batch_size),
    Need("scaler", "the gradient scaler (scaler=)", _scaler),
    Need("accumulation", "the number of micro-batches per optimizer step (accumulate_grad_batches=)", _never),
    Need(
        "dataflow",
        "the autograd graph of a training step (no torch.compile, or probe=True)",
        lambda now: now.untraced,
    ),
    Need("validation", "a validation", _validation),
    Need("probe", "an extra forward at the start of a validation (probe=True)", _probe),
    Need("ranks", "several processes that train together", _ranks),
    Need(
        "exchange",
        "the statistics of all these processes (monitor.share_ranks() in each; Lightning does it)",
        _exchange,
    ),
)
"""Every word of :attr:`bnmonitor.Rule.needs`. A new need is one entry here."""


def absent_needs(now: Conditions) -> dict[str, str]:
    """Return the words of the needs that are not met now, each with the reason."""
    return {need.word: why for need in NEEDS if (why := need.why_absent(now))}


def unmet(needs: Collection[str], absent: Mapping[str, str]) -> str:
    """Return the reason why needs are not met, the first in the order of :data:`NEEDS`; empty if they are."""
    if absent.keys().isdisjoint(needs):
        return ""
    return next(why for need, why in absent.items() if need in needs)
