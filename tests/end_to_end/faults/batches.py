"""Faults of the data: how batches are drawn, and what is in them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from bnmonitor import Severity
from bnmonitor.measures.moments import looked_at
from tests.end_to_end.faults.data import Data
from tests.end_to_end.faults.injection import Injection, inputs
from tests.end_to_end.faults.power import CERTAIN, Effect
from tests.end_to_end.faults.recipes import Recipe
from tests.end_to_end.faults.trial import Trial


@dataclass(frozen=True, kw_only=True)
class CorrelatedBatches(Injection):
    """A batch holds two classes only, or each sample many times over.

    Attributes:
        how: ``classes`` or ``copies``.
        classes: How many classes are in a batch: the fewer, the stronger the fault.
        block: How many batches in a row hold the same ones.
    """

    code: ClassVar[str] = "BN601"
    needs: ClassVar[str] = "once supervised"
    without: ClassVar[str] = "small"
    noisy: bool = True
    steps: int = 280
    how: str = "classes"
    batch_size: int = 32
    classes: int = 2
    block: int = 1

    def recipe(self, recipe: Recipe) -> Recipe:
        # Several batches of the same classes in a row need clipped gradients, or some networks are lost.
        return replace(recipe, batch=self.batch_size, clip=1.0 if self.block > 1 else recipe.clip)

    def build(self, trial: Trial) -> None:
        trial.notes["spy"] = trial.spy(trial.root)
        trial.blame(trial.root)

    def loader(self, trial: Trial) -> Any:
        data, size = trial.data, trial.recipe.batch
        generator = torch.Generator().manual_seed(trial.seed)
        order: list[list[int]] = []
        pair = torch.arange(0)
        for i in range(self.steps if self.block > 1 else 60):
            if self.how == "classes":
                pair = torch.randperm(10, generator=generator)[: self.classes] if i % self.block == 0 else pair
                mine = (data.y[:, None] == pair).any(1).nonzero().flatten()
                order.append(mine[torch.randint(0, len(mine), (size,), generator=generator)].tolist())
            else:
                few = torch.randint(0, len(data.x), (size // 8,), generator=generator)
                order.append(few.repeat(8).tolist())
        return DataLoader(TensorDataset(data.x, data.y), batch_sampler=order)

    def batch(self, trial: Trial, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        trial.notes["classes"], trial.notes["different"] = len(y.unique()), len(x.flatten(1).unique(dim=0))
        return x, y

    def crossed(self, trial: Trial) -> bool:
        return trial.step >= 50

    def took_place(self, trial: Trial) -> bool:
        return bool(trial.notes["classes"] <= self.classes or trial.notes["different"] <= 4)

    def effect(self, trial: Trial) -> Effect:
        """What all batches that may be drawn vary by, over what the rule takes for independence.

        That is the variance between the samples of a batch over their number, and what it grants to weights that turn
        by 0.7 of their distance from zero. Its log is off by ``sqrt(3 / T + (kurtosis - 1) / draws)``, with a window of
        ``T`` steps; it must exceed 3, and 3.5 times that.
        """
        if not self.noisy:
            return CERTAIN
        x = inputs(trial, trial.root)
        x = x if x.dim() > 2 else x[..., None]
        total = x.transpose(0, 1).flatten(1)
        mean, var = total.mean(1), total.var(1, correction=0)
        samples, y, n = x.flatten(2).mean(2), trial.data.y, trial.recipe.batch
        if self.how == "classes":
            mine = [samples[(y == a) | (y == b)] for a, b in combinations(range(10), 2)]
            within = torch.stack([s.var(0) for s in mine]).mean(0)
            varies = torch.stack([s.mean(0) for s in mine]).var(0, correction=0) + within / n
        else:
            few = n // 8
            within = samples.var(0) * (few - 1) / few * n / (n - 1)
            varies = samples.var(0) / few
        away = float((mean.square() / var).mean())
        expected = within / n / var + 0.7**2 / 2 * away**2 / (1 + away)
        kurtosis = float((((total - mean[:, None]) ** 4).mean(1) / var.square()).median())
        window = 64
        draws = window * (n - 1) if x.shape[2:].numel() == 1 else looked_at(n) - 1
        noise = math.sqrt(3 / window + (max(kurtosis, 3.0) - 1) / draws)
        means = Effect.of_logs(float((varies / var / expected).median()), max(3.0, math.exp(3.5 * noise)), noise)
        return max(means, self._of_variances(trial, x), key=lambda effect: effect.sigmas)

    def _of_variances(self, trial: Trial, x: Tensor) -> Effect:
        """The same of the log variances of batches as the fault draws them, without what all channels share."""
        n, generator = trial.recipe.batch, torch.Generator().manual_seed(trial.seed + 3)
        own = (x.flatten(2) - x.transpose(0, 1).flatten(1).mean(1)[:, None]).square().mean(2)
        uneven = own.var(0) / own.mean(0).square()
        logs = []
        for _ in range(256):
            mine = torch.arange(len(x))
            if self.how == "classes":
                few = torch.randperm(10, generator=generator)[: self.classes]
                mine = (trial.data.y[:, None] == few).any(1).nonzero().flatten()
            drawn = torch.randint(0, len(mine), (n if self.how == "classes" else n // 8,), generator=generator)
            logs.append(own[mine[drawn]].mean(0).log())
        scaled = torch.stack(logs) / (uneven / n).sqrt()
        strengths = torch.linalg.svdvals(scaled - scaled.mean(0)).square() / len(scaled) / scaled.shape[1]
        noise = math.sqrt(3 / 64 + 5 / 31)
        return Effect.of_logs(float(strengths[1:].sum()) / 0.5, max(3.0, math.exp(3.5 * noise / 1.5)), noise)


@dataclass(frozen=True, kw_only=True)
class AlternatingDomains(Injection):
    """Every other batch comes from somewhere else."""

    code: ClassVar[str] = "BN602"
    needs: ClassVar[str] = "once supervised"
    without: ClassVar[str] = "small"
    noisy: bool = True
    name: str = "alternating-domains"
    steps: int = 200
    contrast: float = 0.6
    shift: float = 1.0

    def build(self, trial: Trial) -> None:
        trial.notes["spy"] = trial.spy(trial.root)
        trial.blame(trial.root)

    def batch(self, trial: Trial, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return (self.contrast * x + self.shift if trial.step % 2 else x), y

    def crossed(self, trial: Trial) -> bool:
        return trial.step >= 50

    def took_place(self, trial: Trial) -> bool:
        return self._alternation(trial) < -0.5

    def effect(self, trial: Trial) -> Effect:
        """The correlation of neighbors; over ``T`` steps it is off by ``sqrt((1 - r * r) / T)`` (Bartlett 1946)."""
        r = self._alternation(trial)
        return Effect(-r, 0.5, math.sqrt((1 - r * r) / 60))

    def _alternation(self, trial: Trial) -> float:
        spy = trial.notes["spy"]
        found = []
        for rows in (torch.stack(spy.mean[-60:]).double(), torch.stack(spy.var[-60:]).double().log()):
            away = rows - rows.mean(0)
            found.append(float(((away[1:] * away[:-1]).mean(0) / away.square().mean(0)).median()))
        return min(found)


@dataclass(frozen=True, kw_only=True)
class ValidationShift(Injection):
    """Validation data is prepared in another way."""

    code: ClassVar[str] = "BN603"
    needs: ClassVar[str] = "supervised"
    without: ClassVar[str] = "small"
    name: str = "validation-shift"
    severity: Severity = Severity.INFO
    steps: int = 180

    def build(self, trial: Trial) -> None:
        trial.blame(trial.root)

    def data(self, data: Data) -> Data:
        return replace(data, x_val=1.7 * data.x_val + 0.7)

    def crossed(self, trial: Trial) -> bool:
        return trial.step + 1 >= self.evaluate_every

    def took_place(self, trial: Trial) -> bool:
        return bool(trial.data.x_val.std() > 1.5 * trial.data.x.std())


@dataclass(frozen=True, kw_only=True)
class Padding(Injection):
    """Sequences of unequal length are filled up with zeros."""

    code: ClassVar[str] = "BN604"
    only: ClassVar[tuple[str, ...]] = ("conv1d",)
    steps: int = 120
    share: float = 0.2

    def build(self, trial: Trial) -> None:
        trial.blame(trial.root)

    def data(self, data: Data) -> Data:
        return replace(data, x=self._padded(data.x), x_val=self._padded(data.x_val))

    def _padded(self, x: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        ends = 64 - (torch.rand(len(x), generator=generator) * 2 * self.share * 64).long()
        return x * (torch.arange(64) < ends[:, None])[:, None]

    def took_place(self, trial: Trial) -> bool:
        tail = (trial.data.x.flip(-1) != 0).long().cumsum(-1) == 0
        return bool(tail.double().mean() > 0.75 * self.share)


@dataclass(frozen=True, kw_only=True)
class OutlierBatch(Injection):
    """One batch is not normalized, and nothing keeps it out of the running statistics."""

    code: ClassVar[str] = "BN606"
    needs: ClassVar[str] = "once"
    onset: int = 63
    steps: int = 140
    evaluate_every: int = 40
    factor: float = 100.0

    def build(self, trial: Trial) -> None:
        trial.notes["spy"] = trial.spy(trial.root)
        trial.blame(trial.root)

    def batch(self, trial: Trial, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return (x * self.factor if trial.fresh else x), y

    def took_place(self, trial: Trial) -> bool:
        before, odd, after = (trial.notes["spy"].var[self.onset + i].median() for i in (-1, 0, 1))
        return bool(odd > 25 * before and after < 3 * before)


BATCHES: tuple[Injection, ...] = (
    CorrelatedBatches(name="two-classes-a-batch"),
    CorrelatedBatches(name="each-sample-eight-times", how="copies"),
    CorrelatedBatches(name="two-classes-for-eight-batches", block=8, noisy=False, tried_on="preactivation"),
    AlternatingDomains(),
    AlternatingDomains(name="alternating-contrast", contrast=0.6, shift=0.0, steps=240),
    ValidationShift(),
    OutlierBatch(name="one-batch-x100"),
    OutlierBatch(name="one-batch-x10", factor=10.0),
    Padding(name="padding"),
    Padding(name="padding-half", share=0.45, severity=Severity.ERROR),
)
