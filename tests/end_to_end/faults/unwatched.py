"""Normalizations and evaluations that nobody watches, and evaluations that hold what is long gone."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bnmonitor import Severity
from tests.end_to_end.faults.injection import Injection, evaluation_mode
from tests.end_to_end.faults.networks import Losses, Network
from tests.end_to_end.faults.trial import Trial


class OwnNorm(nn.Module):
    """A batch normalization that does not derive from PyTorch's, and calls its function."""

    def __init__(self, channels: int, dimensions: int) -> None:
        super().__init__()
        self.num_features = channels
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training)


class TaughtNorm(nn.Module):
    """A batch normalization written by hand, as courses teach it: averages of any shape, by other names."""

    def __init__(self, channels: int, dimensions: int) -> None:
        super().__init__()
        shape = (1, channels, *(1,) * (dimensions - 2))
        self.num_features, self.axes = channels, (0, *range(2, dimensions))
        self.gamma, self.beta = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))
        self.moving_mean, self.moving_var = torch.zeros(shape), torch.ones(shape)

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.moving_mean, self.moving_var
        if self.training:
            mean, var = x.mean(self.axes, keepdim=True), x.var(self.axes, unbiased=False, keepdim=True)
            self.moving_mean = 0.9 * self.moving_mean + 0.1 * mean.detach()
            self.moving_var = 0.9 * self.moving_var + 0.1 * var.detach()
        return self.gamma * (x - mean) / (var + 1e-5).sqrt() + self.beta


@dataclass(frozen=True, kw_only=True)
class ForeignNorm(Injection):
    """One of the normalizations is of a class that is no layer of PyTorch's."""

    code: ClassVar[str] = "BN510"
    severity: Severity = Severity.INFO
    steps: int = 40
    kind: Callable[[int, int], nn.Module] = OwnNorm

    def fits(self, network: Network) -> bool:
        return super().fits(network) and network.name != "ghost"

    def build(self, trial: Trial) -> None:
        unit = trial.site.unit
        dimensions = {nn.Linear: 2, nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5}[type(unit.producer)]
        unit.norm = self.kind(trial.site.norm.num_features, dimensions)
        trial.blame(trial.site.name)

    def took_place(self, trial: Trial) -> bool:
        norm: Any = trial.site.unit.norm
        mean = norm.running_mean if isinstance(norm, OwnNorm) else norm.moving_mean
        return not isinstance(norm, nn.modules.batchnorm._NormBase) and bool(mean.any())


@dataclass(frozen=True, kw_only=True)
class Scripted(Injection):
    """A part of the network is compiled by TorchScript before anybody watches."""

    code: ClassVar[str] = "BN510"
    name: str = "scripted-part"
    severity: Severity = Severity.INFO
    steps: int = 40

    def fits(self, network: Network) -> bool:
        return super().fits(network) and network.name != "ghost"

    def build(self, trial: Trial) -> None:
        path, _, own = trial.site.name.removesuffix(".norm").rpartition(".")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = torch.jit.script(trial.site.unit)
        setattr(trial.model.get_submodule(path), own, made)
        trial.notes["made"] = made
        trial.blame(trial.site.name)

    def took_place(self, trial: Trial) -> bool:
        return int(trial.notes["made"].norm.num_batches_tracked) >= self.steps


@dataclass(frozen=True, kw_only=True)
class UnwatchedAverage(Injection):
    """An average of the weights, or a copy, is evaluated, and not passed to the monitor."""

    code: ClassVar[str] = "BN512"
    severity: Severity = Severity.INFO
    needs: ClassVar[str] = "supervised"
    steps: int = 100
    evaluate_every: int = 40
    copied: bool = False

    def build(self, trial: Trial) -> None:
        decay = get_ema_multi_avg_fn(0.9)
        average: nn.Module = AveragedModel(trial.model, multi_avg_fn=decay, use_buffers=True)
        trial.notes.update(average=copy.deepcopy(trial.model) if self.copied else average, calls=[])
        trial.model.register_forward_hook(lambda module, *_: trial.notes["calls"].append(module.training))

    def after(self, trial: Trial) -> None:
        average = trial.notes["average"]
        if self.copied:
            average.load_state_dict(trial.model.state_dict())
        else:
            average.update_parameters(trial.model)

    @contextmanager
    def evaluating(self, trial: Trial) -> Iterator[None]:
        with evaluation_mode(trial.model, trial.notes["average"]):
            yield

    def answer(self, trial: Trial, x: Tensor) -> None:
        trial.notes["average"](x)

    def crossed(self, trial: Trial) -> bool:
        return trial.step + 1 >= self.evaluate_every

    def took_place(self, trial: Trial) -> bool:
        """The model itself was never called in evaluation."""
        return all(trial.notes["calls"])


@dataclass(frozen=True, kw_only=True)
class Compiled(Injection):
    """The network is compiled, trained and evaluated in turn; no fault."""

    only: ClassVar[tuple[str, ...]] = ("chain", "mlp", "conv1d", "wine")
    steps: int = 60
    evaluate_every: int = 20

    def build(self, trial: Trial) -> None:
        torch._dynamo.reset()
        trial.notes["compiled"] = self.compiled(trial.model)

    def compiled(self, model: nn.Module) -> Any:
        return torch.compile(model)

    def losses(self, trial: Trial) -> Callable[[nn.Module, Tensor, Tensor], Losses]:
        return lambda _, x, y: trial.network.losses(trial.notes["compiled"], x, y)

    def answer(self, trial: Trial, x: Tensor) -> None:
        trial.notes["compiled"](x)

    @torch.no_grad()
    def took_place(self, trial: Trial) -> bool:
        """The compiled model does not answer what the model does; then the process forgets what it has compiled."""
        x = trial.data.x_val[:128]
        with evaluation_mode(trial.model):
            apart = float((trial.notes["compiled"](x) - trial.model(x)).abs().max())
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        return apart > 0.05


@dataclass(frozen=True, kw_only=True)
class FrozenEvaluation(Compiled):
    """What is compiled for an evaluation holds weights and statistics as constants, by a setting of the process."""

    code: ClassVar[str] = "BN511"
    name: str = "compiled-with-freezing"
    severity: Severity = Severity.ERROR

    def before_start(self, trial: Trial) -> None:
        import torch._inductor.config as settings

        trial.notes["setting"] = settings.patch(freezing=True)
        trial.notes["setting"].__enter__()

    def crossed(self, trial: Trial) -> bool:
        return trial.step + 1 >= 2 * self.evaluate_every

    def took_place(self, trial: Trial) -> bool:
        frozen = super().took_place(trial)
        if "setting" in trial.notes:
            trial.notes["setting"].__exit__(None, None, None)
        return frozen


UNWATCHED: tuple[Injection, ...] = (
    ForeignNorm(name="class-of-its-own"),
    ForeignNorm(name="written-by-hand", kind=TaughtNorm),
    Scripted(),
    UnwatchedAverage(name="average-not-watched"),
    UnwatchedAverage(name="copy-not-watched", copied=True),
    FrozenEvaluation(),
)
