"""Faults of the architecture: what lies before and behind a layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bnmonitor import Severity
from tests.end_to_end.faults.injection import Injection
from tests.end_to_end.faults.networks import Losses, Network, compete
from tests.end_to_end.faults.power import CERTAIN, Effect
from tests.end_to_end.faults.trial import Trial


@dataclass(frozen=True, kw_only=True)
class NormBehind(Injection):
    """The normalization comes after the nonlinearity."""

    code: ClassVar[str] = "BN801"
    needs: ClassVar[str] = "relu"
    name: str = "norm-after-activation"
    severity: Severity = Severity.INFO
    steps: int = 60

    def build(self, trial: Trial) -> None:
        unit = trial.site.unit
        trial.notes["spy"] = trial.spy(trial.site.name)
        unit.forward = lambda x: unit.norm(unit.act(unit.producer(x)))  # type: ignore[method-assign]
        trial.blame(trial.site.name)

    def took_place(self, trial: Trial) -> bool:
        return bool((trial.notes["spy"].mean[-1] >= 0).all())


@dataclass(frozen=True, kw_only=True)
class DropoutBefore(Injection):
    """Dropout between the last nonlinearity and a layer: it sees another variance in evaluation."""

    code: ClassVar[str] = "BN802"
    noisy: bool = True
    steps: int = 180
    p: float = 0.7

    def build(self, trial: Trial) -> None:
        unit = trial.site.unit
        unit.drop = nn.Dropout(self.p)
        unit.forward = lambda x: unit.act(unit.norm(unit.producer(unit.drop(x))))  # type: ignore[method-assign]
        trial.blame(trial.site.name)
        trial.notes["logs"] = []

        def measure(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if not module.training:
                var = args[0].detach().double().transpose(0, 1).flatten(1).var(1)
                trial.notes["logs"].append(float((var / module.running_var).median().log()))

        trial.site.norm.register_forward_pre_hook(measure)

    def crossed(self, trial: Trial) -> bool:
        return self.severity is Severity.INFO or self._logs(trial)[-1] < math.log(0.8)

    def took_place(self, trial: Trial) -> bool:
        return self.severity is Severity.INFO or float(self._logs(trial).mean()) < math.log(0.9)

    def effect(self, trial: Trial) -> Effect:
        """How much smaller the variance is in evaluation, with its spread from batch to batch."""
        if self.severity is Severity.INFO:
            return CERTAIN
        logs = self._logs(trial)
        return Effect(-float(logs.mean()), -math.log(0.8), float(logs.std()))

    def _logs(self, trial: Trial) -> Tensor:
        return torch.tensor(trial.notes["logs"] or [0.0])


@dataclass(frozen=True, kw_only=True)
class RedundantBias(Injection):
    """The producer has a bias that the layer takes away again."""

    code: ClassVar[str] = "BN803"
    name: str = "redundant-bias"
    severity: Severity = Severity.INFO
    steps: int = 60

    def build(self, trial: Trial) -> None:
        producer = trial.site.producer
        producer.bias = nn.Parameter(torch.zeros(trial.site.norm.num_features))
        trial.blame(trial.site.name)

    def took_place(self, trial: Trial) -> bool:
        gradient = trial.site.producer.bias.grad
        return gradient is not None and bool(gradient.abs().max() < 1e-3)


class Tokens(nn.Module):
    """A picture as eight tokens, whose normalization takes the token for the channel."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.out = nn.Linear(8, 16, bias=False), nn.BatchNorm1d(8), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.norm(self.embed(x.view(-1, 8, 8)))).mean(1))


@dataclass(frozen=True, kw_only=True)
class WrongAxis(Injection):
    """BatchNorm1d on samples, time, features."""

    code: ClassVar[str] = "BN804"
    only: ClassVar[tuple[str, ...]] = ("mlp",)
    name: str = "wrong-axis"
    steps: int = 60

    def variant(self, network: Network) -> Network:
        return replace(network, make=Tokens)

    def build(self, trial: Trial) -> None:
        trial.blame("norm")

    def took_place(self, trial: Trial) -> bool:
        return trial.model.norm.num_features != trial.model.embed.out_features


@dataclass(frozen=True, kw_only=True)
class GradientPenalty(Injection):
    """A penalty on the gradient of each sample, through layers that mix samples."""

    code: ClassVar[str] = "BN805"
    only: ClassVar[tuple[str, ...]] = ("gan",)
    name: str = "gradient-penalty"
    steps: int = 60

    def build(self, trial: Trial) -> None:
        trial.blame(trial.root)

    def losses(self, trial: Trial) -> Callable[[nn.Module, Tensor, Tensor], Losses]:
        def penalized(model: Any, x: Tensor, y: Tensor) -> Losses:
            between = (x + 0.1 * torch.randn_like(x)).requires_grad_()
            (slope,) = torch.autograd.grad(model.discriminator(between).sum(), between, create_graph=True)
            penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
            trial.notes["penalty"] = float(penalty.detach())
            for part, loss in compete(model, x, y):
                yield part, loss + penalty if part == 0 else loss

        return penalized

    def took_place(self, trial: Trial) -> bool:
        return bool(trial.notes["penalty"] >= 0)


@dataclass(frozen=True, kw_only=True)
class MissingNorm(Injection):
    """One convolution among normalized ones goes without."""

    code: ClassVar[str] = "BN806"
    needs: ClassVar[str] = "conv relu"
    name: str = "missing-norm"
    severity: Severity = Severity.INFO
    steps: int = 60

    def build(self, trial: Trial) -> None:
        trial.blame(trial.site.name.removesuffix("norm") + "producer")
        trial.site.unit.norm = nn.Identity()

    def took_place(self, trial: Trial) -> bool:
        return isinstance(trial.site.unit.norm, nn.Identity)


ARCHITECTURE: tuple[Injection, ...] = (
    NormBehind(),
    DropoutBefore(name="dropout-.7-before"),
    DropoutBefore(name="dropout-.1-before", p=0.1, severity=Severity.INFO, steps=60, noisy=False),
    RedundantBias(),
    WrongAxis(),
    GradientPenalty(),
    MissingNorm(),
)
