"""States of a training on the host: the weights, the optimizers, and what bnmonitor knew then."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

_RATES = ("lr", "initial_lr", "max_lr", "min_lr", "base_lr", "swa_lr")
"""Keys of a parameter group that hold learning rates."""

_SCHEDULED = ("base_lrs", "max_lrs", "min_lrs", "_last_lr", "eta_min")
"""Attributes of a scheduler that hold learning rates."""


_STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The state after a step.

    Attributes:
        step: The step; -1 before the first.
        tensors: Copies of the parameters and buffers on the host, by the position of the module and the name.
        learned: Those that are parameters or running statistics; a buffer may hold infinities on purpose, as masks do.
        complete: Whether every parameter had its shape: those of lazy layers have none before the first forward.
        optimizers: The states of the optimizers, such as their momenta, on the host.
        scaler: The state of the gradient scaler; None without one.
        record: What bnmonitor had recorded.
    """

    step: int
    tensors: Mapping[tuple[int, str], Tensor]
    learned: frozenset[tuple[int, str]]
    complete: bool
    optimizers: Sequence[Any]
    scaler: Any
    record: Mapping[str, Any]

    @property
    def is_finite(self) -> bool:
        """Whether every weight and every statistic is a number, and no other buffer holds a NaN."""
        kept = {key: _values(t) for key, t in self.tensors.items() if t.is_floating_point() or t.is_complex()}
        return all(bool(t.isfinite().all() if key in self.learned else ~t.isnan().any()) for key, t in kept.items())


@torch.no_grad()
def take(
    step: int, modules: Sequence[nn.Module], optimizers: Sequence[Optimizer], scaler: Any, record: Mapping[str, Any]
) -> Snapshot:
    """Copy the state to the host; of what is split over processes, the part of this one.

    Args:
        step: The step that has ended.
        modules: The model, and averages of it.
        optimizers: The optimizers.
        scaler: The gradient scaler; None without one.
        record: What bnmonitor has recorded.
    """
    tensors = {key: tensor.detach().to("cpu", copy=True) for key, tensor in _tensors(modules)}
    parameters = {(i, name) for i, module in enumerate(modules) for name, _ in module.named_parameters()}
    return Snapshot(
        step=step,
        tensors=tensors,
        learned=frozenset(key for key in tensors if key in parameters or key[1].endswith(_STATISTICS)),
        complete=not any(is_lazy(t) for module in modules for t in (*module.parameters(), *module.buffers())),
        optimizers=[_on_host(optimizer.state_dict()["state"]) for optimizer in optimizers],
        scaler=None if scaler is None else copy.deepcopy(scaler.state_dict()),
        record=copy.deepcopy(dict(record)),
    )


@torch.no_grad()
def restore(snapshot: Snapshot, modules: Sequence[nn.Module], optimizers: Sequence[Optimizer], scaler: Any) -> None:
    """Write a snapshot into the tensors that are there, and forget the gradients.

    The settings of the parameter groups stay as they are: a schedule goes on.

    Raises:
        ValueError: The model or the optimizers have changed since; nothing is written then.
    """
    now = dict(_tensors(modules))
    same = now.keys() == snapshot.tensors.keys() and len(optimizers) == len(snapshot.optimizers)
    if not same or any(now[key].shape != kept.shape for key, kept in snapshot.tensors.items()):
        raise ValueError("the model has changed since")
    for key, kept in snapshot.tensors.items():
        now[key].copy_(kept)
    for optimizer, state in zip(optimizers, snapshot.optimizers, strict=True):
        groups = list(optimizer.param_groups)
        settings = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": copy.deepcopy(state), "param_groups": settings})
        optimizer.param_groups[:] = groups  # the training may hold a group, or the tensor of its rate
    if scaler is not None and snapshot.scaler:
        scaler.load_state_dict(copy.deepcopy(snapshot.scaler))
    for module in modules:
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter.grad.zero_()


def scale_rates(optimizers: Sequence[Optimizer], factor: float) -> None:
    """Multiply every learning rate of the optimizers, and those that their schedules come back to.

    A rate that the training sets itself at each step is not among them.

    Args:
        optimizers: The optimizers.
        factor: The factor.
    """
    done: set[int] = set()
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for name in _RATES:
                if name in group:
                    group[name] = _scaled(group[name], factor, done)
    for scheduler in gc.get_objects():  # an optimizer does not know the schedules that set its rates
        scheduled = issubclass(type(scheduler), LRScheduler | ReduceLROnPlateau)
        if scheduled and any(getattr(scheduler, "optimizer", None) is each for each in optimizers):
            for name in _SCHEDULED:
                if name in vars(scheduler):
                    setattr(scheduler, name, _scaled(getattr(scheduler, name), factor, done))


def _scaled(value: Any, factor: float, done: set[int]) -> Any:
    """Return rates times a factor; ``done`` holds the tensors that have got it already."""
    if isinstance(value, Tensor):  # a rate that is captured in a graph stays the same tensor
        if id(value) not in done:  # groups may share it
            done.add(id(value))
            value.mul_(factor)
        return value
    if isinstance(value, (list, tuple)):
        return type(value)(_scaled(each, factor, done) for each in value)
    return value * factor if isinstance(value, int | float) and not isinstance(value, bool) else value


def _tensors(modules: Sequence[nn.Module]) -> Iterator[tuple[tuple[int, str], Tensor]]:
    for i, module in enumerate(modules):
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if not is_lazy(tensor):
                local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
                if _is_writable(local):
                    yield (i, name), local


def _is_writable(tensor: Tensor) -> bool:
    """Whether it has values of its own: not one on the meta device, nor one that is expanded from fewer values."""
    if tensor.is_meta or tensor.layout != torch.strided:
        return not tensor.is_meta
    return all(stride or size < 2 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _values(tensor: Tensor) -> Tensor:
    """The values of a tensor, which may be a sparse one."""
    if tensor.layout == torch.sparse_coo:
        return tensor.coalesce().values()
    return tensor if tensor.layout == torch.strided else tensor.values()


def _on_host(state: Any) -> Any:
    if isinstance(state, Tensor):
        local: Tensor = state.to_local() if hasattr(state, "to_local") else state
        return local.detach().to("cpu", copy=True)
    if isinstance(state, Mapping):
        return {key: _on_host(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(map(_on_host, state))
    return copy.deepcopy(state)
