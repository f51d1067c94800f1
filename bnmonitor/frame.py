"""What is known at a check, as flat tensors: a step (Frame), the last steps (Window), what they are judged against."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from bnmonitor.facts import Facts
from bnmonitor.layers import LayerTable
from bnmonitor.ledger import Ledger
from bnmonitor.samples import Sample

CHANNEL_STATISTICS = (
    "batch_mean",
    "batch_var",
    "running_mean",
    "running_var",
    "gamma",
    "beta",
    "gamma_grad",
    "beta_grad",
    "shift",
    "ratio",
)
"""The statistics of a step that have a value per channel."""

LAYER_STATISTICS = ("updates", "training", "recovery", "momentum", "variance")
"""The statistics of a step that have a value per layer."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One training step of every layer.

    Attributes:
        step: The step's number.
        batch_mean: ``[C]`` mean of the batch, recovered from the running mean; NaN where it could not be.
        batch_var: ``[C]`` unbiased variance of the batch, recovered alike.
        running_mean: ``[C]`` after the step.
        running_var: ``[C]`` after the step (PyTorch keeps the unbiased variance).
        gamma: ``[C]`` the layer's ``weight``; 1 for a layer without, NaN where it is computed of something else, as by
            pruning or a parametrization.
        beta: ``[C]`` the layer's ``bias``; 0 for a layer without.
        gamma_grad: ``[C]`` gradient of gamma; NaN where there was none.
        beta_grad: ``[C]`` gradient of beta, alike.
        shift: ``[C]`` ``(batch_mean - running_mean) / sqrt(running_var + eps)`` against the running statistics
            before the step: the ``d`` of Batch Renormalization (Ioffe 2017).
        ratio: ``[C]`` square root of ``(batch_var + eps) / (running_var + eps)``, alike: its ``r``.
        updates: ``[L]`` int64, how often the running statistics were updated in the step.
        training: ``[L]`` bool, whether the layer was in training mode at the end of the step.
        recovery: ``[L]`` int64, a :class:`~bnmonitor.statistics.Recovery`.
        momentum: ``[L]``, NaN for a cumulative average (momentum None).
        variance: ``[L]`` mean of the layer's batch variances; NaN where none was recovered.
    """

    step: int
    batch_mean: Tensor
    batch_var: Tensor
    running_mean: Tensor
    running_var: Tensor
    gamma: Tensor
    beta: Tensor
    gamma_grad: Tensor
    beta_grad: Tensor
    shift: Tensor
    ratio: Tensor
    updates: Tensor
    training: Tensor
    recovery: Tensor
    momentum: Tensor
    variance: Tensor


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What each layer and channel was like when it was well, or when watching began.

    Attributes:
        log_var: ``[C]`` robust log of the batch variance after warm-up; NaN before.
        spread: ``[C]`` median absolute deviation of that log from step to step, alike.
        unrest: ``[L]`` how far the batches were from the running statistics while the layer was calm, in deviations;
            NaN before warm-up.
        jump: ``[L]`` how far the mean moved from batch to batch in such times, likewise.
        rate: ``[L]`` highest learning rate so far, but for the newest steps; 0 where unknown.
        offset: ``[L]`` robust median of ``abs(mean) / sigma`` after warm-up; NaN before.
        alive: ``[C]`` bool, the batch variance was once well above eps.
        gamma: ``[C]`` gamma at the start.
        mean: ``[C]`` running mean at the start.
        var: ``[C]`` running variance at the start.
        initial: ``[L]`` weight that mean 0 and variance 1 had in the running statistics at the start; 0 once something
            other than training has set them.
        updates: ``[L]`` int64, updates seen since the start.
        forgotten: ``[L]``, minus the log of the weight that the initial statistics still have after these updates.
        sizes: ``[L]`` median number of samples per call over the samples taken; NaN where none was.
        values: ``[L]`` median number of values per channel over the samples taken; NaN where none was.
    """

    log_var: Tensor
    spread: Tensor
    offset: Tensor
    unrest: Tensor
    jump: Tensor
    rate: Tensor
    alive: Tensor
    gamma: Tensor
    mean: Tensor
    var: Tensor
    initial: Tensor
    updates: Tensor
    forgotten: Tensor
    sizes: Tensor
    values: Tensor

    def save(self) -> dict[str, Tensor]:
        """Return the baseline as plain tensors by name, for a checkpoint."""
        return {f.name: getattr(self, f.name).clone() for f in fields(self)}


@dataclass(frozen=True, kw_only=True)
class Window:
    """The last ``T`` steps, with what they are judged against.

    The statistics are those of :class:`Frame`, with a leading axis of steps: ``[T, C]`` and ``[T, L]``.
    """

    layers: LayerTable
    steps: tuple[int, ...]
    batch_mean: Tensor
    batch_var: Tensor
    running_mean: Tensor
    running_var: Tensor
    gamma: Tensor
    beta: Tensor
    gamma_grad: Tensor
    beta_grad: Tensor
    shift: Tensor
    ratio: Tensor
    updates: Tensor
    training: Tensor
    recovery: Tensor
    momentum: Tensor
    variance: Tensor
    baseline: Baseline
    facts: Facts
    sample: Sample | None = None
    ledger: Ledger = field(default_factory=lambda: Ledger.blank(0))
    """Who ran and updated the layers; a window made without one gets an empty one."""
    fresh: int = field(default=0)
    """How many of the steps are new since the last check."""
    memo: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What was computed of this very window; a window made from it by ``replace`` begins with none."""

    def __post_init__(self) -> None:
        if self.ledger.called.numel() != len(self.layers):
            object.__setattr__(self, "ledger", Ledger.blank(len(self.layers)))

    def __len__(self) -> int:
        return len(self.steps)

    def frame(self, position: int) -> Frame:
        """Return one step of the window."""
        rows = {name: getattr(self, name)[position] for name in CHANNEL_STATISTICS + LAYER_STATISTICS}
        return Frame(step=self.steps[position], **rows)

    def last(self, steps: int) -> Window:
        """Return the same window with only its newest steps."""
        rows = {name: getattr(self, name)[-steps:] for name in CHANNEL_STATISTICS + LAYER_STATISTICS}
        return replace(self, steps=self.steps[-steps:], fresh=min(self.fresh, steps), **rows)

    def snapshot(self) -> Window:
        """Return the same window, which later steps do not change."""
        return replace(self, **{name: getattr(self, name).clone() for name in CHANNEL_STATISTICS + LAYER_STATISTICS})

    def ran_in_training(self) -> Tensor:
        """``[L]`` bool: the layer's own forward ran in training, as far as the last sample tells."""
        called = self.ledger.called
        return called if self.sample is None else called & (self.sample.calls > self.sample.eval_calls)

    @property
    def beside(self) -> Tensor:
        """``[L]`` bool: the layer is of an average of the weights, or of another network beside the trained one."""
        named = torch.tensor([*map(bool, self.facts.auxiliary)] or False, dtype=torch.bool, device="cpu")
        return self.ledger.averaged | named

    @property
    def copied(self) -> Tensor:
        """``[L]`` bool: such a layer that no training step ran, as far as is known: its updates are another layer's."""
        if self.sample is None:
            return self.beside
        return self.beside & (self.sample.calls == 0) & (self.sample.idle == 0)

    def learning_rate(self, position: int = -1) -> float:
        """The learning rate in force at a step of the window; NaN where unknown."""
        rates = self.facts.learning_rates
        return rates[position] if len(rates) == len(self) and rates else float("nan")
