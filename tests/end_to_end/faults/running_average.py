"""Faults of the running average: its momentum, its warm-up, its lag."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bnmonitor import Severity
from tests.end_to_end.faults.injection import Injection, evaluation_mode
from tests.end_to_end.faults.networks import Network, batchnorms
from tests.end_to_end.faults.power import Effect
from tests.end_to_end.faults.recipes import Recipe
from tests.end_to_end.faults.trial import Trial


@dataclass(frozen=True, kw_only=True)
class Momentum(Injection):
    """A momentum that means something else here, in one layer or in all."""

    value: float | None = 0.9
    everywhere: bool = False
    steps: int = 60

    def _set(self, trial: Trial) -> None:
        layers = batchnorms(trial.model)
        chosen = trial.order if self.everywhere else [trial.site.name]
        for name in chosen:
            layers[name].momentum = self.value
        trial.blame(chosen[0])

    def build(self, trial: Trial) -> None:
        if self.onset == 0:
            self._set(trial)

    def before(self, trial: Trial) -> None:
        if trial.fresh and self.onset:
            self._set(trial)

    def took_place(self, trial: Trial) -> bool:
        return trial.site.norm.momentum == self.value


@dataclass(frozen=True, kw_only=True)
class InvertedMomentum(Momentum):
    """Another framework's convention."""

    code: ClassVar[str] = "BN301"


@dataclass(frozen=True, kw_only=True)
class MixedMomentum(Injection):
    """A part of the network comes from elsewhere, with a momentum ten times as large."""

    code: ClassVar[str] = "BN301"
    name: str = "mixed-momentum"
    steps: int = 60

    def build(self, trial: Trial) -> None:
        for layer in batchnorms(trial.model).values():
            layer.momentum = 0.03
        trial.site.norm.momentum = 0.3

    def took_place(self, trial: Trial) -> bool:
        return {layer.momentum for layer in batchnorms(trial.model).values()} == {0.03, 0.3}


@dataclass(frozen=True, kw_only=True)
class DegenerateMomentum(Momentum):
    """A momentum of nought, of one, or none at all, which is no fault before the second epoch."""

    code: ClassVar[str] = "BN302"

    def crossed(self, trial: Trial) -> bool:
        return self.value is not None or trial.step >= len(trial.loader)


@dataclass(frozen=True, kw_only=True)
class EarlyEvaluation(Injection):
    """Evaluated while the statistics are still mostly zero and one."""

    code: ClassVar[str] = "BN303"
    needs: ClassVar[str] = "once"
    steps: int = 60
    evaluate_every: int = 8
    momentum: float = 0.1

    def recipe(self, recipe: Recipe) -> Recipe:
        return replace(recipe, momentum=self.momentum)

    def build(self, trial: Trial) -> None:
        trial.blame(trial.order[0])

    def crossed(self, trial: Trial) -> bool:
        return trial.step + 1 >= self.evaluate_every

    def took_place(self, trial: Trial) -> bool:
        weight = (1 - self.momentum) ** self.evaluate_every
        return weight > (0.3 if self.severity is Severity.ERROR else 0.05)


CALM = 40
"""Steps at a low rate after which running statistics of momentum .1 have caught up with every layer."""


def _slow_down(trial: Trial) -> None:
    """Late in a run: the network hardly moves any more, and the running statistics come to rest."""
    for scheduler in trial.schedulers:
        scheduler.base_lrs = [rate / 100 for rate in scheduler.base_lrs]


def _remember(trial: Trial, momentum: float) -> None:
    """Give every layer a small momentum, which makes the statistics steady."""
    for layer in batchnorms(trial.model).values():
        layer.momentum = momentum


@dataclass(frozen=True, kw_only=True)
class LaggingLayer(Injection):
    """Late in a run: what comes into a layer has changed for good, and its momentum is too small to follow."""

    code: ClassVar[str] = "BN304"
    needs: ClassVar[str] = "once"
    noisy: bool = True
    onset: int = 60
    steps: int = 320
    factor: float = 2.0
    momentum: float = 0.002

    def build(self, trial: Trial) -> None:
        trial.notes.update(spy=trial.spy(trial.site.name), lag=[])
        trial.blame(trial.site.name)

    @torch.no_grad()
    def before(self, trial: Trial) -> None:
        if trial.fresh:
            _slow_down(trial)
        if trial.step == self.onset + CALM:
            _remember(trial, self.momentum)
            trial.site.producer.weight *= self.factor
            trial.notes["lag"].clear()
        trial.notes["running"] = trial.site.norm.running_var.clone()

    def after(self, trial: Trial) -> None:
        truth = trial.notes["spy"].var[-1], trial.notes["running"]
        trial.notes["lag"].append(truth)

    def crossed(self, trial: Trial) -> bool:
        """Over in two windows in a row."""
        trial.notes["peak"] = max(trial.notes.get("peak", 0.0), self._lag(trial, 0))
        return all(self._lag(trial, back) > self._limit for back in (0, 64))

    @property
    def _limit(self) -> float:
        return 0.7 if self.severity is Severity.ERROR else 0.2

    def _lag(self, trial: Trial, back: int) -> float:
        seen = trial.notes["lag"][: max(0, len(trial.notes["lag"]) - back)][-64:]
        if len(seen) < 20:
            return 0.0
        batch, running = (torch.stack(values).mean(0) for values in zip(*seen, strict=True))
        return float((0.5 * (batch / running).log()).abs().median()) * len(seen) / 64

    def took_place(self, trial: Trial) -> bool:
        return bool(trial.notes["peak"] > self._limit)

    def effect(self, trial: Trial) -> Effect:
        """The largest lag, with the noise of the mean over a window."""
        ratios = torch.stack([0.5 * (batch / running).log() for batch, running in trial.notes["lag"][:64]])
        noise = float(ratios.median(1).values.std()) / math.sqrt(len(ratios))
        return Effect(trial.notes["peak"], self._limit, noise)


@dataclass(frozen=True, kw_only=True)
class ForeignStatistics(Injection):
    """Somebody writes statistics that belong to another network; only an evaluation can tell at once."""

    code: ClassVar[str] = "BN305"
    needs: ClassVar[str] = "supervised once"
    name: str = "foreign-statistics"
    onset: int = 30
    steps: int = 100

    def build(self, trial: Trial) -> None:
        trial.blame(trial.site.name)

    def options(self, trial: Trial) -> dict[str, Any]:
        return {"probe": True}

    @torch.no_grad()
    def after(self, trial: Trial) -> None:
        norm = trial.site.norm
        if trial.fresh:
            _slow_down(trial)
        if trial.step == self.onset + CALM:
            _remember(trial, 0.001)
            trial.notes["before"] = norm.running_var.clone()
            norm.running_mean += 2 * norm.running_var.sqrt()
            norm.running_var *= 16

    def crossed(self, trial: Trial) -> bool:
        return trial.step + 1 >= self.evaluate_every

    def took_place(self, trial: Trial) -> bool:
        return bool((trial.site.norm.running_var / trial.notes["before"]).median() > 4)


class ShortMemory(nn.BatchNorm2d):
    """Averages its statistics by hand, with the convention of another framework."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        with torch.no_grad():
            mean, var = x.float().mean((0, 2, 3)), x.float().var((0, 2, 3))
            self.running_mean.mul_(0.1).add_(0.9 * mean)
            self.running_var.mul_(0.1).add_(0.9 * var)
        return nn.functional.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)


@dataclass(frozen=True, kw_only=True)
class Handwritten(Injection):
    """A layer writes its own statistics and keeps a tenth of the old ones; its momentum says .1, as everywhere."""

    code: ClassVar[str] = "BN306"
    name: str = "handwritten-short-memory"
    needs: ClassVar[str] = "conv once"
    steps: int = 165

    def fits(self, network: Network) -> bool:
        return super().fits(network) and all(type(n) is nn.BatchNorm2d for n in batchnorms(network.build(0)).values())

    def build(self, trial: Trial) -> None:
        trial.site.norm.__class__ = ShortMemory
        trial.blame(trial.site.name)

    def took_place(self, trial: Trial) -> bool:
        return int(trial.site.norm.num_batches_tracked) == 0 and bool(trial.site.norm.running_mean.any())


@dataclass(frozen=True, kw_only=True)
class SlowAverage(Injection):
    """An average of weights and buffers that remembers hundreds of steps is evaluated after a hundred."""

    code: ClassVar[str] = "BN303"
    name: str = "averaged-too-early"
    needs: ClassVar[str] = "supervised once"
    steps: int = 110
    evaluate_every: int = 100
    decay: float = 0.995
    severity: Severity = Severity.ERROR

    def build(self, trial: Trial) -> None:
        decay = get_ema_multi_avg_fn(self.decay)
        trial.notes["average"] = AveragedModel(trial.model, multi_avg_fn=decay, use_buffers=True)
        trial.blame(f"average.module.{trial.order[0]}")

    def watched(self, trial: Trial) -> Any:
        return {"model": trial.model, "average": trial.notes["average"]}

    def after(self, trial: Trial) -> None:
        trial.notes["average"].update_parameters(trial.model)

    @contextmanager
    def evaluating(self, trial: Trial) -> Iterator[None]:
        with evaluation_mode(trial.model, trial.notes["average"]):
            yield

    def answer(self, trial: Trial, x: Tensor) -> None:
        trial.notes["average"](x)

    def crossed(self, trial: Trial) -> bool:
        return trial.step + 1 >= self.evaluate_every

    def took_place(self, trial: Trial) -> bool:
        return self.decay**self.evaluate_every > 0.3


RUNNING_AVERAGE: tuple[Injection, ...] = (
    InvertedMomentum(name="momentum-half", value=0.5),
    InvertedMomentum(name="momentum-.9", value=0.9, severity=Severity.ERROR),
    InvertedMomentum(name="momentum-.99-everywhere", value=0.99, everywhere=True, severity=Severity.ERROR),
    InvertedMomentum(name="momentum-.9-midway", value=0.9, onset=43, steps=90, severity=Severity.ERROR),
    MixedMomentum(),
    DegenerateMomentum(name="momentum-0", value=0.0, severity=Severity.ERROR),
    DegenerateMomentum(name="momentum-0-everywhere", value=0.0, everywhere=True, severity=Severity.ERROR),
    DegenerateMomentum(name="momentum-1", value=1.0),
    DegenerateMomentum(name="momentum-none", value=None, everywhere=True, steps=120, severity=Severity.INFO),
    EarlyEvaluation(name="evaluated-after-8", steps=12, severity=Severity.ERROR),
    EarlyEvaluation(name="evaluated-after-20", evaluate_every=20, severity=Severity.INFO),
    EarlyEvaluation(
        name="momentum-.01-too-short", momentum=0.01, evaluate_every=80, steps=100, severity=Severity.ERROR
    ),
    SlowAverage(),
    Handwritten(),
    LaggingLayer(name="lagging-x2"),
    LaggingLayer(name="lagging-x4", factor=4.0, severity=Severity.ERROR),
    ForeignStatistics(),
)
