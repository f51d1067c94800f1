"""Batch statistics of layers without running statistics, from the only hooks that stay during training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from bnmonitor.layers import Hooks, as_normalized, recomputing
from bnmonitor.recording.recovery import Seen
from bnmonitor.sampling import kept_by_autograd


class Observer:
    """Hooks on the layers without running statistics; each keeps two small tensors a step.

    Autograd already keeps the batch mean and ``1 / sqrt(var + eps)`` for the backward. Where it does not, the hook
    reduces the input.
    """

    def __init__(self) -> None:
        # The hooks see each training step: a function that the training compiles must not end that.
        self._hooks = Hooks(outlast_compilation=True)
        self._seen: dict[int, Seen] = {}
        self._on: tuple[nn.Module, ...] = ()
        self._paused = False

    def attach(self, modules: Sequence[nn.Module]) -> None:
        """Place the hooks, and drop what they recorded before."""
        self._seen, self._paused = {}, False
        if len(modules) == len(self._on) and all(map(is_, modules, self._on)):
            return
        self.detach()
        self._on = tuple(modules)
        for module in modules:
            self._hooks.on_forward(module, self._saw)

    def detach(self) -> None:
        """Remove every hook."""
        self._hooks.remove()
        self._seen, self._on = {}, ()

    def pause(self) -> None:
        """Record nothing until the hooks are placed again, and leave them where they are.

        A compiled graph guards them: it would be compiled again for each that is removed and placed.
        """
        self._seen, self._paused = {}, True

    def collect(self) -> Mapping[int, Seen] | None:
        """Return the statistics of the step that has just ended, by ``id(module)``; None without hooks."""
        seen, self._seen = self._seen, {}
        return seen if self._hooks.placed and not self._paused else None

    @torch.no_grad()
    def _saw(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._paused:
            return
        x = args[0] if args else None
        if not isinstance(x, Tensor) or not isinstance(output, Tensor) or x.dim() < 2 or not x.numel():
            return
        if recomputing() or (not module.training and output.grad_fn is None):
            return
        x = as_normalized(module, x)
        try:
            mean, var = _from_graph(module, x, output.grad_fn) or _reduced(x)
        except RuntimeError:  # a training must not stop for it: the statistics are marked as missing
            return
        new, old = Seen(1, x.numel() // x.shape[1], mean, var), self._seen.get(id(module))
        self._seen[id(module)] = new if old is None else old.averaged(new)


def _from_graph(module: nn.Module, x: Tensor, node: Any) -> tuple[Tensor, Tensor] | None:
    """Mean and unbiased variance from what autograd has kept; None where it has kept nothing."""
    kept = kept_by_autograd(x, node)
    if kept is None:
        return None
    mean, scale = kept
    count = x.numel() // x.shape[1]
    var = scale.pow(-2).sub_(module.eps).clamp_(min=0)  # type: ignore[arg-type]
    return mean, var.mul_(count / max(1, count - 1))


def _reduced(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of ``[N, C, ...]``, in float32 at least."""
    x = x.detach()
    x = x if x.dtype == torch.float64 else x.float()
    dims = [d for d in range(x.dim()) if d != 1]
    mean = x.mean(dims, keepdim=True)
    # Centered first: as exact as var_mean, and five times faster on a CPU.
    squares = (x - mean).square_().sum(dims)
    return mean.flatten(), squares / max(1, x.numel() // x.shape[1] - 1)
