"""The true batch statistics of a program: every call of every layer in training, reduced in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bnmonitor.layers import recomputing
from tests.fuzz.parts import NORM_CLASSES

INSTANCE = nn.modules.instancenorm._InstanceNorm


@dataclass
class Call:
    """What one call of a layer adds to its running statistics."""

    mean: Tensor
    var: Tensor
    values: int
    momentum: float | None
    count: int
    """Calls that a cumulative average has counted, with this one."""
    layer: int = 0
    """The module, by ``id(module)``: another one may take its name amid a step."""
    rounding: float = 0.0
    """What InstanceNorm itself rounds the statistics of each sample by."""


@dataclass
class Row:
    """The calls of a step, and the largest running statistics around it."""

    calls: list[Call]
    since_evaluation: int
    far_mean: Tensor
    far_var: Tensor
    rounding: float
    tracked: bool
    momenta: set[float | None] = field(default_factory=set)
    unknown: bool = False
    """Whether a forward of the layer raised, after it had counted its update: nobody sees that in the buffers."""


class Truth:
    """Takes the place of a monitor in a run, and hooks every layer; each hook is the last of its layer."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.rows: dict[str, list[Row | None]] = {}
        self.steps = 0
        self._calls: dict[str, list[Call]] = {}
        self._since: dict[str, int] = {}
        self._far: dict[str, tuple[Tensor, Tensor]] = {}
        self._handles: list[Any] = []
        self._entered: dict[str, Call] = {}
        self._raised: set[str] = set()
        self._on = True
        self.renew()

    def renew(self) -> None:
        """Hook the layers that there are now, behind all other hooks."""
        self.remove()
        for name, module in self.model.named_modules():
            if isinstance(module, NORM_CLASSES) and not isinstance(module, torch.jit.ScriptModule):
                self._handles.append(module.register_forward_pre_hook(self._hook(name, module)))
                self._handles.append(module.register_forward_hook(self._passed(name, module)))

    def remove(self) -> None:
        """Remove every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def begin_evaluation(self) -> None:
        """Leave out what comes."""
        self._on = False

    def end_evaluation(self) -> None:
        """Go on."""
        self._on = True
        self._since = {name: len(calls) for name, calls in self._calls.items()}

    def step(self) -> None:
        """End a step."""
        for name, module in self.model.named_modules():
            if not isinstance(module, NORM_CLASSES) or isinstance(module, torch.jit.ScriptModule):
                continue
            self.look(name, module)
            calls, since = self._calls.pop(name, []), self._since.pop(name, 0)
            rows = self.rows.setdefault(name, [])
            rows.extend([None] * (self.steps - len(rows)))
            tracked = module.running_mean is not None
            eps = torch.finfo(module.running_mean.dtype if tracked else torch.float32).eps  # type: ignore[union-attr]
            far = self._far.pop(name)
            raised = name in self._raised or self._entered.pop(name, None) is not None
            rows.append(Row(calls, since, *far, eps, tracked, {module.momentum}, raised))
            self.look(name, module)
        self._calls.clear()
        self._since.clear()
        self._raised.clear()
        self.steps += 1

    def look(self, name: str, module: Any) -> None:
        """Take in how large the running statistics of a layer are now."""
        zero = torch.zeros(1, dtype=torch.float64)
        now = [zero if t is None else t.detach().double().abs() for t in (module.running_mean, module.running_var)]
        before = self._far.get(name, (zero, zero))
        self._far[name] = (torch.maximum(before[0], now[0]), torch.maximum(before[1], now[1]))

    def _hook(self, name: str, own: Any) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: Any, args: tuple[Any, ...]) -> None:
            if module is not own:
                return
            if self._entered.pop(name, None) is not None:
                self._raised.add(name)
            if not self._on or (not torch.is_tensor(args[0])) or args[0].dim() < 2:
                return
            self.look(name, module)
            x = args[0].detach().double()
            tracked = module.running_mean is not None
            if tracked and not (module.training and module.track_running_stats):
                return
            if not tracked:
                learns = args[0].requires_grad or any(p.requires_grad for p in module.parameters(False))
                if recomputing() or not (module.training or (learns and torch.is_grad_enabled())):
                    return
            if isinstance(module, INSTANCE):
                flat = x.flatten(2)
                mean, var = flat.mean(2).mean(0), flat.var(2).mean(0)
            else:
                flat = x.transpose(0, 1).flatten(1)
                mean, var = flat.mean(1), flat.var(1)
            count = getattr(module, "num_batches_tracked", None)
            counted = 0 if count is None else int(count) + 1
            rounding = (
                3 * float(x.abs().max()) * torch.finfo(args[0].dtype).eps if isinstance(module, INSTANCE) else 0.0
            )
            self._entered[name] = Call(
                mean, var, x.numel() // x.shape[1], module.momentum, counted, id(module), rounding
            )

        return hook

    def _passed(self, name: str, own: Any) -> Callable[..., None]:
        """A hook that counts a call whose forward has not raised."""

        def hook(module: Any, args: Any, output: Any) -> None:
            call = self._entered.pop(name, None) if module is own else None
            if call is not None:
                self._calls.setdefault(name, []).append(call)

        return hook


def average(row: Row, calls: list[Call], instance: bool) -> tuple[Tensor, Tensor, float] | None:
    """Mean, variance and weight of some calls as the running statistics take them in; None for no call."""
    if not row.tracked:
        values = sum(c.values for c in calls)
        if not calls or not values:
            return None
        mean = sum((c.mean * (c.values / values) for c in calls), torch.zeros(()))
        return mean, sum((c.var * (c.values / values) for c in calls), torch.zeros(())), 1.0
    mean, var, weight = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64), 0.0
    for call in calls:
        cumulative = 0.0 if instance else 1 / max(1, call.count)
        m = cumulative if call.momentum is None else call.momentum
        mean, var, weight = mean * (1 - m) + call.mean * m, var * (1 - m) + call.var * m, weight * (1 - m) + m
    return (mean / weight, var / weight, weight) if weight > 0 else None


@dataclass
class Compared:
    """How many values of rows were compared, how many were withheld, and what was wrong."""

    right: int = 0
    withheld: int = 0
    wrong: list[str] = field(default_factory=list)


def compare(
    truth: Truth, name: str, steps: list[int], got: tuple[Tensor, Tensor], compared: Compared, instance: bool
) -> None:
    """Compare the recorded rows of a layer with the truth.

    Args:
        truth: The truth.
        name: The layer.
        steps: For each recorded row, which of the steps of the truth it is.
        got: ``batch_mean`` and ``batch_var``, ``[T, channels]``.
        compared: What the result is added to.
        instance: Whether it is an InstanceNorm.
    """
    rows = truth.rows.get(name, [])
    for at, step in enumerate(steps):
        row = rows[step] if step < len(rows) else None
        mean, var = (t[at].double() for t in got)
        if mean.isnan().all() and var.isnan().all():
            compared.withheld += 1
            continue
        if row is None:
            compared.wrong.append(f"{name} step {step}: recorded, but the layer was not there")
            continue
        if row.unknown:
            continue
        problems = []
        for calls in _possible(row):
            found = average(row, calls, instance)
            problem = "recorded, but no batch was taken in" if found is None else _differs(row, found, mean, var)
            problems.append(problem)
        if all(problems):
            compared.wrong.append(f"{name} step {step} ({len(row.calls)} calls): {problems[0]}")
        else:
            compared.right += 1


def _possible(row: Row) -> list[list[Call]]:
    """The calls that a row may be of: all, those since an evaluation, and those of the layer that had the name first.

    Code that puts another layer in a layer's place amid a step gives two layers one name: the row is of the first.
    """
    first = row.calls[0].layer if row.calls else 0
    return [row.calls, row.calls[row.since_evaluation :], [call for call in row.calls if call.layer == first]]


def _differs(row: Row, found: tuple[Tensor, Tensor, float], mean: Tensor, var: Tensor) -> str:
    true_mean, true_var, weight = found
    momenta = {c.momentum for c in row.calls} | row.momenta
    loose = 0.02 if len(momenta) > 1 else 0.0  # two batches that differ by less than 1 % count as one
    own = max((c.rounding for c in row.calls), default=0.0)
    unit = row.rounding / weight * (2 if row.rounding < 1e-4 else 4)
    far_mean = torch.maximum(row.far_mean, true_mean.abs())
    far_var = torch.maximum(row.far_var, true_var)
    sigma = true_var.sqrt()
    may_mean = (1e-5 + loose) * sigma + unit * far_mean + 1e-6 * true_mean.abs() + 1e-7 + own
    may_var = (1e-4 + loose) * true_var + unit * far_var + 1e-5 * true_mean.square() + 1e-7
    may_var = may_var + own * (1 + true_mean.abs() + sigma)
    for what, is_, true, may in (("mean", mean, true_mean, may_mean), ("var", var, true_var, may_var)):
        known = ~is_.isnan()
        off = ~((is_ - true).abs() <= may) & known
        if off.any():
            i = int(off.nonzero()[0])
            return f"{what}[{i}] is {float(is_[i]):.7g}, true is {float(true[i]):.7g} ± {float(may[i]):.2g}"
    return ""
