"""Faults of the data: how batches are drawn, and what is in them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from bnmonitor import Severity
from tests.end_to_end.faults.data import Data
from tests.end_to_end.faults.injection import Injection
from tests.end_to_end.faults.trial import Trial


@dataclass(frozen=True, kw_only=True)
class CorrelatedBatches(Injection):
    """A batch holds two classes only, or each sample many times over."""

    code: ClassVar[str] = "BN601"
    needs: ClassVar[str] = "once supervised"
    without: ClassVar[str] = "small"
    steps: int = 240
    how: str = "classes"

    def build(self, trial: Trial) -> None:
        trial.notes["spy"] = trial.spy(trial.root)
        trial.blame(trial.root)

    def loader(self, trial: Trial) -> Any:
        data, size = trial.data, trial.recipe.batch
        generator = torch.Generator().manual_seed(trial.seed)
        order: list[list[int]] = []
        for _ in range(60):
            if self.how == "classes":
                pair = torch.randperm(10, generator=generator)[:2]
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
        return bool(trial.notes["classes"] <= 2 or trial.notes["different"] <= 4)


@dataclass(frozen=True, kw_only=True)
class AlternatingDomains(Injection):
    """Every other batch comes from somewhere else."""

    code: ClassVar[str] = "BN602"
    needs: ClassVar[str] = "once supervised"
    without: ClassVar[str] = "small"
    name: str = "alternating-domains"
    steps: int = 200

    def build(self, trial: Trial) -> None:
        trial.notes["spy"] = trial.spy(trial.root)
        trial.blame(trial.root)

    def batch(self, trial: Trial, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return (0.6 * x + 1.0 if trial.step % 2 else x), y

    def crossed(self, trial: Trial) -> bool:
        return trial.step >= 50

    def took_place(self, trial: Trial) -> bool:
        means = torch.stack(trial.notes["spy"].mean[-60:])
        away = means - means.mean(0)
        return bool(((away[1:] * away[:-1]).mean(0) / away.square().mean(0)).median() < -0.5)


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


BATCHES: tuple[Injection, ...] = (
    CorrelatedBatches(name="two-classes-a-batch"),
    CorrelatedBatches(name="each-sample-eight-times", how="copies"),
    AlternatingDomains(),
    ValidationShift(),
    Padding(name="padding"),
    Padding(name="padding-half", share=0.45, severity=Severity.ERROR),
)
