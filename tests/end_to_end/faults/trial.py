"""One training under watch, with or without a fault, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bnmonitor import Monitor, all_rules
from tests.end_to_end.faults.injection import Injection
from tests.end_to_end.faults.networks import Network, Site, batchnorms, order, sites
from tests.end_to_end.faults.power import CERTAIN
from tests.end_to_end.faults.recipes import PLAIN, Recipe

_CHECK = 10
"""Steps between checks."""


@dataclass
class Outcome:
    """What a trial came to, as plain values.

    Attributes:
        start: The step from which the fault was injected.
        least: The mildest severity that is right.
        onset: The step at which the injected value crossed its threshold; None if it never did.
        took_place: Whether the injection says that it took place.
        blamed: Layers that may rightly be named.
        channels: Channels that are at fault; None where the fault has no channels.
        since: The step at which each of them crossed the threshold.
        told: Every alert, with ``opened``, the step after which it was there.
        incidents: Every incident, in the order they opened, without its alerts.
        skipped: Why the rule could not run; empty if it could.
        sigmas: How many times its noise the injected value lies beyond the threshold.
        score: Mean accuracy of the evaluations from the start of the fault on; None unless it was measured.
    """

    name: str
    code: str
    also: tuple[str, ...]
    network: str
    seed: int
    steps: int
    start: int = 0
    least: int = 10
    onset: int | None = None
    took_place: bool = True
    blamed: tuple[str, ...] = ()
    channels: tuple[int, ...] | None = None
    since: tuple[int, ...] = ()
    told: list[dict[str, Any]] = field(default_factory=list)
    incidents: list[dict[str, Any]] = field(default_factory=list)
    skipped: str = ""
    sigmas: float = CERTAIN.sigmas
    score: float | None = None

    def alert(self) -> dict[str, Any] | None:
        """The first alert that tells of the injected fault, no milder than it should."""
        codes = (self.code, *self.also)
        mine = (a for a in self.told if a["code"] in codes and a["level"] >= self.least and a["opened"] >= self.start)
        return next(mine, None)

    @property
    def detected(self) -> bool:
        return self.alert() is not None

    @property
    def right_layer(self) -> bool:
        alert = self.alert()
        return alert is not None and (not self.blamed or alert["layer"] in self.blamed)

    @property
    def right_channels(self) -> bool:
        """Whether all channels are named that had crossed the threshold a check before, and no sound one."""
        alert = self.alert()
        if alert is None or self.channels is None:
            return alert is not None
        due = {c for c, step in zip(self.channels, self.since, strict=True) if step <= alert["opened"] - _CHECK}
        return due <= set(alert["channels"]) <= set(self.channels)

    @property
    def delay(self) -> int | None:
        """Steps from the onset to the alert."""
        alert = self.alert()
        return None if alert is None or self.onset is None else alert["opened"] - self.onset

    def others(self) -> list[str]:
        """Codes of the warnings and errors that other rules gave."""
        return sorted({a["code"] for a in self.told if a["level"] > 10 and a["code"] not in (self.code, *self.also)})

    def alarms(self) -> list[dict[str, Any]]:
        """On a sound run: what should not have been said, which is all but one info of a rule."""
        infos: set[str] = set()
        wrong = []
        for alert in self.told:
            if alert["level"] > 10 or alert["code"] in infos:
                wrong.append(alert)
            infos.add(alert["code"])
        return wrong

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Outcome:
        tuples = {key: tuple(plain[key]) for key in ("also", "blamed", "channels", "since") if plain[key] is not None}
        return cls(**{**plain, **tuples})


class Spy:
    """A hook that keeps the moments of a layer's input in training, call by call."""

    def __init__(self) -> None:
        self.mean: list[Tensor] = []
        self.var: list[Tensor] = []
        self.count: list[int] = []
        self.highest: list[float] = []

    @torch.no_grad()
    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if module.training:
            x = args[0].detach().float().transpose(0, 1).flatten(1)
            self.mean.append(x.mean(1))
            self.var.append(x.var(1))
            self.count.append(x.shape[1])
            self.highest.append(float(x.abs().max()))


class Trial:
    """A training under way; what an injection may reach.

    Attributes:
        model, optimizers, monitor, recipe, network: What is trained, and how.
        order: Names of the BatchNorm layers in execution order.
        sites: Where a fault can go, in execution order.
        site: Where it goes.
        step: The number of the step under way.
        blamed, channels: What the injection says of its fault.
        notes: What the injection remembers.
    """

    def __init__(
        self, network: Network, recipe: Recipe = PLAIN, injection: Injection | None = None, seed: int = 0
    ) -> None:
        self.injection = injection or Injection()
        self.network, self.seed = self.injection.variant(network), seed
        self.recipe = self.injection.recipe(recipe)
        self.model = self.network.build(seed)
        for layer in batchnorms(self.model).values():
            layer.momentum = layer.momentum if self.recipe.momentum is None else self.recipe.momentum
        self.order = order(self.model, self.network)
        self.sites = sites(self.model, self.order)
        self.blamed: tuple[str, ...] = ()
        self.channels: tuple[int, ...] | None = None
        self.notes: dict[str, Any] = {}
        self.since: dict[int, int] = {}
        self._scores: list[float] = []
        self.step = 0
        self.generator = torch.Generator().manual_seed(seed + 1)

    @property
    def site(self) -> Site:
        """The middle of the network, where there is something before and behind."""
        return self.sites[len(self.sites) // 2]

    @property
    def root(self) -> str:
        """The layer that sees the data first."""
        return next((name for name in self.order if name.startswith("discriminator")), self.order[0])

    @property
    def fresh(self) -> bool:
        """Whether this is the first step of the fault."""
        return self.step == self.injection.onset

    def blame(self, *names: str, channels: Any = None) -> None:
        self.blamed = names
        self.channels = None if channels is None else tuple(sorted(int(c) for c in channels))

    def some(self, share: float) -> list[int]:
        """Channels of the site, drawn by the seed: a share, at least one."""
        count = self.site.norm.num_features
        drawn = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed + 7))
        return sorted(drawn[: max(1, round(share * count))].tolist())

    def spy(self, name: str) -> Spy:
        """Measure what comes into a layer, apart from the monitor."""
        spy = Spy()
        batchnorms(self.model)[name].register_forward_pre_hook(spy)
        return spy

    # -- the training --------------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Train to the end; return what was told."""
        torch.manual_seed(self.seed)
        fault = self.injection
        outcome = Outcome(
            fault.name,
            fault.code,
            fault.also,
            self.network.name,
            self.seed,
            fault.steps,
            fault.onset,
            int(fault.severity),
        )
        fault.build(self)
        self.data = fault.data(self.network.data())
        self.loader = fault.loader(self)
        self.val_loader = DataLoader(TensorDataset(self.data.x_val, self.data.y_val), 128)
        parts = fault.parts(self)
        self.optimizers = [fault.minimizer(self, part) for part in parts]
        updates = -(-fault.steps // self.recipe.accumulate)
        self.schedulers = [self.recipe.scheduler(o, updates) for o in self.optimizers]
        options = {
            "train_loader": self.loader,
            "val_loader": self.val_loader,
            "accumulate_grad_batches": self.recipe.accumulate,
            "select": ("all",),
            **fault.options(self),
        }
        self.monitor = Monitor(fault.watched(self), optimizer=self.optimizers, sinks=[], on_alert="log", **options)
        fault.before_start(self)
        opened: list[int] = []
        with self.monitor:
            if fault.sanity:
                with self.monitor.evaluation("sanity"), fault.evaluating(self):
                    self._evaluate(batches=1)
            for step, (x, y) in zip(range(fault.steps), self._batches(), strict=False):
                self.step = step
                self._train(x, y)
                self.monitor.step()
                self._note(outcome, opened)
                if (step + 1) % fault.evaluate_every == 0:
                    with self.monitor.evaluation(), fault.evaluating(self):
                        self._evaluate()
                    self._note(outcome, opened)
        self._note(outcome, opened)
        outcome.told = [
            {**a.to_dict(), "level": int(a.severity), "opened": at}
            for a, at in zip(self.monitor.alerts, opened, strict=True)
        ]
        outcome.incidents = [{**i.to_dict(), "evidence": [a.code for a in i.evidence]} for i in self.monitor.incidents]
        rule = {r.code: r.name for r in all_rules()}.get(fault.code, "")
        outcome.skipped = self.monitor.skipped.get(rule, "")
        outcome.took_place, outcome.sigmas = fault.took_place(self), fault.effect(self).sigmas
        outcome.score = sum(self._scores) / len(self._scores) if self._scores else None
        outcome.blamed, outcome.channels = self.blamed, self.channels
        outcome.since = tuple(self.since.get(c, fault.steps) for c in self.channels or ())
        return outcome

    def _note(self, outcome: Outcome, opened: list[int]) -> None:
        opened.extend([self.step] * (len(self.monitor.alerts) - len(opened)))
        fault = self.injection
        if outcome.onset is None and fault.code and self.step >= fault.onset and fault.crossed(self):
            outcome.onset = self.step
        if self.channels and self.step >= fault.onset:
            for channel in fault.over(self):
                self.since.setdefault(channel, self.step)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            self.injection.epoch(self)
            for x, y in self.loader:
                yield self.recipe.vary(x), y

    def _train(self, x: Tensor, y: Tensor) -> None:
        fault, every = self.injection, self.recipe.accumulate
        if self.step >= fault.onset:
            fault.before(self)
            x, y = fault.batch(self, x, y)
        losses = fault.losses(self)(self.model, x, y)
        while True:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.bf16), fault.forward(self):
                part, loss = next(losses, (-1, None))
            if loss is None:
                break
            optimizer = self.optimizers[part]
            if self.step % every == 0:
                optimizer.zero_grad()
            fault.backward(self, loss / every)
            if (self.step + 1) % every == 0:
                if self.recipe.clip:
                    nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
                fault.update(self, optimizer)
        if (self.step + 1) % every == 0:
            for scheduler in self.schedulers:
                scheduler.step()
        if self.step >= fault.onset:
            fault.after(self)

    @torch.no_grad()
    def _evaluate(self, batches: int | None = None) -> None:
        answers: list[Tensor] = []
        hook = None
        if self.injection.scored and self.step >= self.injection.onset:
            hook = self.model.register_forward_hook(lambda _, args, out: answers.append(out.argmax(1)))
        for _, (x, _) in zip(range(batches or len(self.val_loader)), self.val_loader, strict=False):
            self.injection.answer(self, x)
        if hook is not None:
            hook.remove()
            self._scores.append(float((torch.cat(answers) == self.data.y_val).float().mean()))
