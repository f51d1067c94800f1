"""Gathers the facts of a window: what bnmonitor knows of the run that is not a statistic of a layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bnmonitor.context.auxiliary import auxiliary
from bnmonitor.context.optimizers import Group, groups_of, trains_copies
from bnmonitor.context.pruning import Pruned
from bnmonitor.context.quantization import quantizes
from bnmonitor.context.run import RunFacts
from bnmonitor.distributed import world_size
from bnmonitor.graph import UnregisteredNorms
from bnmonitor.layers import LayerTable, own_forwards
from bnmonitor.window import Facts, Structure


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """The layers and what has been recorded of them, as far as the facts depend on it.

    Attributes:
        layers: The table of the layers.
        modules: The layers, in the same order.
        shards: By ``id(module)``, the parameters that hold a part of a layer's gamma and beta, where these are split;
            empty where they could not be found: such a layer is taken to train.
        steps: Numbers of the steps in the window.
        rates: The learning rate in force at each of them.
        structure: What the autograd graphs show of the layers.
        unregistered: What they show of layers that belong to no model.
        unwatched: What further modules that keep running statistics are, by name.
    """

    layers: LayerTable
    modules: Sequence[nn.Module]
    shards: Mapping[int, tuple[Tensor, ...]]
    steps: Sequence[int]
    rates: Sequence[float]
    structure: Structure | None
    unregistered: UnregisteredNorms
    unwatched: Mapping[str, str] = field(default_factory=dict)


class FactsGatherer:
    """Gathers the facts; those that seldom change are read again only where they may have changed.

    Args:
        models: The models by prefix of their layers' names.
    """

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        self._models = models
        self._pruned = Pruned(models)
        self._own_forwards: dict[str, str] = {}
        self._most_trained = (-1, -1)
        self._thawed: int | None = None
        self.averaging = False
        """Whether the run averages the weights without the buffers."""
        self.copies = False
        """Whether the optimizers train copies of the parameters that cannot be assigned to their layers."""
        self.renew()

    def renew(self, named: Iterable[tuple[str, nn.Module]] = ()) -> None:
        """Adapt to other layers, or to another order of them."""
        # A conversion to SyncBatchNorm does not keep the class of a layer.
        self._own_forwards |= own_forwards(named)
        self._pruned.renew()
        self._affine_key: object = None
        self._affine: dict[str, Any] = {}
        self._groups: object = None
        self._trained: set[int] = set()
        self._auxiliary: tuple[str, ...] = ()
        self._untouched = False
        self._parameters = [p for model in self._models.values() for p in model.parameters()]
        self._quantized = quantizes(self._models.values())

    @property
    def auxiliary(self) -> tuple[str, ...]:
        """For each layer the name of the auxiliary network that contains it, or an empty name; empty: unknown."""
        return self._auxiliary if self._groups is not None else ()

    def facts(self, recorded: Recorded, optimizers: Sequence[Optimizer], run: RunFacts) -> Facts:
        """Return the facts as they are now.

        Args:
            recorded: The layers and what has been recorded of them.
            optimizers: The optimizers, as far as they are known.
            run: What the user or the Trainer states of the run.
        """
        layers, modules = recorded.layers, recorded.modules
        scales, skipped = run.scales(recorded.steps)
        kept = [m._buffers.get("running_mean") for m in modules]
        was = {**run.own_forwards, **self._own_forwards}
        self.averaging = run.averages_without_buffers
        groups = groups_of(optimizers)
        self._see_groups(groups, modules, optimizers, split=bool(layers.split))
        self._see_trained(groups, recorded.steps)
        return Facts(
            **self._affine_facts([_own(m, recorded.shards) for m in modules], groups),
            group_rates=tuple(group.rate for group in groups),
            optimizers=bool(optimizers),
            optimizer_count=len(optimizers),
            untouched=self._untouched,
            learning_rates=tuple(recorded.rates),
            world_size=world_size(),
            structure=recorded.structure,
            buffer_dtypes=tuple(None if t is None else t.dtype for t in kept),
            train_loader=run.train_loader,
            val_loader=run.val_loader,
            accumulate=run.accumulate,
            scales=scales,
            skipped_steps=skipped,
            auxiliary=self._auxiliary,
            unregistered=recorded.unregistered.known(self._trained),
            unwatched=recorded.unwatched,
            own_forward=tuple(was.get(name, "") for name in layers.names),
            converts=run.converts,
            averages_without_buffers=run.averages_without_buffers,
            thawed=self._thawed,
            quantized=self._quantized,
            pruned=partial(self._pruned.channels, recorded.structure),
        )

    def _see_groups(
        self,
        groups: Sequence[Group],
        modules: Sequence[nn.Module],
        optimizers: Sequence[Optimizer],
        *,
        split: bool,
    ) -> None:
        """Find what no optimizer trains, if the parameters of an optimizer have changed."""
        key = [(id(g.params), len(g.params)) for g in groups]
        if key != self._groups:
            self._groups, self._trained = key, {id(p) for g in groups for p in g.params}
            self.copies = trains_copies(self._models.values(), optimizers, groups)
            known = groups and not split and not self.copies
            self._auxiliary = auxiliary(self._models, modules, self._trained) if known else ()
            self._untouched = bool(known) and not any(id(p) in self._trained for p in self._parameters)

    def _see_trained(self, groups: Sequence[Group], steps: Sequence[int]) -> None:
        """Notice that more parameters are trained than ever before, by the model or by the optimizers."""
        now = (
            sum(p.requires_grad for p in self._parameters),
            sum(p.requires_grad for group in groups if group.rate != 0 for p in group.params),
        )
        most = self._most_trained
        if steps and min(most) >= 0 and (now[0] > most[0] or now[1] > most[1]):
            self._thawed = steps[-1]
        self._most_trained = max(now[0], most[0]), max(now[1], most[1])

    def _affine_facts(self, affine: Sequence[tuple[Tensor, ...] | None], groups: Sequence[Group]) -> dict[str, Any]:
        """Which gammas and betas are trained and decayed, by the names of the facts."""
        known = [] if self.copies else groups
        own = [None if of is None else [(id(p), p.requires_grad) for p in of] for of in affine]
        key = [g.key for g in known], own
        if key != self._affine_key:
            self._affine_key, self._affine = key, _affine(affine, known)
        return self._affine


def _own(module: nn.Module, shards: Mapping[int, tuple[Tensor, ...]]) -> tuple[Tensor, ...] | None:
    """The parameters that hold a layer's gamma and beta; None where they cannot be found."""
    if id(module) in shards:
        return shards[id(module)] or None
    return tuple(p for p in (module._parameters.get("weight"), module._parameters.get("bias")) if p is not None)


def _affine(affine: Sequence[tuple[Tensor, ...] | None], groups: Sequence[Group]) -> dict[str, Any]:
    known = _decays(groups)
    trains = [of is None or any(p.requires_grad and (not groups or id(p) in known) for p in of) for of in affine]
    decays = [_decay(of or (), known) for of in affine]
    place = {id(p): i for i, group in enumerate(groups) for p in group.params}
    return {
        "affine_trains": torch.tensor(trains, dtype=torch.bool, device="cpu"),
        "decay": torch.tensor([d for d, _ in decays], device="cpu"),
        "decoupled": torch.tensor([decoupled for _, decoupled in decays], dtype=torch.bool, device="cpu"),
        "group": torch.tensor([_group(of or (), place) for of in affine], device="cpu"),
    }


def _group(affine: tuple[Tensor, ...], place: dict[int, int]) -> int:
    """The position of the group that trains a layer's gamma and beta; -1 if none does."""
    return next((place[id(p)] for p in affine if p.requires_grad and id(p) in place), -1)


def _decays(groups: Sequence[Group]) -> dict[int, tuple[float, bool]]:
    """The largest weight decay on each parameter, by its id, and whether it is decoupled from the gradient."""
    found: dict[int, tuple[float, bool]] = {}
    for group in groups:
        decay = group.decay, group.decoupled
        for p in group.params:
            found[id(p)] = max(decay, found.get(id(p), decay))
    return found


def _decay(affine: tuple[Tensor, ...], known: dict[int, tuple[float, bool]]) -> tuple[float, bool]:
    """The largest weight decay on a layer's gamma or beta, and whether it is decoupled."""
    found = [known[id(p)] for p in affine if p.requires_grad and id(p) in known]
    return max(found, default=(0.0, False))
