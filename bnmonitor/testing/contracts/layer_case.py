"""A kind of layer to be tested: how it is made and trained, and its batch statistics computed in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from bnmonitor.window import Recovery


@dataclass(frozen=True, kw_only=True)
class LayerCase:
    """A kind of layer, and what is to be recorded of it at momentum 0.1.

    Attributes:
        make: Makes a layer of ``channels`` channels, or a module that holds some.
        shape: Of a sample.
        channels: Channels of the layer.
        layers: Names under which the layers are to be found, below ``layer``.
        recovery: What each step is to be marked with.
        mean: Largest error of the mean, in standard deviations.
        var: Largest relative error of the variance.
        rounded: Whether some values are withheld, because they would be mostly rounding.
        wrap: Changes the finished model.
        dtype: Of the model and the batches.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = (3, 6, 6)
    channels: int = 6
    layers: tuple[str, ...] = ("layer",)
    recovery: Recovery = Recovery.EXACT
    mean: float = 1e-5
    var: float = 1e-4
    rounded: bool = False
    wrap: Callable[[nn.Module], Any] = lambda model: None
    dtype: torch.dtype = torch.float32

    def build(self) -> nn.Module:
        """Return a model with the layer in it, always the same one."""
        torch.manual_seed(0)
        model = Around(self.make(), self.shape, self.channels).to(self.dtype)
        self.wrap(model)
        return model

    def batches(self, count: int) -> list[Tensor]:
        """Return batches of 16 samples that drift, so that a statistic of the wrong step differs."""
        generator = torch.Generator().manual_seed(1)
        made = [torch.randn(16, *self.shape, generator=generator) * (1 + 0.1 * i) + 0.3 * i for i in range(count)]
        return [x.to(self.dtype) for x in made]


class Around(nn.Module):
    """The smallest network in which a layer can be trained."""

    def __init__(self, layer: nn.Module, shape: tuple[int, ...], channels: int) -> None:
        super().__init__()
        convolutions: tuple[Any, ...] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
        kernel = (1,) if len(shape) > 1 else ()
        self.before = convolutions[len(shape) - 1](shape[0], channels, *kernel)
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Return one value per sample and channel."""
        out: Tensor = self.layer(self.before(x)).square()
        return out.flatten(2).mean(2) if out.dim() > 2 else out


class Reference:
    """Mean and unbiased variance of the inputs of each layer, in float64, averaged over the calls of a step."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self.layers = {name: model.get_submodule(name) for name in names}
        self.calls: dict[str, list[tuple[int, Tensor, Tensor]]] = {name: [] for name in names}
        self.rows: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}
        for name, layer in self.layers.items():
            layer.register_forward_pre_hook(self._hook(name))

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if torch._C._current_graph_task_id() != -1:
                return  # a checkpoint computes the forward once more
            x = args[0].detach().double()
            if isinstance(module, _InstanceNorm):
                mean, var = x.flatten(2).mean(2).mean(0), x.flatten(2).var(2).mean(0)
            else:
                x = x.transpose(0, 1).flatten(1)
                mean, var = x.mean(1), x.var(1)
            self.calls[name].append((args[0].numel() // args[0].shape[1], mean, var))

        return hook

    def end_step(self, _: int = 0) -> None:
        """Average the calls as the running statistics do: the last one weighs most."""
        for name, calls in self.calls.items():
            layer: Any = self.layers[name]
            if layer.running_mean is None:
                weights = [float(values) for values, _, _ in calls]
            else:
                keep = 1 - (getattr(layer, "momentum", None) or 0.0)
                weights = [keep**later for later in reversed(range(len(calls)))]
            shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)
            means, variances = (torch.stack([call[i] for call in calls]) for i in (1, 2))  # type: ignore[misc]
            self.rows[name].append((shares @ means, shares @ variances))
            calls.clear()
