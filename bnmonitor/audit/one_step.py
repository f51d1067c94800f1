"""One training step of a copy of a model, to learn how its layers are connected."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bnmonitor.monitor import BatchNormWarning, Monitor


def forward(
    model: nn.Module, inputs: Tensor | Sequence[Tensor] | None, *, select: Sequence[str]
) -> tuple[Monitor | None, str]:
    """Watch one training step of a copy; the model and the random state are left as they are.

    Args:
        model: The model.
        inputs: Inputs of the forward. None: random inputs of a shape that the first layer accepts, if it says so.
        select: Rules to run.

    Returns:
        The monitor, closed; or None and the reason, where no forward could be run.
    """
    given = [inputs] if isinstance(inputs, Tensor) else inputs
    why = "the first layer does not determine the input of the forward"
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", BatchNormWarning)
        for each in [[x] for x in _guesses(model)] if given is None else [given]:
            try:
                return _step(copy.deepcopy(model), each, select), ""
            except Exception as error:
                why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return None, f"needs a forward: give the shape of its input with --input 2,3,224,224 ({why})"


def _step(model: nn.Module, inputs: Sequence[Tensor], select: Sequence[str]) -> Monitor:
    model.train()
    monitor = Monitor(model, select=select, sinks=[], on_alert="log")
    with torch.enable_grad(), monitor:
        model(*inputs)
        monitor.step()
    return monitor


def _guesses(model: nn.Module) -> list[Tensor]:
    """Return inputs that a model may take, judged by its first layer with weights."""
    for module in model.modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            axes = len(module.kernel_size)
            sizes = {1: (64, 1024), 2: (64, 224), 3: (16, 32)}[axes]
            return [torch.randn(4, module.in_channels, *(size,) * axes) for size in sizes]
        if isinstance(module, nn.Linear):
            return [torch.randn(4, module.in_features), torch.randn(4, 8, module.in_features)]
        if isinstance(module, nn.Embedding):
            return [torch.randint(module.num_embeddings, (4, 16))]
    return []
