"""Every advice is followed as code, in the training that it was given for, and the incident is over."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import bnmonitor
import bnmonitor.remedies
from bnmonitor import Incident, Monitor
from bnmonitor.diagnosis import CAUSES
from bnmonitor.remedies import freeze, recalibrate, restore_last_finite, set_momentum
from tests.end_to_end.faults.catalogue import INJECTIONS
from tests.end_to_end.faults.data import Data
from tests.end_to_end.faults.injection import Injection, evaluation_mode
from tests.end_to_end.faults.networks import NETWORKS, batchnorms
from tests.end_to_end.faults.recipes import Recipe
from tests.end_to_end.faults.trial import Trial
from tests.end_to_end.faults.unwatched import Compiled

update_bn = torch.optim.swa_utils.update_bn


class Treated(Trial):
    """A training in which somebody reads the incident and follows its advice.

    Attributes:
        incident: The incident, as it was when it was read.
        saved: A checkpoint from before the fault.
    """

    def __init__(self, case: Case, folder: Path) -> None:
        fault = replace(INJECTIONS[case.fault], **case.more)
        super().__init__(NETWORKS[case.network], injection=fault)
        self.case, self.folder = case, folder
        self.incident: Incident | None = None
        self.saved: dict[str, Any] = {}
        self.evaluate_every = fault.evaluate_every

    def train(self) -> None:
        """Train with the fault until the incident is open, follow its advice, and train on until it is over."""
        torch.manual_seed(self.seed)
        fault = self.injection
        fault.build(self)
        self.data = fault.data(self.network.data())
        self.loader = fault.loader(self)
        self.val_loader = DataLoader(TensorDataset(self.data.x_val, self.data.y_val), 128)
        self.optimizers = [self.recipe.minimizer(part) for part in fault.parts(self)]
        self.schedulers = [self.recipe.scheduler(o, 10_000) for o in self.optimizers]
        options = {
            "train_loader": self.loader,
            "val_loader": self.val_loader,
            "accumulate_grad_batches": self.recipe.accumulate,
            "log_dir": self.folder,
            **fault.options(self),
        }
        self.monitor = Monitor(fault.watched(self), optimizer=self.optimizers, sinks=[], on_alert="log", **options)
        fault.before_start(self)
        with self.monitor:
            self._until(lambda: self._read() is not None, fault.onset + 200)
            self.incident = self._read()
            if self.incident is None:
                return
            self.injection = Injection()
            self.case.follow(self)
            self._until(lambda: self.state == "resolved", self.case.patience)

    def _until(self, done: Callable[[], bool], most: int) -> None:
        batches, loader = iter(self.loader), self.loader
        for _ in range(most):
            if self.loader is not loader:
                batches, loader = iter(self.loader), self.loader
            try:
                x, y = next(batches)
            except StopIteration:
                self.injection.epoch(self)
                batches = iter(self.loader)
                x, y = next(batches)
            if self.step == self.injection.onset - 10:
                self.save()
            self._train(x, y)
            self.monitor.step()
            self.step += 1
            if self.step % self.evaluate_every == 0:
                with self.monitor.evaluation(), self.injection.evaluating(self):
                    self._evaluate()
            if done():
                return

    def _read(self) -> Incident | None:
        mine = (i for i in self.monitor.incidents if i.cause == self.case.cause and i.code in self.case.code)
        return next((i for i in mine if i.state == "open"), None)

    @property
    def state(self) -> str:
        """Whether the incident is over."""
        assert self.incident is not None
        return self.monitor.incidents[self.incident.index].state

    # -- what somebody does --------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Save a checkpoint with everything in it, as a Trainer does."""
        self.saved = {
            "state_dict": {name: t.clone() for name, t in self.model.state_dict().items()},
            "optimizers": [o.state_dict() for o in self.optimizers],
        }
        torch.save(self.saved, self.folder / f"step={self.step}.ckpt")

    def load(self, path: Path | None = None) -> None:
        """Go back to a checkpoint; None: the last."""
        held = self.saved if path is None else torch.load(path, weights_only=True)
        self.model.load_state_dict(held["state_dict"])
        for optimizer, state in zip(self.optimizers, held["optimizers"], strict=True):
            optimizer.load_state_dict(state)

    def run_code(self) -> None:
        """Execute the first call of a remedy that stands in the advice."""
        assert self.incident is not None
        found = re.search(r"bnmonitor\.remedies\.\w+\([^()]*\)", self.incident.advice)
        assert found, self.incident.advice
        names = {"bnmonitor": bnmonitor, "model": self.model, "monitor": self.monitor, "loader": self.loader}
        eval(found[0], names)

    def draw(self, batch: int = 32, **more: Any) -> None:
        """Train with a loader that shuffles, from now on."""
        options = {"shuffle": True, "drop_last": True, "generator": self.generator, **more}
        self.loader = DataLoader(TensorDataset(self.data.x, self.data.y), batch, **options)
        self.monitor.learn(train_loader=self.loader)

    @property
    def where(self) -> list[str]:
        """Names of the layers of the incident."""
        assert self.incident is not None
        return [name.removeprefix("student.") for name in self.incident.layers]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A fault, the advice of its incident, and what somebody does who follows it.

    Attributes:
        fault: Name of an injection; it ends when the advice is followed, because that is what the advice is about.
        network: The network that is trained.
        cause: The cause of the incident.
        code: Codes that may lead it.
        says: What the advice says, as a regular expression.
        follow: Does it.
        patience: Steps to train on at most.
        more: Changes of the injection.
    """

    fault: str
    network: str
    cause: str
    code: tuple[str, ...]
    says: str
    follow: Callable[[Treated], None]
    patience: int = 300
    more: dict[str, Any] = field(default_factory=dict)


def nothing(trial: Treated) -> None:
    """The fault is a line of the user's code, and it is gone."""


def training_mode(trial: Treated) -> None:
    trial.model.train()


def larger_momentum(trial: Treated) -> None:
    set_momentum(trial.model, 0.1)


def bigger_batches(trial: Treated) -> None:
    trial.recipe = replace(trial.recipe, batch=32, accumulate=1)
    trial.monitor.learn(accumulate_grad_batches=1)
    trial.draw()


def keep_frozen(trial: Treated) -> None:
    freeze(trial.model, include=trial.where)


def freeze_by_mode(trial: Treated) -> None:
    for name in trial.where:
        trial.model.get_submodule(name).track_running_stats = True
    freeze(trial.model, include=trial.where)


def load_the_named_checkpoint(trial: Treated) -> None:
    with pytest.raises(ValueError, match="the newest checkpoint that is finite") as raised:
        restore_last_finite(trial.model, trial.monitor)
    (path,) = re.findall(r"load (\S+),", str(raised.value))
    assert trial.folder in Path(path).parents
    trial.load(Path(path))


def initialize_at_random(trial: Treated) -> None:
    for module in trial.model.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.kaiming_normal_(module.weight)


def estimate_again(trial: Treated) -> None:
    recalibrate(trial.model, trial.loader)


def reset_and_estimate(trial: Treated) -> None:
    for layer in batchnorms(trial.model).values():
        layer.reset_running_stats()
    update_bn(trial.loader, trial.model)


def evaluate_later(trial: Treated) -> None:
    assert trial.incident is not None
    (updates,) = re.findall(r"after (\d+) updates", trial.incident.advice)
    trial.evaluate_every = int(updates) + 1


def average_buffers(trial: Treated) -> None:
    average = trial.notes["average"]
    average.use_buffers = True

    class Averaging(Injection):
        def after(self, trial: Any) -> None:
            average.update_parameters(trial.model)

        def evaluating(self, trial: Any) -> AbstractContextManager[None]:
            return evaluation_mode(trial.model, average)

        def answer(self, trial: Any, x: Tensor) -> None:
            average(x)

    trial.injection = Averaging()


def one_batch_of_both(trial: Treated) -> None:
    class Together(Injection):
        def batch(self, trial: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return torch.cat([x, 2 * x + 1]), torch.cat([y, y])

    trial.injection = Together()


def same_validation(trial: Treated) -> None:
    trial.val_loader = DataLoader(TensorDataset((trial.data.x_val - 0.7) / 1.7, trial.data.y_val), 128)


def named_momentum(trial: Treated) -> None:
    assert trial.incident is not None
    (momentum,) = re.findall(r"momentum(?:=| to )([\d.]*\d)", trial.incident.advice)
    set_momentum(trial.model, float(momentum), include=trial.where)


def without_checkpointing(trial: Treated) -> None:
    del trial.site.unit.forward


def without_the_offset(trial: Treated) -> None:
    trial.notes["add"] = torch.zeros_like(trial.notes["add"])


def estimate_the_average(trial: Treated) -> None:
    average = trial.notes["average"]

    class Estimating(Injection):
        def after(self, trial: Any) -> None:
            average.update_parameters(trial.model)
            if (trial.step + 1) % trial.evaluate_every == 0:
                update_bn(trial.loader, average)

        def evaluating(self, trial: Any) -> AbstractContextManager[None]:
            return evaluation_mode(trial.model, average)

        def answer(self, trial: Any, x: Tensor) -> None:
            average(x)

    trial.injection = Estimating()


def clip(trial: Treated) -> None:
    trial.recipe = replace(trial.recipe, clip=1.0)


def back_to_the_checkpoint(trial: Treated) -> None:
    trial.load()


def keep_most_of_the_past(trial: Treated) -> None:
    class LongMemory(torch.nn.BatchNorm2d):
        """The same code, with PyTorch's convention."""

        def forward(self, x: Tensor) -> Tensor:
            if not self.training:
                return super().forward(x)
            with torch.no_grad():
                self.running_mean.mul_(0.9).add_(0.1 * x.mean((0, 2, 3)))
                self.running_var.mul_(0.9).add_(0.1 * x.var((0, 2, 3)))
                self.num_batches_tracked.add_(1)
            return torch.nn.functional.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)

    trial.site.norm.__class__ = LongMemory


def without_freezing(trial: Treated) -> None:
    trial.notes.pop("setting").__exit__(None, None, None)
    torch._dynamo.reset()
    trial.injection = Compiled()


CASES = [
    Case(fault="momentum-.99-everywhere", network="wine", cause="momentum", code=("BN301",),
         says=r"set_momentum\(model, momentum=0\.01\)", follow=Treated.run_code),
    Case(fault="momentum-.9-midway", network="mlp", cause="momentum", code=("BN301",),
         says=r"set_momentum\(model, momentum=0\.1\)", follow=Treated.run_code),
    Case(fault="mixed-momentum", network="mlp", cause="momentum", code=("BN301",),
         says=r"set_momentum\(model, momentum=0\.03\)", follow=Treated.run_code),
    Case(fault="momentum-0-everywhere", network="wine", cause="momentum", code=("BN302",),
         says="momentum=0.1", follow=named_momentum),
    Case(fault="handwritten-short-memory", network="chain", cause="handwritten-statistics", code=("BN306",),
         says="keep 1 - momentum of the old value", follow=keep_most_of_the_past),
    Case(fault="compiled-with-freezing", network="mlp", cause="frozen-compiled-evaluation", code=("BN511",),
         says=r"config\.freezing = False.*torch\._dynamo\.reset\(\)", follow=without_freezing),
    Case(fault="batch-4", network="mlp", cause="small-batch", code=("BN201",),
         says="use a larger batch", follow=bigger_batches),
    Case(fault="last-batch-of-two", network="conv1d", cause="small-batch", code=("BN203",),
         says="drop_last=True", follow=bigger_batches),
    Case(fault="accumulation", network="mlp", cause="small-batch", code=("BN204",),
         says="use a larger batch and accumulate fewer", follow=bigger_batches),
    Case(fault="eval-everywhere", network="wine", cause="eval-mode-in-training", code=("BN401",),
         says=r"call model\.train\(\)", follow=training_mode),
    Case(fault="eval-one", network="mlp", cause="eval-mode-in-training", code=("BN401",),
         says=r"freeze\(model, include=\[\.\.\.\]\)", follow=keep_frozen),
    Case(fault="frozen-backbone", network="wine", cause="leaking-freeze", code=("BN402",),
         says=r"freeze\(model, include=", follow=keep_frozen),
    Case(fault="split-freeze-midway", network="wine", cause="split-freeze", code=("BN403",),
         says="track_running_stats back to True", follow=freeze_by_mode),
    Case(fault="unfreeze-shock", network="mlp", cause="unfreeze-shock", code=("BN405",),
         says="estimate the statistics again", follow=estimate_again),
    Case(fault="forgotten-eval", network="mlp", cause="evaluation-updates-statistics", code=("BN406",),
         says=r"model\.eval\(\) before the evaluation", follow=nothing),
    Case(fault="average-left-behind", network="wine", cause="foreign-statistics", code=("BN505",),
         says="use_buffers=True", follow=average_buffers),
    Case(fault="frozen-from-scratch", network="mlp", cause="foreign-statistics", code=("BN404",),
         says="estimate them", follow=estimate_again),
    Case(fault="evaluated-after-8", network="mlp", cause="cold-statistics", code=("BN303",),
         more={"momentum": 0.02},
         says=r"evaluate after \d+ updates", follow=evaluate_later),
    Case(fault="two-domains", network="wine", cause="mixed-calls", code=("BN502",),
         says="concatenate the inputs to one batch", follow=one_batch_of_both),
    Case(fault="each-sample-eight-times", network="wine", cause="data-order", code=("BN601",),
         says="shuffle the training data", follow=Treated.draw, more={"batch_size": 128}),
    Case(fault="scaled-data", network="mlp", cause="changed-input", code=("BN106",),
         says="compare a batch of step 100 with an earlier one", follow=nothing),
    Case(fault="weights-x200-some", network="mlp", cause="changed-weights", code=("BN106",),
         says="clip gradients", follow=clip),
    Case(fault="gamma-jump", network="mlp", cause="changed-weights", code=("BN702",),
         says="go back to a checkpoint", follow=back_to_the_checkpoint),
    Case(fault="zero-some", network="mlp", cause="variance-collapse", code=("BN105",),
         says="weights decayed to zero", follow=nothing),
    Case(fault="closed-half", network="mlp", cause="dead-channels", code=("BN701",),
         says="go back to a checkpoint", follow=back_to_the_checkpoint),
    Case(fault="one-batch-x100", network="conv1d", cause="outlier-batch", code=("BN606",),
         says=r"recalibrate\(model, loader\)", follow=Treated.run_code),
    Case(fault="validation-shift", network="mlp", cause="validation-shift", code=("BN603",),
         says="compare the transformations", follow=same_validation),
    Case(fault="skipped-step", network="mlp", cause="half-precision-overflow", code=("BN102",),
         says=r"reset_running_stats\(\) and torch\.optim\.swa_utils\.update_bn", follow=reset_and_estimate),
    Case(fault="skipped-step-infinite", network="mlp", cause="half-precision-overflow", code=("BN101", "BN102"),
         says="restore the buffers after a skipped step", follow=reset_and_estimate),
    Case(fault="guarded-step", network="mlp", cause="skipped-step", code=("BN102",),
         says=r"reset_running_stats\(\) and torch\.optim\.swa_utils\.update_bn", follow=reset_and_estimate),
    Case(fault="constant-weights", network="mlp", cause="constant-initialization", code=("BN708",),
         says=r"torch\.nn\.init\.kaiming_normal_\(weight\)", follow=initialize_at_random),
    Case(fault="infinite-pixel", network="mlp", cause="non-finite-input", code=("BN101",),
         says="checkpoint", follow=load_the_named_checkpoint),
    Case(fault="infinite-buffer", network="wine", cause="non-finite-statistics", code=("BN101",),
         says=r"restore_last_finite\(model, monitor\)", follow=Treated.run_code),
    Case(fault="nan-weight", network="mlp", cause="non-finite-statistics", code=("BN101",),
         says="checkpoint", follow=load_the_named_checkpoint),
    Case(fault="ruined-checkpoint", network="mlp", cause="ruined-statistics", code=("BN109",),
         says=r"recalibrate\(model, loader\)", follow=Treated.run_code),
    Case(fault="lagging-x2", network="mlp", cause="stale-statistics", code=("BN304",),
         says="a larger momentum", follow=larger_momentum),
    Case(fault="checkpointing", network="mlp", cause="double-update", code=("BN501",),
         says="leave normalization out of the checkpointed part", follow=without_checkpointing),
    Case(fault="foreign-statistics", network="mlp", cause="validation-shift", code=("BN305",),
         says="estimate the statistics again before validation", follow=estimate_again),
    Case(fault="mean-offset", network="mlp", cause="changed-weights", code=("BN107",),
         says="remove the bias of the layer before", follow=without_the_offset),
    Case(fault="average-left-behind", network="wine", cause="foreign-statistics", code=("BN505",),
         says=r"update_bn\(loader, averaged_model\)", follow=estimate_the_average),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.fault}-{case.follow.__name__}")
def test_an_incident_is_over_once_its_advice_is_followed(case: Case, tmp_path: Path) -> None:
    trial = Treated(case, tmp_path)
    trial.train()
    assert trial.incident is not None, [(i.cause, i.code, i.state) for i in trial.monitor.incidents]
    assert re.search(case.says, trial.incident.advice), trial.incident.advice
    assert trial.state == "resolved", trial.monitor.incidents[trial.incident.index]
    left = [i.cause for i in trial.monitor.incidents if i.state == "open"]
    assert left == []


# -- advice to start again ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FromTheStart(Injection):
    """A learning rate from the first step on, in a training whose loss is recorded."""

    name: str = "rate"
    steps: int = 150
    rate: float = 0.05

    def recipe(self, recipe: Recipe) -> Recipe:
        return replace(recipe, lr=self.rate)

    def before_start(self, trial: Trial) -> None:
        step = trial.monitor.step
        trial.monitor.step = lambda: step(loss=trial.notes["loss"])  # type: ignore[method-assign]

    def backward(self, trial: Trial, loss: Tensor) -> None:
        trial.notes["loss"] = loss.detach()
        loss.backward()


@dataclass(frozen=True, kw_only=True)
class InHalfPrecision(Injection):
    """Under fp16, with pixels as they lie in the file or normalized."""

    steps: int = 130
    raw: bool = True

    def data(self, data: Data) -> Data:
        return INJECTIONS["raw-input"].data(data) if self.raw else data

    def forward(self, trial: Trial) -> AbstractContextManager[None]:
        return torch.autocast("cpu", torch.float16)

    def options(self, trial: Trial) -> dict[str, Any]:
        return {"select": ("default",)}


def run(network: str, fault: Injection) -> tuple[Incident, ...]:
    trial = Trial(NETWORKS[network], injection=fault)
    trial.run()
    return trial.monitor.incidents


@pytest.mark.parametrize("network", ["mlp", "conv1d"])
@pytest.mark.parametrize("rate", [3.0, 30.0])
def test_a_training_at_the_rate_that_the_incident_names_has_no_incident(network: str, rate: float) -> None:
    (incident, *_) = run(network, FromTheStart(rate=rate))
    assert incident.cause == "learning-rate-too-high"
    (named,) = re.findall(r"learning rate to about ([\d.e-]*\d)", incident.advice)
    assert float(named) < rate
    assert run(network, FromTheStart(rate=float(named))) == ()


def test_a_training_at_the_rate_from_before_it_was_raised_has_no_incident() -> None:
    (incident, *_) = run("mlp", INJECTIONS["rate-x100"])
    assert incident.cause == "learning-rate-too-high"
    (named,) = re.findall(r"go back to a learning rate of ([\d.e-]*\d)", incident.advice)
    assert run("mlp", FromTheStart(rate=float(named))) == ()


def test_a_normalized_input_has_no_incident() -> None:
    (incident, *_) = run("conv1d", InHalfPrecision())
    assert incident.cause == "unnormalized-input"
    assert "normalize the input" in incident.advice
    assert run("conv1d", InHalfPrecision(raw=False)) == ()


def test_the_advice_of_every_cause_is_tried() -> None:
    tried = {case.cause for case in CASES} | {"learning-rate-too-high", "unnormalized-input"}
    assert {cause.name for cause in CAUSES} - tried == set()
