"""Faults of bookkeeping: statistics updated twice, mixed, replaced, or never."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from bnmonitor import Severity
from tests.end_to_end.faults.injection import Injection, evaluation_mode, swapped
from tests.end_to_end.faults.networks import Losses, conv
from tests.end_to_end.faults.trial import Trial


@dataclass(frozen=True, kw_only=True)
class Checkpointing(Injection):
    """Activations are computed again during the backward, and averaged in again."""

    code: ClassVar[str] = "BN501"
    steps: int = 70
    reentrant: bool = False

    def build(self, trial: Trial) -> None:
        unit, forward = trial.site.unit, trial.site.unit.forward

        def again(x: Tensor) -> Tensor:
            if not (unit.training and torch.is_grad_enabled()):
                return forward(x)
            return checkpoint(forward, x, use_reentrant=self.reentrant)

        unit.forward = again  # type: ignore[method-assign]
        trial.blame(trial.site.name)

    def took_place(self, trial: Trial) -> bool:
        tracked = {name: int(trial.model.get_submodule(name).num_batches_tracked) for name in trial.order}
        return tracked[trial.site.name] > 1.5 * min(tracked.values())


@dataclass(frozen=True, kw_only=True)
class TwoDomains(Injection):
    """Two inputs that have little in common go through the same layers, one after the other."""

    code: ClassVar[str] = "BN502"
    needs: ClassVar[str] = "once supervised"
    steps: int = 130
    factor: float = 2.0
    offset: float = 1.0

    def build(self, trial: Trial) -> None:
        trial.notes["spy"] = trial.spy(trial.root)
        trial.blame(trial.root)

    def losses(self, trial: Trial) -> Callable[[nn.Module, Tensor, Tensor], Losses]:
        def both(model: nn.Module, x: Tensor, y: Tensor) -> Losses:
            (_, one), (_, two) = (next(trial.network.losses(model, z, y)) for z in (x, self.factor * x + self.offset))
            yield 0, one + two

        return both

    def took_place(self, trial: Trial) -> bool:
        spy = trial.notes["spy"]
        apart = ((spy.mean[-1] - spy.mean[-2]).abs() / spy.var[-2].sqrt()).median()
        scale = (spy.var[-1] / spy.var[-2]).log().abs().median()
        error = self.severity is Severity.ERROR
        return bool(apart > (1.0 if error else 0.25) or scale > (1.386 if error else 0.5))


@dataclass(frozen=True, kw_only=True)
class RealAndFake(Injection):
    """A discriminator sees real and fake images in batches of their own."""

    code: ClassVar[str] = "BN502"
    only: ClassVar[tuple[str, ...]] = ("gan",)
    name: str = "real-and-fake-apart"
    severity: Severity = Severity.INFO
    steps: int = 130

    def build(self, trial: Trial) -> None:
        trial.notes["spy"] = trial.spy(trial.root)
        trial.blame(trial.root)

    def losses(self, trial: Trial) -> Callable[[nn.Module, Tensor, Tensor], Losses]:
        def compete(model: nn.Module, x: Tensor, _: Tensor) -> Losses:
            fake = model.generator(torch.randn(len(x), 16))
            real, false = model.discriminator(x).float(), model.discriminator(fake.detach()).float()
            bce = F.binary_cross_entropy_with_logits
            yield 0, bce(real, torch.ones_like(real)) + bce(false, torch.zeros_like(false))
            judged = model.discriminator(fake).float()
            yield 1, bce(judged, torch.ones_like(judged))

        return compete

    def took_place(self, trial: Trial) -> bool:
        spy = trial.notes["spy"]
        apart = ((spy.mean[0] - spy.mean[1]).abs() / spy.var[0].sqrt()).median()
        return bool(apart > 0.25 or (spy.var[0] / spy.var[1]).log().abs().median() > 0.5)


class NormAct(nn.BatchNorm2d):
    """A normalization with its activation inside, as timm has it."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


@dataclass(frozen=True, kw_only=True)
class LossyConversion(Injection):
    """Conversion to SyncBatchNorm drops what a subclass does besides."""

    code: ClassVar[str] = "BN504"
    needs: ClassVar[str] = "conv"
    without: ClassVar[str] = "small"
    name: str = "lossy-conversion"
    severity: Severity = Severity.ERROR
    steps: int = 60

    def fits(self, network: Any) -> bool:
        return super().fits(network) and network.name not in ("conv1d", "conv3d", "gan")

    def build(self, trial: Trial) -> None:
        trial.site.unit.norm = NormAct(trial.site.norm.num_features)
        trial.site.unit.act = nn.Identity()
        trial.blame(trial.site.name)

    def before_start(self, trial: Trial) -> None:
        nn.SyncBatchNorm.convert_sync_batchnorm(trial.model)

    def took_place(self, trial: Trial) -> bool:
        return type(trial.site.norm) is nn.SyncBatchNorm


@dataclass(frozen=True, kw_only=True)
class StaleAverage(Injection):
    """Weights are averaged; their statistics stay what they were when it began, or are copied from the live network."""

    code: ClassVar[str] = "BN505"
    also: ClassVar[tuple[str, ...]] = ("BN404",)
    needs: ClassVar[str] = "supervised"
    onset: int = 40
    steps: int = 170
    copied: bool = False

    def build(self, trial: Trial) -> None:
        decay = torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
        trial.notes["average"] = AveragedModel(trial.model, multi_avg_fn=decay)
        trial.blame(f"average.module.{trial.order[0]}")

    def watched(self, trial: Trial) -> Any:
        return {"model": trial.model, "average": trial.notes["average"]}

    def options(self, trial: Trial) -> dict[str, Any]:
        return {"probe": True}

    @torch.no_grad()
    def after(self, trial: Trial) -> None:
        average = trial.notes["average"]
        if trial.fresh and self.onset:
            average.load_state_dict(AveragedModel(trial.model).state_dict())
        began = [b.clone() for b in average.module.buffers()]
        average.update_parameters(trial.model)
        kept = trial.model.buffers() if self.copied else began
        for buffer, value in zip(average.module.buffers(), kept, strict=True):
            buffer.copy_(value)

    @contextmanager
    def evaluating(self, trial: Trial) -> Iterator[None]:
        with evaluation_mode(trial.model, trial.notes["average"]):
            yield

    def answer(self, trial: Trial, x: Tensor) -> None:
        trial.notes["average"](x)

    def crossed(self, trial: Trial) -> bool:
        return trial.step + 1 >= self.evaluate_every

    def took_place(self, trial: Trial) -> bool:
        mine, live = (m.get_submodule(trial.order[0]) for m in (trial.notes["average"].module, trial.model))
        same_weights = torch.allclose(mine.weight, live.weight, atol=0.2)
        return same_weights and torch.equal(mine.running_var, live.running_var) == self.copied


@dataclass(frozen=True, kw_only=True)
class SwappedAverage(StaleAverage):
    """Averaged weights are swapped in for each evaluation, nobody knows from where; the statistics are not theirs."""

    copied: bool = True

    def watched(self, trial: Trial) -> Any:
        return trial.model

    def build(self, trial: Trial) -> None:
        super().build(trial)
        trial.blame(*(trial.order[:1] if self.copied else trial.order))

    def took_place(self, trial: Trial) -> bool:
        """Statistics of long ago are no fault if those of today are the same."""
        pairs = [[m.get_submodule(n) for m in (trial.notes["average"].module, trial.model)] for n in trial.order]
        apart = [
            ((mine.running_mean - live.running_mean).abs() / live.running_var.sqrt()).median() for mine, live in pairs
        ]
        scale = [(mine.running_var / live.running_var).log().abs().median() for mine, live in pairs]
        return super().took_place(trial) and (self.copied or bool(max(apart) > 0.15) or bool(max(scale) > 0.6))

    @contextmanager
    def evaluating(self, trial: Trial) -> Iterator[None]:
        with swapped(trial.model, trial.notes["average"].module), evaluation_mode(trial.model):
            yield

    def answer(self, trial: Trial, x: Tensor) -> None:
        trial.model(x)


@dataclass(frozen=True, kw_only=True)
class SpareLayer(Injection):
    """A part of the model is never called."""

    code: ClassVar[str] = "BN506"
    name: str = "never-called"
    severity: Severity = Severity.INFO
    steps: int = 60

    def build(self, trial: Trial) -> None:
        trial.site.unit.add_module("spare", conv(4, 4))
        trial.blame(trial.site.name.split("norm")[0] + "spare.norm")

    def crossed(self, trial: Trial) -> bool:
        return trial.step + 1 >= 20

    def took_place(self, trial: Trial) -> bool:
        return int(trial.site.unit.spare.norm.num_batches_tracked) == 0


@dataclass(frozen=True, kw_only=True)
class HiddenLayer(Injection):
    """A normalization is made inside forward, or kept in a list: nobody else knows of it."""

    code: ClassVar[str] = "BN507"
    severity: Severity = Severity.ERROR
    steps: int = 70
    inside: bool = True

    def build(self, trial: Trial) -> None:
        unit, norm = trial.site.unit, trial.site.norm
        made: list[nn.Module] = [type(norm)(norm.num_features)]
        trial.notes["made"] = made

        def forward(x: Tensor) -> Tensor:
            if self.inside:
                made[0] = type(norm)(norm.num_features)
            return unit.act(made[0](unit.norm(unit.producer(x))))

        unit.forward = forward  # type: ignore[method-assign]

    def took_place(self, trial: Trial) -> bool:
        hidden = trial.notes["made"][0]
        return all(hidden is not m for m in trial.model.modules()) and int(hidden.num_batches_tracked) > 0


BOOKKEEPING: tuple[Injection, ...] = (
    Checkpointing(name="checkpointing"),
    Checkpointing(name="checkpointing-reentrant", reentrant=True),
    TwoDomains(name="two-domains"),
    TwoDomains(name="two-domains-far", factor=4.0, offset=3.0, severity=Severity.ERROR),
    RealAndFake(),
    LossyConversion(),
    StaleAverage(name="average-with-live-statistics", onset=0, copied=True),
    StaleAverage(name="average-never-updated", onset=0),
    StaleAverage(name="average-left-behind"),
    SwappedAverage(name="average-swapped-in"),
    SwappedAverage(name="average-swapped-in-left-behind", copied=False, evaluate_every=50, steps=210),
    SpareLayer(),
    HiddenLayer(name="made-in-forward"),
    HiddenLayer(name="kept-in-a-list", inside=False),
)
