"""Federated averaging that leaves the running statistics out."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, TensorDataset

from tests.end_to_end.faults.injection import Injection, evaluation_mode
from tests.end_to_end.faults.procedures import GENTLE
from tests.end_to_end.faults.recipes import Recipe
from tests.end_to_end.faults.sound import pretrain
from tests.end_to_end.faults.trial import Trial


@dataclass(frozen=True, kw_only=True)
class ParametersOnly(Injection):
    """Five clients with two classes each train in turn; the server averages ``parameters()``, and no buffer.

    The server's model was trained before, so its statistics are not the initial ones, but those of that model.
    """

    code: ClassVar[str] = "BN505"
    only: ClassVar[tuple[str, ...]] = ("chain", "residual", "conv1d", "conv3d")
    name: str = "federated-parameters-only"
    steps: int = 200
    evaluate_every: int = 50
    clients: int = 5
    local: int = 10

    def recipe(self, recipe: Recipe) -> Recipe:
        return replace(GENTLE, lr=0.05)

    def build(self, trial: Trial) -> None:
        pretrain(trial)
        server = copy.deepcopy(trial.model)
        trial.notes.update(server=server, clients=[])
        trial.blame(*(f"server.{name}" for name in trial.order))

    def watched(self, trial: Trial) -> Any:
        return {"client": trial.model, "server": trial.notes["server"]}

    def loader(self, trial: Trial) -> Any:
        data, order = trial.data, []
        shards = [(data.y % self.clients == k).nonzero().flatten() for k in range(self.clients)]
        for _ in range(-(-self.steps // (self.clients * self.local))):
            for shard in shards:
                for _ in range(self.local):
                    order.append(shard[torch.randperm(len(shard), generator=trial.generator)[:64]].tolist())
        return DataLoader(TensorDataset(data.x, data.y), batch_sampler=order)

    @torch.no_grad()
    def after(self, trial: Trial) -> None:
        if (trial.step + 1) % self.local:
            return
        server, clients = trial.notes["server"], trial.notes["clients"]
        clients.append([p.clone() for p in trial.model.parameters()])
        if len(clients) == self.clients:
            for p, theirs in zip(server.parameters(), zip(*clients, strict=True), strict=True):
                p.copy_(torch.stack(theirs).mean(0))
            clients.clear()
        for mine, p in zip(trial.model.parameters(), server.parameters(), strict=True):
            mine.copy_(p)
        for optimizer in trial.optimizers:
            optimizer.state.clear()

    @contextmanager
    def evaluating(self, trial: Trial) -> Iterator[None]:
        with evaluation_mode(trial.model, trial.notes["server"]):
            yield

    def answer(self, trial: Trial, x: Tensor) -> None:
        trial.notes["server"](x)

    def crossed(self, trial: Trial) -> bool:
        return trial.step + 1 >= self.evaluate_every

    def took_place(self, trial: Trial) -> bool:
        """The same weights answer better with statistics of their own."""
        own = copy.deepcopy(trial.notes["server"])
        update_bn(DataLoader(TensorDataset(trial.data.x, trial.data.y), 64, shuffle=True), own)
        return self._right(trial, own) > self._right(trial, trial.notes["server"]) + 0.03

    @torch.no_grad()
    def _right(self, trial: Trial, model: torch.nn.Module) -> float:
        answers = model.eval()(trial.data.x_val).argmax(1)
        return float((answers == trial.data.y_val).double().mean())


FEDERATED: tuple[Injection, ...] = (ParametersOnly(),)
