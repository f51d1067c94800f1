"""Inputs of some layers in an evaluation, through hooks that exist only during it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bnmonitor.layers import Hooks, LayerTable, as_normalized
from bnmonitor.measures import merge, reduce, samples_reduced, spread
from bnmonitor.window import HeldOut

MOST_BATCHES = 16
"""Batches of an evaluation that are kept. When there are twice as many, every second one is dropped, and from then on
only every second one of those that would have been kept is: so they lie evenly over an evaluation of unknown length."""

KEPT = 2
"""Evaluations kept."""

LEAST_BATCHES = 4
"""Batches of an evaluation from which their spread tells the noise."""

OF_A_MEDIAN = 1.25
"""Standard error of a median of normal values, over that of their mean."""


class _Seen:
    """The batches of one layer in an evaluation, evenly spread over it."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.calls, self.stride = 0, 1
        self.kept: list[tuple[int, Tensor]] = []
        self.running: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def collect(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Reduce the input of one call, if it is due."""
        x = args[0] if args else None
        due = self.calls % self.stride == 0
        if not due or module.training or not isinstance(x, Tensor) or x.dim() < 2 or not x.numel():
            self.calls += not module.training
            return
        self.calls += 1
        x = as_normalized(module, x)
        if self.running is None:
            # The statistics of this evaluation: averaged weights may be evaluated with others than are trained.
            mean, var = module._buffers.get("running_mean"), module._buffers.get("running_var")
            self.running = None if mean is None or var is None else (mean.clone(), var.clone())
        part = spread(x)
        self.kept.append((samples_reduced(part), reduce(part)))
        if len(self.kept) >= 2 * MOST_BATCHES:
            self.kept = self.kept[::2]
            self.stride *= 2


class HeldOutSampler:
    """Places hooks on some layers for an evaluation, and keeps the moments of their inputs in the latest ones."""

    def __init__(self) -> None:
        self.latest: tuple[HeldOut, ...] = ()
        """The latest evaluations, the newest last."""
        self.has_unjudged = False
        """Whether no rule has judged the newest of them yet."""
        self._seen: dict[int, _Seen] = {}
        self._hooks = Hooks()

    def attach(self, modules: Sequence[nn.Module], which: Collection[int]) -> None:
        """Place the hooks on the layers at some positions."""
        self.detach()
        self._seen = {i: _Seen(modules[i]) for i in which}
        for seen in self._seen.values():
            self._hooks.on_forward(seen.module, seen.collect)

    def detach(self) -> None:
        """Remove every hook, and forget what was not collected."""
        self._hooks.remove()
        self._seen = {}

    def collect(self, step: int, layers: LayerTable) -> None:
        """Keep the evaluation that has just ended, if a layer was called in it."""
        seen = {i: s for i, s in self._seen.items() if s.kept and s.running is not None}
        self.detach()
        if not seen:
            return
        size = torch.zeros(len(layers), dtype=torch.int64, device="cpu")
        rows = torch.full((len(_ROWS), layers.total), torch.nan, device="cpu")
        for i, s in seen.items():
            # A network of several widths calls a layer with some of its channels as well.
            kept = [(n, part) for n, part in s.kept if part.shape[1] == layers.channels[i]]
            if s.running is None or not kept:
                continue
            whole = kept[0][1]
            for _, part in kept[1:]:
                whole = merge(whole, part)
            size[i] = sum(n for n, _ in kept)
            moments = [whole[1], whole[2] / whole[0], *(t.to(whole) for t in s.running), *_middle(kept)]
            rows[:, layers.span(i)] = torch.stack(moments).float().cpu()
        self.latest = (*self.latest, HeldOut(step=step, size=size, **dict(zip(_ROWS, rows, strict=True))))[-KEPT:]
        self.has_unjudged = True


_ROWS = ("mean", "var", "running_mean", "running_var", "middle_mean", "middle_var", "noise_mean", "noise_log_var")
"""The statistics of a :class:`HeldOut`, in the order in which they are put together."""


def _middle(kept: Sequence[tuple[int, Tensor]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Median over the batches of mean and variance, and the standard errors of the mean and of the log variance."""
    mean = torch.stack([part[1] for _, part in kept])
    var = torch.stack([part[2] / part[0] for _, part in kept])
    unknown = torch.full_like(mean[0], torch.nan)
    middle = mean.median(0).values, var.median(0).values
    if len(kept) < LEAST_BATCHES:
        return *middle, unknown, unknown
    error = OF_A_MEDIAN / len(kept) ** 0.5
    tiny = torch.finfo(var.dtype).tiny
    return *middle, error * mean.std(0), error * var.clamp(min=tiny).log().std(0)
