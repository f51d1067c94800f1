"""Trainings that look like a fault and are none."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from tests.end_to_end.faults.data import Data
from tests.end_to_end.faults.injection import Injection, evaluation_mode, swapped
from tests.end_to_end.faults.networks import Losses, Network, batchnorms
from tests.end_to_end.faults.recipes import PLAIN
from tests.end_to_end.faults.trial import Trial


def pretrain(trial: Trial, steps: int = 80) -> None:
    """Train the model a little on its own data, before anybody watches."""
    data, generator = trial.network.data(), torch.Generator().manual_seed(trial.seed)
    optimizer = PLAIN.minimizer(trial.model)
    trial.model.train()
    for _ in range(steps):
        chosen = torch.randint(0, len(data.x), (64,), generator=generator)
        for _, loss in trial.network.losses(trial.model, data.x[chosen], data.y[chosen]):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    trial.model.zero_grad()


@dataclass(frozen=True, kw_only=True)
class Frozen(Injection):
    """A pretrained backbone that stands still in every respect; the head alone trains, or the last units too."""

    share: float = 1.0

    def fits(self, network: Network) -> bool:
        return super().fits(network) and network.name != "gan"

    def _frozen(self, trial: Trial) -> list[nn.Module]:
        return [s.unit for s in trial.sites[: max(1, round(self.share * len(trial.sites)))]]

    def build(self, trial: Trial) -> None:
        pretrain(trial)
        for part in self._frozen(trial):
            part.requires_grad_(False)
        if self.share == 1:
            for layer in batchnorms(trial.model).values():
                layer.requires_grad_(False)

    def before(self, trial: Trial) -> None:
        for part in [*self._frozen(trial), *(batchnorms(trial.model).values() if self.share == 1 else ())]:
            part.eval()


@dataclass(frozen=True, kw_only=True)
class FrozenStatistics(Injection):
    """Every BatchNorm layer frozen on purpose, mode and parameters, while the convolutions go on training."""

    def build(self, trial: Trial) -> None:
        pretrain(trial, 150)
        for layer in batchnorms(trial.model).values():
            layer.requires_grad_(False)

    def before(self, trial: Trial) -> None:
        for layer in batchnorms(trial.model).values():
            layer.eval()


@dataclass(frozen=True, kw_only=True)
class FineTuning(Injection):
    """A pretrained network goes on with somewhat different data."""

    def build(self, trial: Trial) -> None:
        pretrain(trial)

    def data(self, data: Data) -> Data:
        return replace(data, x=0.8 * data.x + 0.3, x_val=0.8 * data.x_val + 0.3)


@dataclass(frozen=True, kw_only=True)
class Uncentered(Injection):
    """Data whose mean dwarfs what they differ by, so that weights which move take the means of the batches along."""

    offset: float = 2.0

    def data(self, data: Data) -> Data:
        return replace(data, x=data.x + self.offset, x_val=data.x_val + self.offset)


@dataclass(frozen=True, kw_only=True)
class Pruned(Injection):
    """A third of the channels of every unit are masked out, from the start."""

    @torch.no_grad()
    def before(self, trial: Trial) -> None:
        for site in trial.sites:
            gone = slice(0, site.norm.num_features // 5)
            site.norm.weight[gone] = 0
            site.norm.bias[gone] = 0


@dataclass(frozen=True, kw_only=True)
class Reestimated(Injection):
    """The statistics are estimated anew before each evaluation."""

    def fits(self, network: Network) -> bool:
        return super().fits(network) and "supervised" in network.traits

    @contextmanager
    def evaluating(self, trial: Trial) -> Iterator[None]:
        update_bn(trial.loader, trial.model)
        with evaluation_mode(trial.model):
            yield


@dataclass(frozen=True, kw_only=True)
class Dropped(Injection):
    """Evaluates with dropout on and everything else in evaluation mode."""

    @contextmanager
    def evaluating(self, trial: Trial) -> Iterator[None]:
        with evaluation_mode(trial.model):
            for module in trial.model.modules():
                if isinstance(module, nn.Dropout):
                    module.train()
            yield


@dataclass(frozen=True, kw_only=True)
class Averaged(Injection):
    """An average of the weights that averages the statistics too."""

    decay: float = 0.9
    use_buffers: bool = True

    def build(self, trial: Trial) -> None:
        decay = get_ema_multi_avg_fn(self.decay)
        trial.notes["average"] = AveragedModel(trial.model, multi_avg_fn=decay, use_buffers=self.use_buffers)

    def options(self, trial: Trial) -> dict[str, Any]:
        return {"probe": True}

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


@dataclass(frozen=True, kw_only=True)
class AveragedAnew(Averaged):
    """An average of the weights without buffers, whose statistics are estimated before each evaluation."""

    use_buffers: bool = False

    def fits(self, network: Network) -> bool:
        return super().fits(network) and "supervised" in network.traits

    @contextmanager
    def evaluating(self, trial: Trial) -> Iterator[None]:
        update_bn(trial.loader, trial.notes["average"])
        with super().evaluating(trial):
            yield


@dataclass(frozen=True, kw_only=True)
class AveragedSwapped(Averaged):
    """An average with its statistics, swapped in for each evaluation; or with statistics that are estimated there."""

    anew: bool = False

    def watched(self, trial: Trial) -> Any:
        return trial.model

    @contextmanager
    def evaluating(self, trial: Trial) -> Iterator[None]:
        with swapped(trial.model, trial.notes["average"].module):
            if self.anew:
                update_bn(trial.loader, trial.model)
            with evaluation_mode(trial.model):
                yield

    def answer(self, trial: Trial, x: Tensor) -> None:
        trial.model(x)


@dataclass(frozen=True, kw_only=True)
class AveragedFrozen(Averaged):
    """An average of the weights of a network whose statistics stand still on purpose; gamma and beta go on training."""

    use_buffers: bool = False

    def build(self, trial: Trial) -> None:
        pretrain(trial, 150)
        super().build(trial)

    def before(self, trial: Trial) -> None:
        for layer in batchnorms(trial.model).values():
            layer.eval()

    def options(self, trial: Trial) -> dict[str, Any]:
        return {**super().options(trial), "ignore": ("BN401",)}  # which is what is done here, and said


@dataclass(frozen=True, kw_only=True)
class Target(Averaged):
    """A target network: every 30 steps a copy of the whole, which is evaluated between."""

    def build(self, trial: Trial) -> None:
        trial.notes["average"] = copy.deepcopy(trial.model).requires_grad_(False)

    def after(self, trial: Trial) -> None:
        if trial.step % 30 == 0:
            trial.notes["average"].load_state_dict(trial.model.state_dict())


@dataclass(frozen=True, kw_only=True)
class Adapted(Injection):
    """Tested on another domain, with statistics that were estimated there, and taken back afterwards."""

    def fits(self, network: Network) -> bool:
        return super().fits(network) and "supervised" in network.traits

    @contextmanager
    def evaluating(self, trial: Trial) -> Iterator[None]:
        kept = {name: buffer.clone() for name, buffer in trial.model.named_buffers()}
        update_bn([1.5 * x + 0.5 for x, _ in trial.loader], trial.model)
        with evaluation_mode(trial.model):
            yield
        with torch.no_grad():
            for name, buffer in trial.model.named_buffers():
                buffer.copy_(kept[name])

    def answer(self, trial: Trial, x: Tensor) -> None:
        trial.model(1.5 * x + 0.5)


@dataclass(frozen=True, kw_only=True)
class TwinViews(Injection):
    """Two views of the same samples go through the network one after the other."""

    needs: ClassVar[str] = "once supervised"

    def losses(self, trial: Trial) -> Callable[[nn.Module, Tensor, Tensor], Losses]:
        def both(model: nn.Module, x: Tensor, y: Tensor) -> Losses:
            views = (x + 0.1 * torch.randn_like(x) for _ in range(2))
            (_, one), (_, two) = (next(trial.network.losses(model, view, y)) for view in views)
            yield 0, one + two

        return both


@dataclass(frozen=True, kw_only=True)
class Varied(Injection):
    """TrainerActions by the average over several views of a sample."""

    def answer(self, trial: Trial, x: Tensor) -> None:
        for shift in (0, 1, -1):
            trial.model(x.roll(shift, -1))


@dataclass(frozen=True, kw_only=True)
class StillTeacher(Injection):
    """A teacher in evaluation mode, with the statistics of its own training."""

    def build(self, trial: Trial) -> None:
        pretrain(trial)
        trial.notes["teacher"] = copy.deepcopy(trial.model).eval().requires_grad_(False)

    def watched(self, trial: Trial) -> Any:
        return {"student": trial.model, "teacher": trial.notes["teacher"]}

    def losses(self, trial: Trial) -> Callable[[nn.Module, Tensor, Tensor], Losses]:
        def distill(model: nn.Module, x: Tensor, y: Tensor) -> Losses:
            with torch.no_grad():
                target = trial.notes["teacher"](x).float()
            out = model(x).float()
            yield 0, F.cross_entropy(out, y) + 0.1 * F.mse_loss(out, target)

        return distill


@dataclass(frozen=True, kw_only=True)
class ScaleSearch(Injection):
    """A scaler that begins too high, and skips its first steps with all numbers finite."""

    def build(self, trial: Trial) -> None:
        trial.notes["scaler"] = torch.amp.GradScaler("cpu", init_scale=2.0**127)

    def options(self, trial: Trial) -> dict[str, Any]:
        return {"scaler": trial.notes["scaler"]}

    def backward(self, trial: Trial, loss: Tensor) -> None:
        trial.notes["scaler"].scale(loss).backward()

    def update(self, trial: Trial, optimizer: Optimizer) -> None:
        trial.notes["scaler"].step(optimizer)
        trial.notes["scaler"].update()


@dataclass(frozen=True, kw_only=True)
class StochasticDepth(Injection):
    """Units that change no shape are left out now and then."""

    def build(self, trial: Trial) -> None:
        for site in trial.sites:
            unit, forward = site.unit, site.unit.forward

            def sometimes(x: Tensor, unit: nn.Module = unit, forward: Any = forward) -> Tensor:
                out = forward(x)
                return x if unit.training and out.shape == x.shape and torch.rand(()) < 0.15 else out

            unit.forward = sometimes  # type: ignore[method-assign]


@dataclass(frozen=True, kw_only=True)
class Mixup(Injection):
    """Each sample is mixed with another."""

    def batch(self, trial: Trial, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        share = 0.7 + 0.3 * torch.rand(())
        return share * x + (1 - share) * x.flip(0), y


@dataclass(frozen=True, kw_only=True)
class Probed(Injection):
    """Nothing special; the monitor may run its probe."""

    def options(self, trial: Trial) -> dict[str, Any]:
        return {"probe": True}


@dataclass(frozen=True, kw_only=True)
class SanityChecked(Injection):
    """Evaluated before the first step, as Lightning does."""

    sanity: bool = True
