"""Faults of the numbers: not finite, collapsed, exploded, out of range."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bnmonitor import Severity
from tests.end_to_end.faults.data import Data
from tests.end_to_end.faults.injection import Injection
from tests.end_to_end.faults.networks import Network
from tests.end_to_end.faults.power import Effect
from tests.end_to_end.faults.recipes import Recipe
from tests.end_to_end.faults.trial import Trial


@dataclass(frozen=True, kw_only=True)
class InfinitePixel(Injection):
    """One value of one batch is infinite."""

    code: ClassVar[str] = "BN101"
    name: str = "infinite-pixel"
    severity: Severity = Severity.ERROR
    onset: int = 63
    steps: int = 100

    def build(self, trial: Trial) -> None:
        trial.blame(trial.root)

    def batch(self, trial: Trial, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if trial.fresh:
            x = x.clone()
            x[3].view(-1)[x[3].numel() // 2] = torch.inf
        return x, y

    def took_place(self, trial: Trial) -> bool:
        return not trial.model.get_submodule(trial.root).running_mean.isfinite().all()


@dataclass(frozen=True, kw_only=True)
class NanWeight(Injection):
    """The weights of one channel become NaN, as after a bad update."""

    code: ClassVar[str] = "BN101"
    name: str = "nan-weight"
    severity: Severity = Severity.ERROR
    onset: int = 63
    steps: int = 100

    @torch.no_grad()
    def before(self, trial: Trial) -> None:
        if trial.fresh:
            trial.site.producer.weight[2] = torch.nan
            trial.blame(trial.site.name, channels=[2])

    def took_place(self, trial: Trial) -> bool:
        return bool(trial.site.norm.running_var[2].isnan())


@dataclass(frozen=True, kw_only=True)
class BadBuffer(Injection):
    """Somebody writes what no average can be: an infinite mean, a negative variance."""

    code: ClassVar[str] = "BN101"
    severity: Severity = Severity.ERROR
    onset: int = 63
    steps: int = 100
    buffer: str = "running_mean"
    value: float = torch.inf

    @torch.no_grad()
    def before(self, trial: Trial) -> None:
        if trial.fresh:
            getattr(trial.site.norm, self.buffer)[1] = self.value
            trial.blame(trial.site.name, channels=[1])

    def took_place(self, trial: Trial) -> bool:
        value = float(getattr(trial.site.norm, self.buffer)[1])
        return value != value or value < 0 or value == torch.inf


@dataclass(frozen=True, kw_only=True)
class SkippedStep(Injection):
    """The scaler skips a step whose gradients overflow; the batch behind it has already been averaged in."""

    code: ClassVar[str] = "BN102"
    onset: int = 63
    steps: int = 100
    factor: float = 100.0

    def fits(self, network: Network) -> bool:
        return super().fits(network) and network.name != "gan"

    def build(self, trial: Trial) -> None:
        trial.notes["scaler"] = torch.amp.GradScaler("cpu", init_scale=1024.0)
        trial.blame(trial.root)

    def options(self, trial: Trial) -> dict[str, Any]:
        return {"scaler": trial.notes["scaler"]}

    def batch(self, trial: Trial, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return (x * self.factor if trial.fresh else x), y

    def backward(self, trial: Trial, loss: Tensor) -> None:
        trial.notes["scaler"].scale(loss).backward()
        if trial.fresh:
            next(p.grad for p in trial.model.parameters() if p.grad is not None).fill_(torch.inf)

    def update(self, trial: Trial, optimizer: Optimizer) -> None:
        trial.notes["scaler"].step(optimizer)
        trial.notes["scaler"].update()

    def took_place(self, trial: Trial) -> bool:
        return bool(trial.notes["scaler"].get_scale() == 512.0)


@dataclass(frozen=True, kw_only=True)
class GuardedStep(Injection):
    """A guard skips a step with large gradients, as many training loops do; nobody guards the statistics."""

    code: ClassVar[str] = "BN102"
    name: str = "guarded-step"
    onset: int = 63
    steps: int = 100
    factor: float = 100.0

    def fits(self, network: Network) -> bool:
        return super().fits(network) and network.name != "gan"

    def build(self, trial: Trial) -> None:
        trial.notes["skipped"] = 0
        trial.blame(trial.root)

    def batch(self, trial: Trial, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return (x * self.factor if trial.fresh else x), y

    def update(self, trial: Trial, optimizer: Optimizer) -> None:
        if trial.step == self.onset:
            trial.notes["skipped"] += 1
        else:
            optimizer.step()

    def took_place(self, trial: Trial) -> bool:
        return bool(trial.notes["skipped"] == 1)


@dataclass(frozen=True, kw_only=True)
class HalfRange(Injection):
    """Under fp16, what comes into a layer nears the largest number."""

    code: ClassVar[str] = "BN103"
    needs: ClassVar[str] = "conv once supervised"
    noisy: bool = True
    onset: int = 70
    steps: int = 130
    target: float = 2e4

    def build(self, trial: Trial) -> None:
        trial.notes["spy"] = trial.spy(trial.site.name)
        trial.blame(trial.site.name)

    def options(self, trial: Trial) -> dict[str, Any]:
        return {"sample_every_n_steps": 20}

    def forward(self, trial: Trial) -> AbstractContextManager[None]:
        return torch.autocast("cpu", torch.float16)

    @torch.no_grad()
    def before(self, trial: Trial) -> None:
        if trial.fresh:
            trial.site.producer.weight.mul_(self.target / max(trial.notes["spy"].highest[-20:]))

    @property
    def _limit(self) -> float:
        return 6.5e3 if self.severity < Severity.ERROR else 3.2e4

    def crossed(self, trial: Trial) -> bool:
        return trial.notes["spy"].highest[-1] > self._limit

    def took_place(self, trial: Trial) -> bool:
        return max(trial.notes["spy"].highest[-20:]) > self._limit

    def effect(self, trial: Trial) -> Effect:
        """The largest value of a batch, with its spread from batch to batch."""
        highest = torch.tensor(trial.notes["spy"].highest[self.onset :]).double().log()
        return Effect(float(highest.mean()), math.log(self._limit), float(highest.std()))


@dataclass(frozen=True, kw_only=True)
class HalfBuffers(Injection):
    """The whole model in bf16, with a momentum whose updates round away."""

    code: ClassVar[str] = "BN104"
    needs: ClassVar[str] = "supervised"
    name: str = "bf16-buffers"
    steps: int = 60

    def recipe(self, recipe: Recipe) -> Recipe:
        return replace(recipe, momentum=0.01)

    def build(self, trial: Trial) -> None:
        trial.model.to(torch.bfloat16)

    def data(self, data: Data) -> Data:
        return replace(data, x=data.x.bfloat16(), x_val=data.x_val.bfloat16())

    def took_place(self, trial: Trial) -> bool:
        return trial.site.norm.running_mean.dtype is torch.bfloat16


@dataclass(frozen=True, kw_only=True)
class ZeroWeights(Injection):
    """Nothing comes into some channels any more."""

    code: ClassVar[str] = "BN105"
    onset: int = 60
    steps: int = 200
    share: float = 0.12

    def build(self, trial: Trial) -> None:
        trial.notes["spy"] = trial.spy(trial.site.name)
        trial.blame(trial.site.name, channels=trial.some(self.share))

    @torch.no_grad()
    def before(self, trial: Trial) -> None:
        trial.site.producer.weight[list(trial.channels or ())] = 0

    @property
    def _judged(self) -> float:
        return 0.25 if self.severity is Severity.ERROR else 0.05

    def over(self, trial: Trial) -> list[int]:
        norm, chosen = trial.site.norm, list(trial.channels or ())
        # A single channel counts once it is below eps itself, a share of the layer from ten times that on.
        alone = len(chosen) <= self._judged * norm.num_features
        low = torch.maximum(norm.running_var, trial.notes["spy"].var[-1]) < norm.eps * (1 if alone else 10)
        return [c for c in chosen if low[c]]

    def crossed(self, trial: Trial) -> bool:
        count, size = len(trial.channels or ()), trial.site.norm.num_features
        return len(self.over(trial)) > min(count - 1, self._judged * size)

    def took_place(self, trial: Trial) -> bool:
        return self.crossed(trial)


@dataclass(frozen=True, kw_only=True)
class ScaledWeights(Injection):
    """The weights before a layer jump by a factor."""

    code: ClassVar[str] = "BN106"
    onset: int = 100
    steps: int = 150
    factor: float = 30.0
    share: float = 1.0

    def fits(self, network: Network) -> bool:
        """Where the network is calm before; plain SGD leaves the two of a GAN restless."""
        return super().fits(network) and network.name != "gan"

    @torch.no_grad()
    def before(self, trial: Trial) -> None:
        if trial.fresh:
            chosen = trial.some(self.share)
            trial.notes["before"] = trial.site.norm.running_var[chosen].clone()
            trial.site.producer.weight[chosen] *= self.factor
            trial.blame(trial.site.name, channels=chosen if self.share < 1 else None)

    def took_place(self, trial: Trial) -> bool:
        grown = trial.site.norm.running_var[trial.some(self.share)] / trial.notes["before"]
        return bool(grown.median() > 100)


@dataclass(frozen=True, kw_only=True)
class ScaledData(Injection):
    """The pipeline forgets to divide."""

    code: ClassVar[str] = "BN106"
    name: str = "scaled-data"
    severity: Severity = Severity.WARNING
    onset: int = 100
    steps: int = 150
    factor: float = 30.0

    def fits(self, network: Network) -> bool:
        """Where the network is calm before; plain SGD leaves the two of a GAN restless."""
        return super().fits(network) and network.name != "gan"

    def build(self, trial: Trial) -> None:
        trial.notes["spy"] = trial.spy(trial.root)
        trial.blame(trial.root)

    def batch(self, trial: Trial, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x * self.factor, y

    def took_place(self, trial: Trial) -> bool:
        spy = trial.notes["spy"]
        return bool((spy.var[-1] / spy.var[0]).median() > 100)


@dataclass(frozen=True, kw_only=True)
class MeanOffset(Injection):
    """What comes into a layer moves away from zero, by so many deviations."""

    code: ClassVar[str] = "BN107"
    name: str = "mean-offset"
    onset: int = 100
    steps: int = 180
    deviations: float = 50.0

    def build(self, trial: Trial) -> None:
        norm = trial.site.norm
        trial.notes["add"] = torch.zeros(norm.num_features)

        def move(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
            return (args[0] + trial.notes["add"].view(1, -1, *[1] * (args[0].dim() - 2)),)

        norm.register_forward_pre_hook(move)
        trial.blame(trial.site.name)

    def before(self, trial: Trial) -> None:
        if trial.fresh:
            trial.notes["add"] = self.deviations * trial.site.norm.running_var.sqrt()

    def crossed(self, trial: Trial) -> bool:
        norm = trial.site.norm
        return bool((norm.running_mean.abs() / (norm.running_var + norm.eps).sqrt()).median() > 10)

    def took_place(self, trial: Trial) -> bool:
        return self.crossed(trial)


@dataclass(frozen=True, kw_only=True)
class RawInput(Injection):
    """Pixels from 0 to 255, as they lie in the file."""

    code: ClassVar[str] = "BN108"
    needs: ClassVar[str] = "supervised"
    without: ClassVar[str] = "small"
    name: str = "raw-input"
    severity: Severity = Severity.INFO
    steps: int = 100

    def data(self, data: Data) -> Data:
        low, high = data.x.min(), data.x.max()
        return replace(data, x=(data.x - low) / (high - low) * 255, x_val=(data.x_val - low) / (high - low) * 255)

    def build(self, trial: Trial) -> None:
        trial.notes["spy"] = trial.spy(trial.root)
        trial.blame(trial.root)

    def took_place(self, trial: Trial) -> bool:
        spy = trial.notes["spy"]
        far = (spy.mean[-1].abs() / spy.var[-1].sqrt()).median() > 5
        return bool(spy.var[-1].median() > 1e3 or far)


@dataclass(frozen=True, kw_only=True)
class RuinedCheckpoint(Injection):
    """The model is loaded from a training that had diverged."""

    code: ClassVar[str] = "BN109"
    needs: ClassVar[str] = "supervised"
    name: str = "ruined-checkpoint"
    severity: Severity = Severity.ERROR
    steps: int = 40
    size: float = 1e22

    @torch.no_grad()
    def build(self, trial: Trial) -> None:
        for name in trial.order[1:]:
            trial.model.get_submodule(name).running_var.fill_(self.size)
        trial.blame(trial.order[1])

    def took_place(self, trial: Trial) -> bool:
        return bool((trial.model.get_submodule(trial.order[1]).running_var > 1e12).all())


NUMERICS: tuple[Injection, ...] = (
    InfinitePixel(),
    NanWeight(),
    BadBuffer(name="infinite-buffer"),
    BadBuffer(name="negative-variance", buffer="running_var", value=-1e6),
    SkippedStep(name="skipped-step"),
    SkippedStep(name="skipped-step-infinite", factor=torch.inf, severity=Severity.ERROR),
    GuardedStep(),
    HalfRange(name="fp16-headroom"),
    HalfRange(name="fp16-overflow-near", target=4.8e4, severity=Severity.ERROR),
    HalfBuffers(),
    ZeroWeights(name="zero-one", share=0.01),
    ZeroWeights(name="zero-some", share=0.15),
    ZeroWeights(name="zero-many", share=0.4, severity=Severity.ERROR),
    ScaledWeights(name="weights-x30"),
    ScaledWeights(name="weights-x30-some", share=0.25),
    ScaledWeights(name="weights-x200-some", share=0.25, factor=200.0, severity=Severity.ERROR),
    ScaledData(),
    MeanOffset(),
    RawInput(),
)

CHECKPOINTS: tuple[Injection, ...] = (RuinedCheckpoint(),)
