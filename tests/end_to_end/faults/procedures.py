"""Sound trainings by how they get from batch to batch: other optimizers, clients, tasks, stages, loaders."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from tests.end_to_end.faults.data import Data
from tests.end_to_end.faults.injection import Injection
from tests.end_to_end.faults.networks import Head, Losses, Network, batchnorms, chain, mlp
from tests.end_to_end.faults.recipes import PLAIN
from tests.end_to_end.faults.sound import FineTuning, pretrain
from tests.end_to_end.faults.trial import Trial


@dataclass(frozen=True, kw_only=True)
class SharpnessAware(Injection):
    """Two passes a step: up the gradient, then down from there (Foret et al. 2021).

    The second pass leaves the statistics alone by a momentum of zero, as its implementations do.
    """

    reach: float = 0.05

    def losses(self, trial: Trial) -> Callable[[nn.Module, Tensor, Tensor], Losses]:
        def twice(model: nn.Module, x: Tensor, y: Tensor) -> Losses:
            trial.notes["up"] = True
            yield from trial.network.losses(model, x, y)
            trial.notes["up"] = False
            momenta = {layer: layer.momentum for layer in batchnorms(model).values()}
            for layer in momenta:
                layer.momentum = 0.0
            yield from trial.network.losses(model, x, y)
            for layer, momentum in momenta.items():
                layer.momentum = momentum

        return twice

    @torch.no_grad()
    def update(self, trial: Trial, optimizer: Optimizer) -> None:
        moved = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if trial.notes["up"]:
            length = torch.stack([p.grad.norm() for p in moved]).norm() + 1e-12  # type: ignore[union-attr]
            trial.notes["steps"] = [self.reach * p.grad / length for p in moved]  # type: ignore[operator]
            for p, step in zip(moved, trial.notes["steps"], strict=True):
                p.add_(step)
            return
        for p, step in zip(moved, trial.notes["steps"], strict=True):
            p.sub_(step)
        optimizer.step()


@dataclass(frozen=True, kw_only=True)
class QuasiNewton(Injection):
    """L-BFGS on large batches: the closure goes through the network several times a step."""

    needs: ClassVar[str] = "once supervised"

    def minimizer(self, trial: Trial, part: nn.Module) -> Optimizer:
        params = [p for p in part.parameters() if p.requires_grad]
        return torch.optim.LBFGS(params, lr=0.5, max_iter=4, history_size=10, line_search_fn="strong_wolfe")

    def batch(self, trial: Trial, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        trial.notes["batch"] = x, y
        return x, y

    def backward(self, trial: Trial, loss: Tensor) -> None:
        loss.backward()
        trial.notes["loss"] = loss.detach()

    def update(self, trial: Trial, optimizer: Optimizer) -> None:
        first = [trial.notes["loss"]]

        def closure() -> Tensor:
            if first:
                return first.pop()
            optimizer.zero_grad()
            loss = torch.as_tensor(0.0)
            for _, loss in trial.network.losses(trial.model, *trial.notes["batch"]):
                loss.backward()
            return loss.detach()

        optimizer.step(closure)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Lookahead(Injection):
    """Every five steps the weights go back half of the way (Zhang et al. 2019)."""

    def build(self, trial: Trial) -> None:
        trial.notes["slow"] = [p.detach().clone() for p in trial.model.parameters()]

    @torch.no_grad()
    def after(self, trial: Trial) -> None:
        if (trial.step + 1) % 5 == 0:
            for slow, fast in zip(trial.notes["slow"], trial.model.parameters(), strict=True):
                slow.lerp_(fast, 0.5)
                fast.copy_(slow)


def _started_anew(trial: Trial) -> None:
    for optimizer in trial.optimizers:
        optimizer.state.clear()


@dataclass(frozen=True, kw_only=True)
class Federated(Injection):
    """Four clients with alike data train a copy each for ten steps; weights and statistics are averaged (FedAvg).

    It goes on from a network that has been trained. From scratch the statistics of averaged weights lag some rounds,
    which BN304 says rightly: estimated anew, they classify up to 20 points more of the validation set.
    """

    clients: int = 4
    local: int = 10

    def build(self, trial: Trial) -> None:
        pretrain(trial)

    def loader(self, trial: Trial) -> Any:
        data, size = trial.data, trial.recipe.batch
        shards = torch.randperm(len(data.x), generator=trial.generator).chunk(self.clients)
        order = []
        for _ in range(12):
            for shard in shards:
                for _ in range(self.local):
                    drawn = torch.randperm(len(shard), generator=trial.generator)[:size]
                    order.append(shard[drawn].tolist())
        return DataLoader(TensorDataset(data.x, data.y), batch_sampler=order)

    def before_start(self, trial: Trial) -> None:
        trial.notes.update(world=copy.deepcopy(trial.model.state_dict()), clients=[])

    @torch.no_grad()
    def after(self, trial: Trial) -> None:
        if (trial.step + 1) % self.local:
            return
        clients: list[dict[str, Tensor]] = trial.notes["clients"]
        clients.append(copy.deepcopy(trial.model.state_dict()))
        if len(clients) == self.clients:
            mean = {key: torch.stack([c[key].double() for c in clients]).mean(0) for key in clients[0]}
            trial.notes["world"] = {key: value.to(clients[0][key].dtype) for key, value in mean.items()}
            clients.clear()
        trial.model.load_state_dict(trial.notes["world"])
        _started_anew(trial)


@dataclass(frozen=True, kw_only=True)
class MetaLearned(Injection):
    """Every ten steps another task, by labels in another order; the weights move a part of the way (Reptile)."""

    needs: ClassVar[str] = "once supervised"
    without: ClassVar[str] = "small"
    inner: int = 10

    def build(self, trial: Trial) -> None:
        trial.notes.update(meta=[p.detach().clone() for p in trial.model.parameters()], labels=torch.randperm(10))

    def batch(self, trial: Trial, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x, trial.notes["labels"][y]

    @torch.no_grad()
    def after(self, trial: Trial) -> None:
        if (trial.step + 1) % self.inner == 0:
            for meta, p in zip(trial.notes["meta"], trial.model.parameters(), strict=True):
                meta.lerp_(p, 0.3)
                p.copy_(meta)
            trial.notes["labels"] = torch.randperm(10)
            _started_anew(trial)


@dataclass(frozen=True, kw_only=True)
class Unfrozen(FineTuning):
    """A pretrained network is unfrozen unit by unit from the head down; what is frozen is in evaluation mode too."""

    needs: ClassVar[str] = "once supervised"
    every: int = 30

    def _frozen(self, trial: Trial) -> list[nn.Module]:
        return [site.unit for site in trial.sites[: max(0, len(trial.sites) - 1 - trial.step // self.every)]]

    def before_start(self, trial: Trial) -> None:
        for unit in self._frozen(trial):
            unit.requires_grad_(False).eval()

    def before(self, trial: Trial) -> None:
        frozen = self._frozen(trial)
        for site in trial.sites:
            still = any(site.unit is unit for unit in frozen)
            site.unit.requires_grad_(not still).train(not still)


@dataclass(frozen=True, kw_only=True)
class GrowingBatches(Injection):
    """Batches of 16, doubled every fifty steps (Smith et al. 2018)."""

    def loader(self, trial: Trial) -> Any:
        data, order = trial.data, []
        for step in range(self.steps):
            size = min(16 << step // 50, len(data.x) // 4)
            order.append(torch.randint(0, len(data.x), (size,), generator=trial.generator).tolist())
        return DataLoader(TensorDataset(data.x, data.y), batch_sampler=order)


@dataclass(frozen=True, kw_only=True)
class Balanced(Injection):
    """Half of the classes are rare, and drawn as often as the others; validated on what is balanced."""

    needs: ClassVar[str] = "supervised"
    without: ClassVar[str] = "small"

    def data(self, data: Data) -> Data:
        rare = (data.y >= 5) & (torch.arange(len(data.y)) % 4 > 0)
        return replace(data, x=data.x[~rare], y=data.y[~rare])

    def loader(self, trial: Trial) -> Any:
        data = trial.data
        weights = 1 / torch.bincount(data.y).double()[data.y]
        sampler = WeightedRandomSampler(weights.tolist(), len(data.x), generator=trial.generator)
        return DataLoader(TensorDataset(data.x, data.y), trial.recipe.batch, sampler=sampler, drop_last=True)


@dataclass(frozen=True, kw_only=True)
class MultiScale(Injection):
    """Each batch in another size around the one that is evaluated."""

    needs: ClassVar[str] = "conv images supervised"

    def batch(self, trial: Trial, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        size = (7, 8, 8, 9)[int(torch.randint(0, 4, ()))]
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False) if size != 8 else x, y


@dataclass(frozen=True, kw_only=True)
class CutMix(Injection):
    """A part of each image comes from another."""

    needs: ClassVar[str] = "images"

    def batch(self, trial: Trial, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x, left = x.clone(), int(torch.randint(0, 6, ()))
        x[..., left : left + 3] = x.flip(0)[..., left : left + 3]
        return x, y


@dataclass(frozen=True, kw_only=True)
class UnitRange(Injection):
    """Pixels from 0 to 1, not standardized."""

    needs: ClassVar[str] = "images supervised"

    def data(self, data: Data) -> Data:
        low, high = data.x.min(), data.x.max()
        return replace(data, x=(data.x - low) / (high - low), x_val=(data.x_val - low) / (high - low))


def _behind(i: int, o: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(i, o, 3, stride, 1), nn.ReLU(), nn.BatchNorm2d(o))


@dataclass(frozen=True, kw_only=True)
class BehindReLU(UnitRange):
    """BatchNorm behind the activation, on pixels from 0 to 1, as many tutorials have it."""

    only: ClassVar[tuple[str, ...]] = ("chain",)
    channels: int = 16

    def variant(self, network: Network) -> Network:
        c = self.channels
        return replace(network, make=lambda: nn.Sequential(_behind(1, c), _behind(c, c, 2), _behind(c, c), Head(c)))


@dataclass(frozen=True, kw_only=True)
class Narrow(Injection):
    """Few channels a layer."""

    only: ClassVar[tuple[str, ...]] = ("chain", "mlp")
    width: int = 6

    def variant(self, network: Network) -> Network:
        if network.name == "mlp":
            return replace(network, make=lambda: mlp(64, 10, self.width, units=3))
        return replace(network, make=lambda: chain(self.width, units=4))


GENTLE = replace(PLAIN, lr=0.01)
"""A rate at which the statistics of a residual network keep up."""
