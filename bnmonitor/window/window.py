"""The last steps of every layer as flat tensors, with everything that rules judge them by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from bnmonitor.layers import LayerTable
from bnmonitor.window.baseline import Baseline
from bnmonitor.window.facts import Facts
from bnmonitor.window.ledger import Ledger
from bnmonitor.window.recovery import Recovery
from bnmonitor.window.sample import Sample
from bnmonitor.window.statistics import Statistic, per_channel, per_layer

Averages = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Window:
    """The last ``T`` steps, with what they are judged against.

    ``C`` counts the channels of all layers end to end, ``L`` the layers. A field declared as a statistic is recorded at
    every step: to add a statistic is to add such a field, and to fill it where it is recovered.

    Attributes:
        layers: The layers.
        steps: The numbers of the steps.
        batch_mean: ``[T, C]`` mean of the batch, recovered from the running mean; NaN where it could not be.
        batch_var: ``[T, C]`` unbiased variance of the batch, recovered alike.
        running_mean: ``[T, C]`` after the step.
        running_var: ``[T, C]`` after the step (PyTorch keeps the unbiased variance).
        gamma: ``[T, C]`` the layer's ``weight``; 1 for a layer without, NaN where it is computed of something else, as
            by pruning or a parametrization, or is split over the processes, which did not tell it at the step.
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
        earlier: The samples before it that are kept, oldest first.
        ledger: Who ran and updated the layers; a window made without one gets an empty one.
        fresh: How many of the steps are new since the last check.
        carried: What :attr:`averages` is to be; a window made from this one by ``replace`` has none.
        averages: Means over the window, ``[C]`` each, of the shift, of the batch variance but the first step's, and of
            the running variance without the last, if the recorder has carried their sums along; else None.
        memo: What was computed of this very window; a window made from it by ``replace`` begins with none.
        row_memo: The same of what depends on the statistics alone.
    """

    layers: LayerTable
    steps: tuple[int, ...]
    batch_mean: Tensor = field(metadata=per_channel())
    batch_var: Tensor = field(metadata=per_channel())
    running_mean: Tensor = field(metadata=per_channel())
    running_var: Tensor = field(metadata=per_channel())
    gamma: Tensor = field(metadata=per_channel())
    beta: Tensor = field(metadata=per_channel())
    gamma_grad: Tensor = field(metadata=per_channel())
    beta_grad: Tensor = field(metadata=per_channel())
    shift: Tensor = field(metadata=per_channel())
    ratio: Tensor = field(metadata=per_channel())
    updates: Tensor = field(metadata=per_layer(0, torch.int64))
    training: Tensor = field(metadata=per_layer(False, torch.bool))
    recovery: Tensor = field(metadata=per_layer(Recovery.NO_UPDATE, torch.int64))
    momentum: Tensor = field(metadata=per_layer())
    variance: Tensor = field(metadata=per_layer())
    baseline: Baseline
    facts: Facts
    sample: Sample | None = None
    earlier: tuple[Sample, ...] = ()
    ledger: Ledger = field(default_factory=lambda: Ledger.blank(0))
    fresh: int = 0
    carried: InitVar[Averages | None] = None
    averages: Averages | None = field(default=None, init=False, repr=False, compare=False)
    memo: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    row_memo: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self, carried: Averages | None) -> None:
        object.__setattr__(self, "averages", carried)
        if self.ledger.called.numel() != len(self.layers):
            object.__setattr__(self, "ledger", Ledger.blank(len(self.layers)))

    @classmethod
    def neutral(cls, layers: LayerTable, steps: Sequence[int]) -> Window:
        """Return a window in which nothing is known of any layer but what its table says.

        Args:
            layers: The layers.
            steps: The numbers of the steps.
        """
        width = {"channel": layers.total, "layer": len(layers)}
        rows: dict[str, Any] = {
            s.name: torch.full((len(steps), width[s.per]), s.neutral, dtype=s.dtype, device="cpu") for s in STATISTICS
        }
        rows["momentum"][:] = torch.tensor([torch.nan if m is None else m for m in layers.momentum], device="cpu")
        return cls(
            layers=layers,
            steps=tuple(steps),
            baseline=Baseline.blank(layers),
            facts=Facts(affine_trains=torch.ones(len(layers), dtype=torch.bool, device="cpu")),
            **rows,
        )

    def __len__(self) -> int:
        return len(self.steps)

    def against(self, baseline: Baseline) -> Window:
        """Return the same steps with another baseline; what depends on the statistics alone is not computed again."""
        window = replace(self, baseline=baseline, carried=self.averages)
        object.__setattr__(window, "row_memo", self.row_memo)
        return window

    def last(self, steps: int) -> Window:
        """Return the same window with only its newest steps."""
        rows = {name: getattr(self, name)[-steps:] for name in CHANNEL_STATISTICS + LAYER_STATISTICS}
        return replace(self, steps=self.steps[-steps:], fresh=min(self.fresh, steps), **rows)

    def until(self, position: int) -> Window:
        """Return the same window cut off before a position."""
        rows = {name: getattr(self, name)[:position] for name in CHANNEL_STATISTICS + LAYER_STATISTICS}
        facts = replace(self.facts, learning_rates=self.facts.learning_rates[:position])
        return replace(self, steps=self.steps[:position], fresh=min(self.fresh, position), facts=facts, **rows)

    def snapshot(self) -> Window:
        """Return the same window, which later steps do not change."""
        return replace(self, **{name: getattr(self, name).clone() for name in CHANNEL_STATISTICS + LAYER_STATISTICS})

    def ran_in_training(self) -> Tensor:
        """``[L]`` bool: the layer's own forward ran in training, as far as the last sample tells."""
        called = self.ledger.called
        return called if self.sample is None else called & (self.sample.calls > self.sample.eval_calls)

    @property
    def auxiliary(self) -> Tensor:
        """``[L]`` bool: the layer belongs to an average of the weights, or to another network that is not trained."""
        if "auxiliary" not in self.memo:
            named = torch.tensor([*map(bool, self.facts.auxiliary)] or False, dtype=torch.bool, device="cpu")
            self.memo["auxiliary"] = self.ledger.averaged | named
        known: Tensor = self.memo["auxiliary"]
        return known

    @property
    def copied(self) -> Tensor:
        """``[L]`` bool: an auxiliary layer that the last sampled step did not run: its updates are another layer's."""
        if self.sample is None:
            return self.auxiliary
        return self.auxiliary & (self.sample.calls == 0) & (self.sample.idle == 0)

    def learning_rate(self, position: int = -1) -> float:
        """The learning rate in force at a step of the window; NaN where unknown."""
        rates = self.facts.learning_rates
        return rates[position] if len(rates) == len(self) and rates else float("nan")


STATISTICS = tuple(Statistic(name=f.name, **f.metadata) for f in fields(Window) if f.metadata)
"""The statistics of a step, as the fields of :class:`Window` declare them."""

CHANNEL_STATISTICS = tuple(s.name for s in STATISTICS if s.per == "channel")
"""The names of those that have a value per channel."""

LAYER_STATISTICS = tuple(s.name for s in STATISTICS if s.per == "layer")
"""The names of those that have a value per layer."""
