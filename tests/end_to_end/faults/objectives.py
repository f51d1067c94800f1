"""Sound trainings by what they minimize: contrastive, self-distilled, semi-supervised, adversarial."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tests.end_to_end.faults.injection import Injection, evaluation_mode
from tests.end_to_end.faults.networks import Head, Losses, Network, conv, dense
from tests.end_to_end.faults.trial import Trial


def view(x: Tensor) -> Tensor:
    """One random view of each image: moved by up to a pixel, brighter or darker, noisy.

    Each image is moved on its own. One move for the whole batch makes its samples belong together, which BN601 says.
    """
    each, lines = torch.arange(len(x))[:, None, None], torch.arange(x.shape[-1])
    down, right = ((lines + torch.randint(-1, 2, (len(x), 1))) % x.shape[-1] for _ in range(2))
    bright = 0.8 + 0.4 * torch.rand(len(x), 1, 1, 1)
    return bright * x[each, 0, down[:, :, None], right[:, None, :]][:, None] + 0.2 * torch.randn_like(x)


def encoder() -> nn.Module:
    """An encoder of the digits with its projector."""
    return nn.Sequential(conv(1, 12), conv(12, 16, stride=2), Head(16, 32), dense(32, 32), nn.Linear(32, 16))


@torch.no_grad()
def follow(target: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the parameters of a network a little towards those of another."""
    for mine, its in zip(target.parameters(), model.parameters(), strict=True):
        mine.lerp_(its, 1 - decay)


class Pair(nn.Module):
    """A network that trains, and one that follows it; an answer is the first's."""

    def __init__(self, predictor: nn.Module | None = None) -> None:
        super().__init__()
        self.online = encoder()
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.predictor = predictor or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.online(x)


@dataclass(frozen=True, kw_only=True)
class SelfSupervised(Injection):
    """No labels: two views of each image are pulled together."""

    only: ClassVar[tuple[str, ...]] = ("residual",)

    def make(self) -> nn.Module:
        return encoder()

    def variant(self, network: Network) -> Network:
        return replace(network, make=self.make)


@dataclass(frozen=True, kw_only=True)
class Contrasted(SelfSupervised):
    """Both views go through in one batch; all others are negatives (SimCLR, Chen et al. 2020)."""

    def losses(self, trial: Trial) -> Callable[[nn.Module, Tensor, Tensor], Losses]:
        def contrast(model: nn.Module, x: Tensor, _: Tensor) -> Losses:
            z = F.normalize(model(torch.cat([view(x), view(x)])).float())
            alike = (z @ z.T / 0.5).fill_diagonal_(-torch.inf)
            yield 0, F.cross_entropy(alike, torch.arange(2 * len(x)).roll(len(x)))

        return contrast


@dataclass(frozen=True, kw_only=True)
class MomentumContrast(SelfSupervised):
    """Keys come from a slow copy that normalizes shuffled batches of its own (MoCo, He et al. 2020)."""

    def make(self) -> nn.Module:
        return Pair()

    def build(self, trial: Trial) -> None:
        trial.notes["queue"] = F.normalize(torch.randn(256, 16))

    def losses(self, trial: Trial) -> Callable[[nn.Module, Tensor, Tensor], Losses]:
        def contrast(model: nn.Module, x: Tensor, _: Tensor) -> Losses:
            query = F.normalize(model.online(view(x)).float())
            with torch.no_grad():
                follow(model.target, model.online, 0.99)
                order = torch.randperm(len(x))
                keys = F.normalize(model.target(view(x)[order]).float())[order.argsort()]
            queue = trial.notes["queue"]
            logits = torch.cat([(query * keys).sum(1, keepdim=True), query @ queue.T], 1) / 0.2
            trial.notes["queue"] = torch.cat([queue, keys])[-256:]
            yield 0, F.cross_entropy(logits, torch.zeros(len(x), dtype=torch.long))

        return contrast


@dataclass(frozen=True, kw_only=True)
class Bootstrapped(SelfSupervised):
    """Predicts what a slow copy of itself says of the other view (BYOL, Grill et al. 2020)."""

    def make(self) -> nn.Module:
        return Pair(nn.Sequential(dense(16, 32), nn.Linear(32, 16)))

    def losses(self, trial: Trial) -> Callable[[nn.Module, Tensor, Tensor], Losses]:
        def predict(model: nn.Module, x: Tensor, _: Tensor) -> Losses:
            one, two = view(x), view(x)
            said = [F.normalize(model.predictor(model.online(v)).float()) for v in (one, two)]
            with torch.no_grad():
                wanted = [F.normalize(model.target(v).float()) for v in (two, one)]
            yield 0, sum((2 - 2 * (a * b).sum(1)).mean() for a, b in zip(said, wanted, strict=True))

        return predict

    def after(self, trial: Trial) -> None:
        follow(trial.model.target, trial.model.online, 0.97)


@dataclass(frozen=True, kw_only=True)
class MeanTeacher(Injection):
    """A teacher whose weights and statistics are averages of the student's; it answers in evaluation mode.

    A quarter of each batch has labels (Tarvainen and Valpola 2017). Both are evaluated.
    """

    needs: ClassVar[str] = "once supervised"

    def build(self, trial: Trial) -> None:
        trial.notes["teacher"] = copy.deepcopy(trial.model).eval().requires_grad_(False)

    def watched(self, trial: Trial) -> Any:
        return {"student": trial.model, "teacher": trial.notes["teacher"]}

    def losses(self, trial: Trial) -> Callable[[nn.Module, Tensor, Tensor], Losses]:
        def agree(model: nn.Module, x: Tensor, y: Tensor) -> Losses:
            labeled = len(x) // 4
            out = model(x + 0.1 * torch.randn_like(x)).float()
            with torch.no_grad():
                wanted = trial.notes["teacher"](x + 0.1 * torch.randn_like(x)).float().softmax(1)
            yield 0, F.cross_entropy(out[:labeled], y[:labeled]) + F.mse_loss(out.softmax(1), wanted)

        return agree

    @torch.no_grad()
    def after(self, trial: Trial) -> None:
        teacher, decay = trial.notes["teacher"], min(0.95, 1 - 1 / (trial.step + 2))
        follow(teacher, trial.model, decay)
        for mine, its in zip(teacher.buffers(), trial.model.buffers(), strict=True):
            if mine.is_floating_point():
                mine.lerp_(its, 1 - decay)
            else:
                mine.copy_(its)

    @contextmanager
    def evaluating(self, trial: Trial) -> Iterator[None]:
        with evaluation_mode(trial.model, trial.notes["teacher"]):
            yield

    def answer(self, trial: Trial, x: Tensor) -> None:
        trial.model(x)
        trial.notes["teacher"](x)


@dataclass(frozen=True, kw_only=True)
class PseudoLabels(Injection):
    """The network labels the larger part of each batch itself, in evaluation mode, and trains on all of it at once."""

    needs: ClassVar[str] = "once supervised"
    apart: bool = True

    def losses(self, trial: Trial) -> Callable[[nn.Module, Tensor, Tensor], Losses]:
        def label(model: nn.Module, x: Tensor, y: Tensor) -> Losses:
            labeled = len(x) // 4
            if self.apart:
                with torch.no_grad(), evaluation_mode(model):
                    guessed = model(x[labeled:]).float().softmax(1)
                out = model(x + 0.1 * torch.randn_like(x)).float()
            else:  # FixMatch (Sohn et al. 2020): the weak and the strong views in one batch
                both = model(torch.cat([x, x + 0.1 * torch.randn_like(x)])).float()
                guessed, out = both[labeled : len(x)].detach().softmax(1), both[len(x) :]
            sure, guess = guessed.max(1)
            unlabeled = F.cross_entropy(out[labeled:], guess, reduction="none")
            yield 0, F.cross_entropy(out[:labeled], y[:labeled]) + ((sure > 0.9) * unlabeled).mean()

        return label


@dataclass(frozen=True, kw_only=True)
class Adversarial(Injection):
    """Half of each batch are adversarial examples, made in evaluation mode against the network as it is."""

    needs: ClassVar[str] = "once supervised"
    strength: float = 0.15

    def losses(self, trial: Trial) -> Callable[[nn.Module, Tensor, Tensor], Losses]:
        def defend(model: nn.Module, x: Tensor, y: Tensor) -> Losses:
            with evaluation_mode(model):
                attacked = x.clone().requires_grad_()
                (slope,) = torch.autograd.grad(F.cross_entropy(model(attacked).float(), y), attacked)
            half = len(x) // 2
            attacked = (x + self.strength * slope.sign())[:half]
            yield 0, F.cross_entropy(model(torch.cat([attacked, x[half:]])).float(), y)

        return defend


@dataclass(frozen=True, kw_only=True)
class CriticFirst(Injection):
    """The discriminator takes five steps for each of the generator."""

    only: ClassVar[tuple[str, ...]] = ("gan",)

    def losses(self, trial: Trial) -> Callable[[nn.Module, Tensor, Tensor], Losses]:
        def compete(model: nn.Module, x: Tensor, _: Tensor) -> Losses:
            for _ in range(5):
                fake = model.generator(torch.randn(len(x), 16)).detach()
                real, false = model.discriminator(torch.cat([x, fake])).float().chunk(2)
                yield 0, F.relu(1 - real).mean() + F.relu(1 + false).mean()
            fake = model.generator(torch.randn(len(x), 16))
            yield 1, -model.discriminator(torch.cat([x, fake])).float()[len(x) :].mean()

        return compete
