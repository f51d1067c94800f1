"""Faults of modes and freezing: who is in which mode, and whose statistics move."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from bnmonitor import Severity
from tests.end_to_end.faults.injection import Injection, evaluation_mode
from tests.end_to_end.faults.networks import Ghost, Losses, Network, Site
from tests.end_to_end.faults.trial import Trial


@dataclass(frozen=True, kw_only=True)
class EvalMode(Injection):
    """One layer, or all, left in evaluation mode while it trains."""

    code: ClassVar[str] = "BN401"
    onset: int = 43
    steps: int = 100
    everywhere: bool = False

    def build(self, trial: Trial) -> None:
        trial.blame(trial.order[0] if self.everywhere else trial.site.name)

    def before(self, trial: Trial) -> None:
        (trial.model if self.everywhere else trial.site.norm).eval()
        if trial.fresh:
            trial.notes["before"] = trial.site.norm.running_mean.clone()

    def took_place(self, trial: Trial) -> bool:
        return torch.equal(trial.site.norm.running_mean, trial.notes["before"])


@dataclass(frozen=True, kw_only=True)
class LeakingFreeze(Injection):
    """Parameters are frozen, statistics are forgotten."""

    code: ClassVar[str] = "BN402"
    steps: int = 90
    how: str = "backbone"

    def fits(self, network: Network) -> bool:
        return super().fits(network) and network.name not in ("gan", "siamese")

    def _frozen(self, trial: Trial) -> list[Site]:
        return [trial.site] if self.how != "backbone" else trial.sites[: len(trial.sites) // 2 + 1]

    def build(self, trial: Trial) -> None:
        chosen = self._frozen(trial)
        trial.blame(chosen[0].name)
        if self.onset == 0:
            self._freeze(trial)

    def _freeze(self, trial: Trial) -> None:
        for site in self._frozen(trial):
            if self.how == "no-affine":
                site.norm.affine, site.norm.weight, site.norm.bias = False, None, None
                site.producer.requires_grad_(False)
            (site.norm if self.how == "affine" else site.unit).requires_grad_(False)

    def before(self, trial: Trial) -> None:
        if trial.fresh:
            trial.notes["mean"] = trial.site.norm.running_mean.clone()
            if self.onset:
                self._freeze(trial)

    def took_place(self, trial: Trial) -> bool:
        return not torch.equal(trial.site.norm.running_mean, trial.notes["mean"])


@dataclass(frozen=True, kw_only=True)
class SplitFreeze(Injection):
    """Trains on batch statistics, evaluates on statistics that stand still."""

    code: ClassVar[str] = "BN403"
    steps: int = 90

    def build(self, trial: Trial) -> None:
        trial.blame(trial.site.name)
        if self.onset == 0:
            trial.site.norm.track_running_stats = False

    def before(self, trial: Trial) -> None:
        trial.site.norm.track_running_stats = False
        if trial.fresh:
            trial.notes["mean"] = trial.site.norm.running_mean.clone()

    def took_place(self, trial: Trial) -> bool:
        return torch.equal(trial.site.norm.running_mean, trial.notes["mean"])


@dataclass(frozen=True, kw_only=True)
class InitialStatistics(Injection):
    """A layer is frozen before it has seen anything: it normalizes with zero and one."""

    code: ClassVar[str] = "BN404"
    name: str = "frozen-from-scratch"
    severity: Severity = Severity.ERROR
    steps: int = 90

    def build(self, trial: Trial) -> None:
        trial.site.unit.requires_grad_(False)
        trial.blame(trial.site.name)

    def before(self, trial: Trial) -> None:
        trial.site.norm.eval()

    def took_place(self, trial: Trial) -> bool:
        return not trial.site.norm.running_mean.any() and bool((trial.site.norm.running_var == 1).all())


@dataclass(frozen=True, kw_only=True)
class UnfreezeShock(Injection):
    """A layer that was frozen on the statistics of other data begins to train."""

    code: ClassVar[str] = "BN405"
    name: str = "unfreeze-shock"
    onset: int = 83
    steps: int = 110

    def build(self, trial: Trial) -> None:
        trial.notes["spy"] = trial.spy(trial.site.name)
        trial.site.norm.running_mean += 3.0
        trial.site.norm.running_var *= 9.0
        trial.blame(trial.site.name)

    def before_start(self, trial: Trial) -> None:
        trial.site.unit.requires_grad_(False)
        trial.site.norm.eval()

    def epoch(self, trial: Trial) -> None:
        trial.model.train()
        trial.site.norm.train(trial.step >= self.onset)

    def before(self, trial: Trial) -> None:
        if trial.fresh:
            trial.site.unit.requires_grad_(True)
            trial.site.norm.train()
            trial.notes["frozen"] = trial.site.norm.running_mean.clone(), trial.site.norm.running_var.clone()

    def took_place(self, trial: Trial) -> bool:
        mean, var = trial.notes["frozen"]
        jump = (trial.notes["spy"].mean[0] - mean).abs() / var.sqrt()
        scale = (0.5 * (trial.notes["spy"].var[0] / var).log()).abs()
        return bool(jump.median() > 0.5 or scale.median() > 0.7)


@dataclass(frozen=True, kw_only=True)
class ForgottenEval(Injection):
    """An evaluation, or only the one before training, runs in training mode."""

    code: ClassVar[str] = "BN406"
    steps: int = 100
    evaluate_every: int = 40
    which: str = "all"

    def fits(self, network: Network) -> bool:
        return super().fits(network) and network.name != "gan"

    def build(self, trial: Trial) -> None:
        trial.notes["moved"] = False
        trial.blame(trial.site.name if self.which == "one" else trial.order[0])

    @contextmanager
    def evaluating(self, trial: Trial) -> Iterator[None]:
        norm = trial.site.norm
        with evaluation_mode(trial.model):
            if self.which == "one":
                trial.site.unit.train()
            elif self.which == "all" or trial.step == 0:
                trial.model.train()
            before = norm.running_mean.clone()
            yield
            trial.notes["moved"] |= not torch.equal(before, norm.running_mean)

    def crossed(self, trial: Trial) -> bool:
        return bool(trial.notes["moved"])

    def took_place(self, trial: Trial) -> bool:
        return bool(trial.notes["moved"])


@dataclass(frozen=True, kw_only=True)
class Teacher(Injection):
    """A teacher that nobody optimizes updates its statistics with the student's batches."""

    code: ClassVar[str] = "BN407"
    also: ClassVar[tuple[str, ...]] = ("BN402",)
    needs: ClassVar[str] = "supervised"
    name: str = "teacher"
    steps: int = 90

    def build(self, trial: Trial) -> None:
        trial.notes["teacher"] = copy.deepcopy(trial.model)
        trial.notes["before"] = copy.deepcopy(trial.notes["teacher"].state_dict())
        trial.blame(f"teacher.{trial.order[0]}")

    def watched(self, trial: Trial) -> Any:
        return {"student": trial.model, "teacher": trial.notes["teacher"]}

    def losses(self, trial: Trial) -> Callable[[nn.Module, Tensor, Tensor], Losses]:
        def distill(model: nn.Module, x: Tensor, y: Tensor) -> Losses:
            with torch.no_grad():
                target = trial.notes["teacher"](x + 0.1 * torch.randn_like(x)).float()
            for part, loss in trial.network.losses(model, x, y):
                yield part, loss + 0.01 * F.mse_loss(model(x).float(), target)

        return distill

    def took_place(self, trial: Trial) -> bool:
        now, before = trial.notes["teacher"].state_dict(), trial.notes["before"]
        key = f"{trial.order[0]}.running_mean"
        return not torch.equal(now[key], before[key])


@dataclass(frozen=True, kw_only=True)
class WithoutStatistics(Injection):
    """A layer keeps no statistics: what it answers depends on the batch."""

    code: ClassVar[str] = "BN408"
    name: str = "without-statistics"
    steps: int = 90

    def build(self, trial: Trial) -> None:
        unit = trial.site.unit
        norm = type(trial.site.norm)(trial.site.norm.num_features, track_running_stats=False)
        if isinstance(unit.norm, Ghost):
            unit.norm.norm = norm
        else:
            unit.norm = norm
        trial.blame(trial.site.name)

    def crossed(self, trial: Trial) -> bool:
        return trial.step + 1 >= self.evaluate_every

    def took_place(self, trial: Trial) -> bool:
        return trial.site.norm.running_mean is None


MODES: tuple[Injection, ...] = (
    EvalMode(name="eval-one"),
    EvalMode(name="eval-everywhere", everywhere=True),
    LeakingFreeze(name="frozen-backbone"),
    LeakingFreeze(name="frozen-affine", how="affine"),
    LeakingFreeze(name="frozen-without-affine", how="no-affine"),
    LeakingFreeze(name="frozen-midway", onset=43),
    SplitFreeze(name="split-freeze"),
    SplitFreeze(name="split-freeze-midway", onset=43),
    InitialStatistics(),
    UnfreezeShock(),
    ForgottenEval(name="forgotten-eval"),
    ForgottenEval(name="forgotten-eval-of-one", which="one"),
    ForgottenEval(name="forgotten-eval-in-sanity-check", which="sanity", sanity=True),
    Teacher(),
    WithoutStatistics(),
)
