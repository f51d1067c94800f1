"""What a fault is: where it is put into a training, from which step on, and what it should be called."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from bnmonitor import Severity
from tests.end_to_end.faults.data import Data
from tests.end_to_end.faults.networks import Losses, Network
from tests.end_to_end.faults.power import CERTAIN, Effect
from tests.end_to_end.faults.recipes import Recipe

if TYPE_CHECKING:
    from tests.end_to_end.faults.trial import Trial


@contextmanager
def evaluation_mode(*models: nn.Module) -> Iterator[None]:
    """Evaluate, and give every module back the mode it had, as Lightning does."""
    modes = [(m, m.training) for model in models for m in model.modules()]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def swapped(model: nn.Module, average: nn.Module) -> Iterator[None]:
    """Give a model the weights and buffers of another, and take them back."""
    mine, its = model.state_dict(), average.state_dict()
    kept = {name: tensor.clone() for name, tensor in mine.items()}
    model.load_state_dict({name: tensor.clone() for name, tensor in its.items()})
    try:
        yield
    finally:
        model.load_state_dict(kept)


@torch.no_grad()
def inputs(trial: Trial, name: str) -> Tensor:
    """What comes into a layer of the network as it is now, of all training data at once, in float64."""
    kept: list[Tensor] = []
    hook = trial.model.get_submodule(name).register_forward_pre_hook(lambda _, args: kept.append(args[0].double()))
    with evaluation_mode(trial.model):
        trial.model(trial.data.x)
    hook.remove()
    return kept[0]


@dataclass(frozen=True, kw_only=True)
class Injection:
    """A fault, or none. Every method is a place where a training can be reached; by default it is left alone.

    Class attributes:
        code: Code of the rule that must speak; empty for a sound training.
        also: Codes of rules that would be as right.
        needs: Traits that a network must have, in words.
        without: Traits that it must not have, likewise.
        only: Names of networks, if it fits just these.
        scored: Whether the accuracy in evaluation is measured, of a network that classifies.

    Attributes:
        name: What it is called.
        severity: The mildest severity that is right.
        onset: The step from which the fault is there; 0: from the start.
        steps: Steps to train.
        evaluate_every: Steps between evaluations.
        sanity: Whether there is an evaluation before the first step.
        tried_on: The network that the test suite tries it on; empty: another for each fault.
        noisy: Whether its rule compares a value with noise, so that the fault is found in a part of the trainings.
    """

    code: ClassVar[str] = ""
    also: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[str] = ""
    without: ClassVar[str] = ""
    only: ClassVar[tuple[str, ...]] = ()
    scored: ClassVar[bool] = False

    name: str = "sound"
    severity: Severity = Severity.WARNING
    onset: int = 0
    steps: int = 200
    evaluate_every: int = 80
    sanity: bool = False
    tried_on: str = ""
    noisy: bool = False

    def fits(self, network: Network) -> bool:
        """Whether the fault can be put into a network."""
        named = not self.only or network.name in self.only
        return named and {*self.needs.split()} <= network.traits and not {*self.without.split()} & network.traits

    # -- before the training -------------------------------------------------------------------------------------------

    def recipe(self, recipe: Recipe) -> Recipe:
        return recipe

    def variant(self, network: Network) -> Network:
        return network

    def build(self, trial: Trial) -> None:
        """Change the model before there is an optimizer; name the layers that will be at fault."""

    def data(self, data: Data) -> Data:
        return data

    def loader(self, trial: Trial) -> Any:
        recipe, data = trial.recipe, trial.data
        return DataLoader(
            TensorDataset(data.x, data.y),
            recipe.batch,
            shuffle=True,
            drop_last=recipe.drop_last,
            generator=trial.generator,
        )

    def parts(self, trial: Trial) -> list[nn.Module]:
        """What is optimized, a module for each optimizer."""
        model = trial.model
        return [model.discriminator, model.generator] if trial.network.name == "gan" else [model]

    def minimizer(self, trial: Trial, part: nn.Module) -> Optimizer:
        """What optimizes one of the parts."""
        return trial.recipe.minimizer(part)

    def watched(self, trial: Trial) -> Any:
        return trial.model

    def options(self, trial: Trial) -> dict[str, Any]:
        """Further arguments of the monitor."""
        return {}

    def before_start(self, trial: Trial) -> None:
        """The monitor is there, and not yet started."""

    # -- in each step --------------------------------------------------------------------------------------------------

    def epoch(self, trial: Trial) -> None:
        """An epoch begins."""
        trial.model.train()

    def before(self, trial: Trial) -> None:
        """From the onset on, before the forward."""

    def batch(self, trial: Trial, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """From the onset on, the batch."""
        return x, y

    def losses(self, trial: Trial) -> Callable[[nn.Module, Tensor, Tensor], Losses]:
        return trial.network.losses

    def forward(self, trial: Trial) -> AbstractContextManager[None]:
        """Around the forward."""
        return nullcontext()

    def backward(self, trial: Trial, loss: Tensor) -> None:
        loss.backward()

    def update(self, trial: Trial, optimizer: Optimizer) -> None:
        optimizer.step()

    def after(self, trial: Trial) -> None:
        """From the onset on, after the optimizer's step."""

    # -- in each evaluation --------------------------------------------------------------------------------------------

    def evaluating(self, trial: Trial) -> AbstractContextManager[None]:
        """Around an evaluation."""
        return evaluation_mode(trial.model)

    def answer(self, trial: Trial, x: Tensor) -> None:
        """Evaluate one batch."""
        if trial.network.name == "gan":
            trial.model.generator(torch.randn(len(x), 16))
        else:
            trial.model(x)

    # -- the truth -----------------------------------------------------------------------------------------------------

    def crossed(self, trial: Trial) -> bool:
        """Whether the injected value is beyond its threshold; asked after each step from the onset on."""
        return True

    def over(self, trial: Trial) -> Sequence[int]:
        """The channels at fault whose value is beyond the threshold now."""
        return trial.channels or ()

    def took_place(self, trial: Trial) -> bool:
        """Whether the fault is there, by its own evidence; asked at the end."""
        return True

    def effect(self, trial: Trial) -> Effect:
        """How strong the fault is, by its own evidence; asked at the end of one that is noisy."""
        return CERTAIN
