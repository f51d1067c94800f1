"""The last steps of every layer as flat tensors, with everything that rules judge them by."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from bnmonitor.layers import LayerTable
from bnmonitor.window.baseline import Baseline
from bnmonitor.window.facts import Facts
from bnmonitor.window.ledger import Ledger
from bnmonitor.window.sample import Sample

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
class Window:
    """The last ``T`` steps, with what they are judged against.

    ``C`` counts the channels of all layers end to end, ``L`` the layers.

    Attributes:
        layers: The layers.
        steps: The numbers of the steps.
        batch_mean: ``[T, C]`` mean of the batch, recovered from the running mean; NaN where it could not be.
        batch_var: ``[T, C]`` unbiased variance of the batch, recovered alike.
        running_mean: ``[T, C]`` after the step.
        running_var: ``[T, C]`` after the step (PyTorch keeps the unbiased variance).
        gamma: ``[T, C]`` the layer's ``weight``; 1 for a layer without, NaN where it is computed of something else, as
            by pruning or a parametrization.
        beta: ``[T, C]`` the layer's ``bias``; 0 for a layer without.
        gamma_grad: ``[T, C]`` gradient of gamma; NaN where there was none.
        beta_grad: ``[T, C]`` gradient of beta, alike.
        shift: ``[T, C]`` ``(batch_mean - running_mean) / sqrt(running_var + eps)`` against the running statistics
            before the step: the ``d`` of Batch Renormalization (Ioffe 2017).
        ratio: ``[T, C]`` square root of ``(batch_var + eps) / (running_var + eps)``, alike: its ``r``.
        updates: ``[T, L]`` int64, how often the running statistics were updated in the step.
        training: ``[T, L]`` bool, whether the layer was in training mode at the end of the step.
        recovery: ``[T, L]`` int64, a :class:`~bnmonitor.window.Recovery`.
        momentum: ``[T, L]``, NaN for a cumulative average (momentum None).
        variance: ``[T, L]`` mean of the layer's batch variances; NaN where none was recovered.
        baseline: What the layers are judged against.
        facts: What is known of the training besides the statistics.
        sample: The latest sample of activations.
        ledger: Who ran and updated the layers; a window made without one gets an empty one.
        fresh: How many of the steps are new since the last check.
        memo: What was computed of this very window; a window made from it by ``replace`` begins with none.
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
    fresh: int = 0
    memo: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.ledger.called.numel() != len(self.layers):
            object.__setattr__(self, "ledger", Ledger.blank(len(self.layers)))

    def __len__(self) -> int:
        return len(self.steps)

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
