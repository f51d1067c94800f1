"""Faults of gamma, beta and the learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn
from torch.ao.quantization import get_default_qat_qconfig

from bnmonitor import Severity
from tests.end_to_end.faults.injection import Injection
from tests.end_to_end.faults.networks import Network, mlp
from tests.end_to_end.faults.power import Effect
from tests.end_to_end.faults.recipes import Recipe
from tests.end_to_end.faults.trial import Trial


@dataclass(frozen=True, kw_only=True)
class ClosedChannels(Injection):
    """Beta is so low that the ReLU behind never opens, or gamma has vanished behind a closed one."""

    code: ClassVar[str] = "BN701"
    needs: ClassVar[str] = "relu"
    onset: int = 63
    steps: int = 100
    share: float = 0.5
    gamma: float = 1.0
    beta: float = -10.0

    def build(self, trial: Trial) -> None:
        trial.blame(trial.site.name, channels=trial.some(self.share))

    @torch.no_grad()
    def before(self, trial: Trial) -> None:
        chosen = list(trial.channels or ())
        trial.site.norm.weight[chosen] = self.gamma
        trial.site.norm.bias[chosen] = self.beta

    def took_place(self, trial: Trial) -> bool:
        norm, chosen = trial.site.norm, list(trial.channels or ())
        return bool((norm.bias[chosen] < -3.1 * norm.weight[chosen].abs()).all())


@dataclass(frozen=True, kw_only=True)
class GammaJump(Injection):
    """One gamma runs away from the others."""

    code: ClassVar[str] = "BN702"
    name: str = "gamma-jump"
    onset: int = 63
    steps: int = 130
    factor: float = 15.0

    def recipe(self, recipe: Recipe) -> Recipe:
        """With clipped gradients: without them a regression is lost before the next check."""
        return replace(recipe, clip=1.0)

    @torch.no_grad()
    def before(self, trial: Trial) -> None:
        if trial.fresh:
            trial.site.norm.weight[1] *= self.factor
            trial.notes["gamma"] = float(trial.site.norm.weight[1])
            trial.blame(trial.site.name, channels=[1])

    def crossed(self, trial: Trial) -> bool:
        return float(trial.site.norm.weight[1].detach()) > 10

    def took_place(self, trial: Trial) -> bool:
        """At the jump: what the training makes of it later may not be a number."""
        return bool(trial.notes["gamma"] > 10)


@dataclass(frozen=True, kw_only=True)
class DecayedAffine(Injection):
    """Weight decay pulls at gamma and beta."""

    code: ClassVar[str] = "BN703"
    name: str = "decayed-affine"
    severity: Severity = Severity.INFO
    steps: int = 60

    def recipe(self, recipe: Recipe) -> Recipe:
        return replace(recipe, decay=5e-4, spare=False)

    def took_place(self, trial: Trial) -> bool:
        groups = [g for o in trial.optimizers for g in o.param_groups if g["weight_decay"] > 0]
        return any(p is trial.site.norm.weight for g in groups for p in g["params"])


@dataclass(frozen=True, kw_only=True)
class RateTooHigh(Injection):
    """Somebody adds two noughts to the learning rate of a calm training, or the schedule runs away."""

    code: ClassVar[str] = "BN704"
    without: ClassVar[str] = "small"
    onset: int = 110
    steps: int = 230
    factor: float = 100.0
    growth: float = 1.0

    def fits(self, network: Network) -> bool:
        return super().fits(network) and network.name not in ("gan", "transformer")

    def build(self, trial: Trial) -> None:
        trial.notes.update(spies={name: trial.spy(name) for name in trial.order}, wild=[])

    def before(self, trial: Trial) -> None:
        factor = self.factor if trial.fresh else self.growth
        for scheduler in trial.schedulers:
            scheduler.base_lrs = [rate * factor for rate in scheduler.base_lrs]
        for optimizer in trial.optimizers:
            for group in optimizer.param_groups:
                group["lr"] *= factor

    def crossed(self, trial: Trial) -> bool:
        """The batch statistics of some layer are far from the running ones in the middle of the last steps."""
        far = 0.0
        for name, spy in trial.notes["spies"].items():
            norm = trial.model.get_submodule(name)
            shift = (spy.mean[-1] - norm.running_mean).abs() / norm.running_var.sqrt()
            scale = (0.5 * (spy.var[-1] / norm.running_var).log()).abs()
            medians = torch.stack([shift.median() / 0.9, scale.median() / math.log(2)])
            far = max(far, *medians.nan_to_num(math.inf, math.inf).tolist())
        trial.notes["wild"].append(far > 1)
        return sum(trial.notes["wild"][-16:]) > 8

    def took_place(self, trial: Trial) -> bool:
        wild = trial.notes["wild"]
        return any(sum(wild[i : i + 16]) > 8 for i in range(len(wild)))


@dataclass(frozen=True, kw_only=True)
class RateTooLow(Injection):
    """A learning rate that moves nothing."""

    code: ClassVar[str] = "BN705"
    name: str = "rate-too-low"
    severity: Severity = Severity.INFO
    steps: int = 240

    def recipe(self, recipe: Recipe) -> Recipe:
        return replace(recipe, lr=1e-10, decay=0.0)

    def build(self, trial: Trial) -> None:
        trial.notes["gamma"] = trial.site.norm.weight.detach().clone()

    def took_place(self, trial: Trial) -> bool:
        moved = float((trial.site.norm.weight.detach() - trial.notes["gamma"]).abs().max())
        gradient = trial.site.norm.weight.grad
        return moved < 1e-6 and gradient is not None and bool(gradient.abs().max() > 0)


@dataclass(frozen=True, kw_only=True)
class GrowingGradients(Injection):
    """Deep and without skips: gradients grow from layer to layer toward the input (Yang et al. 2019)."""

    code: ClassVar[str] = "BN706"
    only: ClassVar[tuple[str, ...]] = ("mlp",)
    noisy: bool = True
    name: str = "deep-chain"
    steps: int = 60
    units: int = 30

    def variant(self, network: Network) -> Network:
        return replace(network, make=lambda: mlp(64, 10, 64, units=self.units))

    def recipe(self, recipe: Recipe) -> Recipe:
        return replace(recipe, batch=256, lr=1e-4)

    def after(self, trial: Trial) -> None:
        if trial.step < 5:
            norms = torch.stack([trial.model.get_submodule(n).weight.grad.norm().log() for n in trial.order]).double()
            depth = torch.arange(len(norms)).double()
            depth = depth - depth.mean()
            slope = (depth * norms).sum() / depth.square().sum()
            left = norms - norms.mean() - slope * depth
            noise = (left.square().sum() / (len(norms) - 2) / depth.square().sum()).sqrt()
            trial.notes.update(slope=float(slope), noise=float(noise))

    def took_place(self, trial: Trial) -> bool:
        return trial.notes["slope"] < -math.log(1.15)

    def effect(self, trial: Trial) -> Effect:
        """The slope of the regression, with its standard error."""
        return Effect(-trial.notes["slope"], math.log(1.15), trial.notes["noise"])


@dataclass(frozen=True, kw_only=True)
class FoldingHazard(Injection):
    """One channel of a model that is to be quantized hardly varies: folded, its weights dwarf all others."""

    code: ClassVar[str] = "BN707"
    name: str = "folding-hazard"
    steps: int = 200

    def build(self, trial: Trial) -> None:
        trial.model.qconfig = get_default_qat_qconfig("fbgemm")
        trial.site.norm.eps = 1e-8
        trial.notes["row"] = trial.site.producer.weight.detach()[1].clone()
        trial.blame(trial.site.name, channels=[1])

    @torch.no_grad()
    def before(self, trial: Trial) -> None:
        trial.site.producer.weight[1] = trial.notes["row"] * 2e-3

    def crossed(self, trial: Trial) -> bool:
        norm = trial.site.norm
        scale = norm.weight.detach().abs() / (norm.running_var + norm.eps).sqrt()
        return bool(scale[1] > 127 * scale.median())

    def took_place(self, trial: Trial) -> bool:
        return self.crossed(trial)


@dataclass(frozen=True, kw_only=True)
class ConstantWeights(Injection):
    """Somebody initializes every weight of a kind with one value, and no two channels ever differ."""

    code: ClassVar[str] = "BN708"
    needs: ClassVar[str] = "once supervised"
    name: str = "constant-weights"
    severity: Severity = Severity.ERROR
    steps: int = 120

    def fits(self, network: Network) -> bool:
        """Where nothing else tells channels apart, such as convolutions of single channels or attention."""
        return super().fits(network) and network.name not in ("depthwise", "dense", "transformer")

    def recipe(self, recipe: Recipe) -> Recipe:
        return replace(recipe, lr=recipe.lr / 10)

    @torch.no_grad()
    def build(self, trial: Trial) -> None:
        for module in trial.model.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
                module.weight.fill_(float(module.weight.std()))
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        trial.notes["spy"] = trial.spy(trial.order[0])
        trial.blame(*trial.order)

    def took_place(self, trial: Trial) -> bool:
        """No channel of the first layer differs from the others at the end."""
        var = trial.notes["spy"].var[-1]
        return bool(((var - var[0]).abs() < 1e-4 * var[0]).all())


PARAMETERS: tuple[Injection, ...] = (
    ClosedChannels(name="closed-fifth", share=0.2, severity=Severity.INFO),
    ClosedChannels(name="closed-half"),
    ClosedChannels(name="closed-most", share=0.9, severity=Severity.ERROR),
    ClosedChannels(name="vanished-half", gamma=0.0, beta=-1.0),
    GammaJump(),
    DecayedAffine(),
    RateTooHigh(name="rate-x100"),
    RateTooHigh(name="rate-runs-away", factor=2.0, growth=1.1),
    RateTooLow(),
    GrowingGradients(),
    FoldingHazard(),
    ConstantWeights(),
)
