"""Faults of places and paths: layers that are shared, drawn, or run beside the training."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bnmonitor import Severity
from tests.end_to_end.faults.injection import Injection
from tests.end_to_end.faults.trial import Spy, Trial


def distance(spy: Spy, one: int, other: int) -> tuple[float, float]:
    """How far two calls that a spy has seen are apart: means in deviations, log ratio of the variances."""
    shift = ((spy.mean[one] - spy.mean[other]).abs() / spy.var[one].sqrt()).median()
    return float(shift), float((spy.var[one] / spy.var[other]).log().abs().median())


@dataclass(frozen=True, kw_only=True)
class RepeatedBlock(Injection):
    """A residual block stands in the list of blocks several times: ``[block] * n``."""

    code: ClassVar[str] = "BN509"
    only: ClassVar[tuple[str, ...]] = ("chain", "mlp")
    steps: int = 320
    times: int = 2

    def build(self, trial: Trial) -> None:
        unit, forward = trial.site.unit, trial.site.unit.forward

        def again(x: Tensor) -> Tensor:
            for _ in range(self.times):
                x = x + forward(x)
            return x

        unit.forward = again  # type: ignore[method-assign]
        trial.notes["spy"] = trial.spy(trial.site.name)
        trial.blame(trial.site.name)

    def took_place(self, trial: Trial) -> bool:
        # One batch is noisy: the middle of the last twenty.
        last = [distance(trial.notes["spy"], -at - self.times, -at - 1) for at in range(0, 20 * self.times, self.times)]
        shift, ratio = map(median, zip(*last, strict=True))
        return shift > 0.3 or ratio > 0.6


@dataclass(frozen=True, kw_only=True)
class Rollouts(Injection):
    """Experience is collected in training mode: a few samples at a time, several times a step."""

    code: ClassVar[str] = "BN508"
    needs: ClassVar[str] = "once supervised"
    steps: int = 130
    times: int = 4
    size: int = 4

    def build(self, trial: Trial) -> None:
        trial.blame(trial.root)

    def collect(self, trial: Trial) -> Tensor:
        at = torch.randint(len(trial.data.x), (self.size,), generator=trial.generator)
        drawn: Tensor = trial.data.x[at]
        return drawn

    @torch.no_grad()
    def before(self, trial: Trial) -> None:
        for _ in range(self.times):
            trial.model(self.collect(trial))

    def took_place(self, trial: Trial) -> bool:
        tracked = int(trial.model.get_submodule(trial.root).num_batches_tracked)  # type: ignore[arg-type]
        return tracked > self.times * (trial.step - 1)


@dataclass(frozen=True, kw_only=True)
class OtherLabels(Rollouts):
    """Unlabeled data of another kind get their labels from the network in training mode."""

    times: int = 1
    size: int = 64

    def collect(self, trial: Trial) -> Tensor:
        return super().collect(trial).mul(2.0).add(1.0)


@dataclass(frozen=True, kw_only=True)
class DrawnOperation(Injection):
    """Each step draws one of several operations before a norm that they share, as a supernet does."""

    code: ClassVar[str] = "BN605"
    only: ClassVar[tuple[str, ...]] = ("chain", "mlp")
    severity: Severity = Severity.INFO
    number: int = 2

    def build(self, trial: Trial) -> None:
        unit = trial.site.unit
        choices = nn.ModuleList([unit.producer, *(copy.deepcopy(unit.producer) for _ in range(self.number - 1))])
        for choice in choices[1:]:
            choice.reset_parameters()  # type: ignore[operator]
        unit.add_module("choices", choices)
        drawn = trial.notes["drawn"] = []

        def forward(x: Tensor) -> Any:
            at = int(torch.randint(self.number, ())) if unit.training else 0
            if unit.training:
                drawn.append(at)
            return unit.act(unit.norm(choices[at](x)))

        unit.forward = forward  # type: ignore[method-assign]
        trial.notes["spy"] = trial.spy(trial.site.name)
        trial.blame(trial.site.name)

    def took_place(self, trial: Trial) -> bool:
        spy, drawn = trial.notes["spy"], trial.notes["drawn"]
        changed = [i for i, (a, b) in enumerate(pairwise(drawn)) if a != b]
        shift, ratio = distance(spy, changed[-1], changed[-1] + 1)
        return len(changed) > len(drawn) / 4 and (shift > 0.25 or ratio > 0.5)


PLACES: tuple[Injection, ...] = (
    Rollouts(name="rollouts"),
    OtherLabels(name="labels-for-another-kind"),
    RepeatedBlock(name="block-twice"),
    RepeatedBlock(name="block-three-times", times=3),
    DrawnOperation(name="drawn-operation"),
)
