"""Faults of graded size: from too small to matter to plainly harmful, each beside the same training without it.

A curve is the share of trainings in which the rule spoke, and what the fault cost: the accuracy in evaluation of the
same training, with the same seed, without the fault, minus that with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from bnmonitor import Severity
from tests.end_to_end.faults.batches import AlternatingDomains, CorrelatedBatches, Padding, ValidationShift
from tests.end_to_end.faults.bookkeeping import TwoDomains
from tests.end_to_end.faults.data import Data
from tests.end_to_end.faults.injection import Injection, inputs
from tests.end_to_end.faults.numerics import MeanOffset, ScaledWeights, ZeroWeights
from tests.end_to_end.faults.parameters import ClosedChannels, RateTooHigh
from tests.end_to_end.faults.power import CERTAIN, Effect
from tests.end_to_end.faults.recipes import Recipe
from tests.end_to_end.faults.running_average import EarlyEvaluation, ForeignStatistics, LaggingLayer
from tests.end_to_end.faults.sample_size import RaggedBatch, SmallBatch
from tests.end_to_end.faults.sound import pretrain
from tests.end_to_end.faults.trial import Trial


class Graded:
    """What all graded faults have in common: they are scored, and take place by construction."""

    scored: ClassVar[bool] = True

    def took_place(self, trial: Trial) -> bool:
        return True

    def crossed(self, trial: Trial) -> bool:
        return True

    def effect(self, trial: Trial) -> Effect:
        return CERTAIN


@dataclass(frozen=True, kw_only=True)
class Sound(Graded, Injection):
    """The training without the fault, where the fault of size zero is not it."""


@dataclass(frozen=True, kw_only=True)
class DesignEffect(Graded, CorrelatedBatches):
    """A share of each batch comes from one class: the means of batches vary ``factor`` times as independence has it.

    With ``b`` the share of the variance of samples that lies between classes, a share ``p`` of ``n`` samples from one
    class gives the factor ``1 + n b p^2 - b p`` (Kish 1965), which is solved for ``p``.
    """

    factor: float = 1.0
    batch_size: int = 128
    steps: int = 220
    evaluate_every: int = 55

    def loader(self, trial: Trial) -> Any:
        data, n = trial.data, self.batch_size
        samples = inputs(trial, trial.root).flatten(2).mean(2) if trial.data.x.dim() > 2 else inputs(trial, trial.root)
        classes = [samples[data.y == c] for c in range(10)]
        within = torch.stack([len(s) * s.var(0, correction=0) for s in classes]).sum(0) / len(samples)
        b = float((1 - within / samples.var(0, correction=0)).median())
        p = (b + math.sqrt(b * b + 4 * n * b * (self.factor - 1))) / (2 * n * b) if self.factor > 1 else 0.0
        trial.notes["share"] = p
        generator = torch.Generator().manual_seed(trial.seed)
        order = []
        for _ in range(self.steps):
            mine = (data.y == torch.randint(0, 10, (1,), generator=generator)).nonzero().flatten()
            count = min(n, round(p * n))
            alike = mine[torch.randint(0, len(mine), (count,), generator=generator)]
            others = torch.randint(0, len(data.x), (n - count,), generator=generator)
            order.append([*alike.tolist(), *others.tolist()])
        return DataLoader(TensorDataset(data.x, data.y), batch_sampler=order)

    def batch(self, trial: Trial, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x, y

    def took_place(self, trial: Trial) -> bool:
        return bool(trial.notes["share"] <= 1)


@dataclass(frozen=True, kw_only=True)
class Alternation(Graded, AlternatingDomains):
    """Batches are brighter and darker in turn, or of higher and lower contrast."""

    shift: float = 0.0
    contrast: float = 0.0

    def batch(self, trial: Trial, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        sign = 1 if trial.step % 2 else -1
        return math.exp(sign * self.contrast / 2) * x + sign * self.shift / 2, y


@dataclass(frozen=True, kw_only=True)
class Lag(Graded, LaggingLayer):
    """Late in a run the scale of a layer's input changes; statistics that hardly move do not follow."""

    evaluate_every: int = 70


@dataclass(frozen=True, kw_only=True)
class Cold(Graded, EarlyEvaluation):
    """Evaluated once, after forty updates, while zero and one still have the given weight in the statistics.

    The network comes trained, without its statistics, and hardly moves: else a smaller momentum would lag besides.
    """

    weight: float = 0.0
    steps: int = 45
    evaluate_every: int = 40

    def build(self, trial: Trial) -> None:
        super().build(trial)
        pretrain(trial)
        for layer in map(trial.model.get_submodule, trial.order):
            layer.reset_running_stats()

    def recipe(self, recipe: Recipe) -> Recipe:
        return replace(recipe, lr=1e-3, momentum=1 - max(self.weight, 1e-5) ** (1 / self.evaluate_every))


@dataclass(frozen=True, kw_only=True)
class Foreign(Graded, ForeignStatistics):
    """Running means that are off by so many deviations, in one layer."""

    off: float = 0.0

    @torch.no_grad()
    def after(self, trial: Trial) -> None:
        norm = trial.site.norm
        if trial.fresh:
            for layer in map(trial.model.get_submodule, trial.order):
                layer.momentum = 0.001
            for scheduler in trial.schedulers:
                scheduler.base_lrs = [rate / 100 for rate in scheduler.base_lrs]
            norm.running_mean += self.off * norm.running_var.sqrt()


@dataclass(frozen=True, kw_only=True)
class Domains(Graded, TwoDomains):
    """Two inputs that lie so many deviations apart go through the layers one after the other."""

    factor: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Shifted(Graded, ValidationShift):
    """Validation data that lies so many deviations beside the training data."""

    off: float = 0.0

    def data(self, data: Data) -> Data:
        return replace(data, x_val=data.x_val + self.off * data.x.std())


@dataclass(frozen=True, kw_only=True)
class Small(Graded, SmallBatch):
    """So many samples a forward; gradients are accumulated to 32, so that all trainings see as many samples."""

    also: ClassVar[tuple[str, ...]] = ("BN202", "BN204")
    updates: int = 60

    def recipe(self, recipe: Recipe) -> Recipe:
        return replace(recipe, batch=self.batch_size, accumulate=max(1, round(32 / self.batch_size)))


def small(size: int) -> Injection:
    """Sixty updates with so many samples a forward."""
    times = max(1, round(32 / size))
    return Small(batch_size=size, steps=60 * times, evaluate_every=20 * times)


@dataclass(frozen=True, kw_only=True)
class Ragged(Graded, RaggedBatch):
    """Epochs of five batches and a last one of so many samples, evaluated after each."""

    dropped: bool = False
    steps: int = 120
    evaluate_every: int = 6

    def recipe(self, recipe: Recipe) -> Recipe:
        return replace(recipe, drop_last=self.dropped)

    def data(self, data: Data) -> Data:
        count = 32 * 5 + self.leftover
        return replace(data, x=data.x[:count], y=data.y[:count])


@dataclass(frozen=True, kw_only=True)
class Jump(Graded, ScaledWeights):
    """The variance of a layer's input jumps by a factor."""

    evaluate_every: int = 25


@dataclass(frozen=True, kw_only=True)
class Offset(Graded, MeanOffset):
    """The mean of a layer's input moves by so many deviations."""

    evaluate_every: int = 40


@dataclass(frozen=True, kw_only=True)
class Closed(Graded, ClosedChannels):
    """A share of a layer's channels whose ReLU never opens."""

    steps: int = 120
    evaluate_every: int = 40


@dataclass(frozen=True, kw_only=True)
class Collapsed(Graded, ZeroWeights):
    """Nothing comes into a share of a layer's channels any more, in evaluation neither."""

    evaluate_every: int = 50

    def after(self, trial: Trial) -> None:
        self.before(trial)


@dataclass(frozen=True, kw_only=True)
class Rate(Graded, RateTooHigh):
    """Midway the learning rate is multiplied."""

    evaluate_every: int = 60


@dataclass(frozen=True, kw_only=True)
class Filled(Graded, Padding):
    """Sequences of unequal length are filled up with zeros in training, and evaluated as they are.

    They go on with their own beginning, which has the same mean and variance, up to twice their length at share 0.
    """

    steps: int = 240

    def data(self, data: Data) -> Data:
        longest = 2 * data.x.shape[-1]
        ends = longest * (
            1 - 2 * self.share * torch.rand(len(data.x), 1, 1, generator=torch.Generator().manual_seed(0))
        )
        return replace(data, x=torch.cat([data.x, data.x], -1) * (torch.arange(longest) < ends))


@dataclass(frozen=True)
class Curve:
    """A rule, the sizes of its fault from small to large, and how to make a training of each.

    Attributes:
        code: The rule's code.
        what: What the size is, with its unit.
        sizes: From weak to strong.
        make: A training with a fault of the size.
        without: The same without the fault.
        networks: What it is tried on.
        least: The mildest severity that counts.
        note: What is to be said of sizes that cost accuracy and are not found; empty if nothing is.
    """

    code: str
    what: str
    sizes: tuple[float, ...]
    make: Callable[[float], Injection]
    without: Injection
    networks: tuple[str, ...] = ("chain", "mlp", "conv1d")
    least: Severity = Severity.WARNING
    note: str = ""

    @property
    def name(self) -> str:
        """What tells it from another curve of the same rule."""
        return f"{self.code} {self.what}"

    def training(self, size: float | None) -> Injection:
        """A training with a fault of the size; None: without."""
        fault = self.without if size is None else self.make(size)
        return replace(fault, name=self.name, severity=self.least)


CURVES: tuple[Curve, ...] = (
    Curve(
        "BN105",
        "share of channels that nothing comes into",
        (0.05, 0.1, 0.2, 0.4, 0.7),
        lambda s: Collapsed(share=s),
        Sound(onset=60, steps=200, evaluate_every=50),
        least=Severity.INFO,
    ),
    Curve(
        "BN106",
        "factor by which the variance jumps",
        (4, 10, 30, 100, 300, 10_000),
        lambda s: Jump(factor=math.sqrt(s)),
        Sound(onset=100, steps=150, evaluate_every=25),
    ),
    Curve(
        "BN107",
        "deviations by which the mean moves",
        (2, 5, 10, 20, 50, 200),
        lambda s: Offset(deviations=s),
        Sound(onset=100, steps=180, evaluate_every=40),
    ),
    Curve(
        "BN201",
        "samples a forward",
        (24, 16, 12, 8, 6, 4, 2),
        lambda s: small(int(s)),
        small(32),
        networks=("chain", "residual", "mlp"),
    ),
    Curve(
        "BN203",
        "samples in the last batch, of 32",
        (16, 8, 4, 3, 2, 1),
        lambda s: Ragged(leftover=int(s)),
        Ragged(leftover=0, dropped=True, steps=100, evaluate_every=5),
        networks=("chain", "residual", "conv1d"),
        least=Severity.INFO,
    ),
    Curve(
        "BN303",
        "weight of zero and one in the statistics",
        (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8),
        lambda s: Cold(weight=s),
        Cold(weight=0.0),
        least=Severity.INFO,
    ),
    Curve(
        "BN304",
        "lag of the scale, as a log",
        (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0),
        lambda s: Lag(factor=math.exp(s)),
        Lag(factor=1.0),
    ),
    Curve(
        "BN305",
        "deviations by which the means are off",
        (0.05, 0.1, 0.25, 0.5, 1.0, 2.0),
        lambda s: Foreign(off=s),
        Foreign(off=0.0),
    ),
    Curve(
        "BN502",
        "deviations between the calls",
        (0.05, 0.1, 0.25, 0.5, 1.0, 2.0),
        lambda s: Domains(offset=s),
        Domains(offset=0.0),
    ),
    Curve(
        "BN601",
        "design effect F",
        (1.5, 2, 3, 4, 6, 10, 20),
        lambda s: DesignEffect(factor=s),
        DesignEffect(factor=1.0),
    ),
    Curve(
        "BN602",
        "deviations between neighbors",
        (0.1, 0.2, 0.3, 0.5, 0.8, 1.2),
        lambda s: Alternation(shift=s),
        Alternation(),
    ),
    Curve(
        "BN602",
        "log of the contrast between neighbors",
        (0.1, 0.2, 0.4, 0.7, 1.0),
        lambda s: Alternation(contrast=s),
        Alternation(),
    ),
    Curve(
        "BN603",
        "deviations between training and validation",
        (0.05, 0.1, 0.2, 0.3, 0.5, 1.0),
        lambda s: Shifted(off=s),
        Shifted(off=0.0),
        least=Severity.INFO,
    ),
    Curve(
        "BN604",
        "share of zeros behind the sequences",
        (0.02, 0.05, 0.1, 0.2, 0.3, 0.4),
        lambda s: Filled(share=s),
        Filled(share=0.0),
        networks=("conv1d",),
    ),
    Curve(
        "BN701",
        "share of channels that are closed",
        (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0),
        lambda s: Closed(share=s),
        Sound(onset=63, steps=120, evaluate_every=40),
        least=Severity.INFO,
    ),
    Curve(
        "BN704",
        "factor of the learning rate",
        (2, 5, 10, 30, 100, 300),
        lambda s: Rate(factor=s),
        Rate(factor=1.0),
        networks=("chain", "mlp", "residual"),
        note="A doubled rate is told by no rule, as nothing that layers show tells it from a sound training: in two "
        "trainings of each network its batches were .11 to .17 standard deviations from the running statistics at "
        "most, as far as in sound trainings at eight times the rate, which then decayed. It is too high for the end of "
        "a training and not for its beginning, and what it costs shows in the validation alone.",
    ),
)
"""Every curve, in the order of the rules."""
