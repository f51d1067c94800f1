"""What the layers that see the data are given in an evaluation, through hooks that exist only in it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bnmonitor.layers import Hook, LayerTable, when_compiling
from bnmonitor.measures import merge, reduce
from bnmonitor.window import HeldOut

MOST_BATCHES = 16
"""Batches of an evaluation that are kept; where there are more, every second of them goes and of the rest every other
is taken from then on, so that they lie evenly over an evaluation whose length nobody knows."""

KEPT = 2
"""Evaluations kept."""


class _Seen:
    """The batches of one layer in an evaluation, evenly spread over it."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.calls, self.stride = 0, 1
        self.kept: list[tuple[int, Tensor]] = []
        self.running: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def take(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Look at one call."""
        x = args[0] if args else None
        due = self.calls % self.stride == 0
        if not due or module.training or not isinstance(x, Tensor) or x.dim() < 2 or not x.numel():
            self.calls += not module.training
            return
        self.calls += 1
        if self.running is None:
            # The statistics in force: averaged weights are evaluated with others than are trained.
            mean, var = module._buffers.get("running_mean"), module._buffers.get("running_var")
            self.running = None if mean is None or var is None else (mean.clone(), var.clone())
        self.kept.append((x.shape[0], reduce(x)))
        if len(self.kept) >= 2 * MOST_BATCHES:
            self.kept = self.kept[::2]
            self.stride *= 2


class HeldOutSampler:
    """Hooks some layers for an evaluation, and keeps the moments of what they were given in the latest ones."""

    def __init__(self) -> None:
        self.latest: tuple[HeldOut, ...] = ()
        """The latest evaluations, the newest last."""
        self.news = False
        """Whether one of them has not been judged yet."""
        self._seen: dict[int, _Seen] = {}
        self._handles: list[RemovableHandle] = []
        self._forget: Callable[[], None] = lambda: None

    def attach(self, modules: Sequence[nn.Module], which: Collection[int]) -> None:
        """Place the hooks on the layers at some positions."""
        self.detach()
        self._seen = {i: _Seen(modules[i]) for i in which}
        self._forget = when_compiling(self._release)
        self._handles = [s.module.register_forward_hook(Hook(s.module, s.take)) for s in self._seen.values()]

    def detach(self) -> None:
        """Take every hook away, and forget what was not handed over."""
        self._forget()
        self._forget = lambda: None
        self._release()
        self._seen = {}

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def take(self, step: int, layers: LayerTable) -> None:
        """Take in the evaluation that has just ended, if it showed anything."""
        seen = {i: s for i, s in self._seen.items() if s.kept and s.running is not None}
        self.detach()
        if not seen:
            return
        size = torch.zeros(len(layers), dtype=torch.int64, device="cpu")
        rows = torch.full((4, layers.total), torch.nan, device="cpu")
        for i, s in seen.items():
            whole = s.kept[0][1]
            for _, part in s.kept[1:]:
                whole = merge(whole, part)
            if s.running is None or whole.shape[1] != layers.channels[i]:
                continue
            size[i] = sum(n for n, _ in s.kept)
            moments = torch.stack([whole[1], whole[2] / whole[0], *(t.to(whole) for t in s.running)])
            rows[:, layers.span(i)] = moments.float().cpu()
        mean, var, running_mean, running_var = rows
        new = HeldOut(step=step, size=size, mean=mean, var=var, running_mean=running_mean, running_var=running_var)
        self.latest = (*self.latest, new)[-KEPT:]
        self.news = True
