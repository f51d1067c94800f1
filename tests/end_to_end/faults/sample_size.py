"""Faults of the sample size: too few values are normalized together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import nn

from bnmonitor import Severity
from tests.end_to_end.faults import data as sources
from tests.end_to_end.faults.data import Data
from tests.end_to_end.faults.injection import Injection
from tests.end_to_end.faults.networks import Head, Network, Squeeze, conv, mlp
from tests.end_to_end.faults.recipes import Recipe
from tests.end_to_end.faults.trial import Trial


@dataclass(frozen=True, kw_only=True)
class SmallBatch(Injection):
    """Batches too small for their statistics to mean anything."""

    code: ClassVar[str] = "BN201"
    without: ClassVar[str] = "small"
    steps: int = 120
    batch_size: int = 8

    def recipe(self, recipe: Recipe) -> Recipe:
        return replace(recipe, batch=self.batch_size, lr=0.01)

    def build(self, trial: Trial) -> None:
        trial.notes["spy"] = trial.spy(trial.order[0])
        trial.blame(trial.order[0])

    def took_place(self, trial: Trial) -> bool:
        return trial.notes["spy"].count[-1] % self.batch_size == 0


@dataclass(frozen=True, kw_only=True)
class PooledGate(Injection):
    """The gate behind a pooling sees one value an image, where the trunk sees thousands."""

    code: ClassVar[str] = "BN202"
    only: ClassVar[tuple[str, ...]] = ("squeeze",)
    steps: int = 110
    batch_size: int = 8
    side: int = 40

    def variant(self, network: Network) -> Network:
        def make() -> nn.Module:
            return nn.Sequential(conv(3, 6), Squeeze(6), Head(6, 2))

        return replace(network, make=make, data=lambda: sources.photographs(self.side, 320))

    def recipe(self, recipe: Recipe) -> Recipe:
        return replace(recipe, batch=self.batch_size, lr=0.01)

    def build(self, trial: Trial) -> None:
        trial.notes["spy"] = trial.spy("1.down.norm")
        trial.blame("1.down.norm")

    def took_place(self, trial: Trial) -> bool:
        return trial.notes["spy"].count[-1] == self.batch_size


@dataclass(frozen=True, kw_only=True)
class RaggedBatch(Injection):
    """The last batch of an epoch holds next to nothing, and is kept."""

    code: ClassVar[str] = "BN203"
    needs: ClassVar[str] = "conv"
    steps: int = 100
    leftover: int = 2
    told: bool = True

    def options(self, trial: Trial) -> dict[str, Any]:
        return {} if self.told else {"train_loader": None, "sample_every_n_steps": 0}

    def fits(self, network: Network) -> bool:
        return super().fits(network) and network.name != "squeeze"

    def recipe(self, recipe: Recipe) -> Recipe:
        return replace(recipe, drop_last=False)

    def data(self, data: Data) -> Data:
        count = 32 * 40 + self.leftover
        return replace(data, x=data.x[:count], y=data.y[:count])

    def build(self, trial: Trial) -> None:
        trial.notes["spy"] = trial.spy(trial.root)

    def took_place(self, trial: Trial) -> bool:
        counts = trial.notes["spy"].count
        return min(counts) * 16 <= max(counts)


@dataclass(frozen=True, kw_only=True)
class Accumulation(Injection):
    """Gradients are accumulated to a decent batch; the statistics still see the small one."""

    code: ClassVar[str] = "BN204"
    without: ClassVar[str] = "small"
    name: str = "accumulation"
    steps: int = 60

    def recipe(self, recipe: Recipe) -> Recipe:
        return replace(recipe, batch=16, accumulate=4)

    def took_place(self, trial: Trial) -> bool:
        return trial.loader.batch_size == 16 and trial.recipe.accumulate == 4


@dataclass(frozen=True, kw_only=True)
class BiasedChain(Injection):
    """Many layers in a row, each a little smaller in evaluation than in training."""

    code: ClassVar[str] = "BN206"
    only: ClassVar[tuple[str, ...]] = ("mlp",)
    steps: int = 60
    batch_size: int = 16
    units: int = 10

    def variant(self, network: Network) -> Network:
        return replace(network, make=lambda: mlp(64, 10, 32, units=self.units))

    def recipe(self, recipe: Recipe) -> Recipe:
        return replace(recipe, batch=self.batch_size, lr=0.01)

    def took_place(self, trial: Trial) -> bool:
        shrunk = (1 - 1 / self.batch_size) ** (self.units / 2)
        return shrunk < (0.8 if self.severity is Severity.ERROR else 0.95)


SAMPLE_SIZE: tuple[Injection, ...] = (
    SmallBatch(name="batch-2", batch_size=2, severity=Severity.ERROR),
    SmallBatch(name="batch-4", batch_size=4, severity=Severity.ERROR),
    SmallBatch(name="batch-8", batch_size=8),
    SmallBatch(name="batch-12", batch_size=12),
    PooledGate(name="pooled-gate"),
    PooledGate(name="pooled-gate-of-three", batch_size=3, side=64, severity=Severity.ERROR),
    RaggedBatch(name="last-batch-of-two"),
    RaggedBatch(name="last-batch-of-one", leftover=1, severity=Severity.ERROR),
    RaggedBatch(name="last-batch-of-two-unknown", told=False, tried_on="residual"),
    Accumulation(),
    BiasedChain(name="biased-chain", severity=Severity.ERROR),
    BiasedChain(name="biased-chain-of-64", batch_size=64),
)
