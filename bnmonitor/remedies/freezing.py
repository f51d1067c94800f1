"""Freezing normalization so that it stays frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from bnmonitor._text import count, listing
from bnmonitor.remedies._layers import chosen
from bnmonitor.remedies.said import Names


class _StayFrozen:
    """A forward hook that keeps a layer in evaluation mode; it holds no reference, so copies are frozen as well.

    Args:
        trained: Names of the parameters that were trained before.
    """

    def __init__(self, trained: tuple[str, ...]) -> None:
        self.trained = trained

    def __call__(self, layer: nn.Module, args: tuple[Any, ...]) -> None:
        """Put the layer back in evaluation mode if a ``train()`` has reached it."""
        if layer.training:
            layer.training = False


def is_frozen(layer: nn.Module) -> bool:
    """Return whether :func:`freeze` froze a layer."""
    return any(isinstance(hook, _StayFrozen) for hook in layer._forward_pre_hooks.values())


def freeze(
    model: nn.Module, *, include: Sequence[str] = ("*",), exclude: Sequence[str] = (), affine: bool = True
) -> Names:
    """Freeze normalization layers, and keep them frozen through every later ``model.train()``.

    A frozen layer normalizes with its running statistics, which no longer change; ``requires_grad_(False)`` alone does
    not do that, and ``layer.eval()`` lasts until the next ``model.train()``. A forward hook puts the layer back in
    evaluation mode. The state_dict stays as it is, and a copy of the model is frozen as well. Call it before
    ``torch.compile`` and before DistributedDataParallel.

    Args:
        model: The model.
        include: Glob patterns over layer names; a layer is frozen if one matches.
        exclude: Glob patterns; a layer is not frozen if one matches.
        affine: Freeze gamma and beta, too.

    Returns:
        Names of the layers; printed, a sentence.

    Raises:
        ValueError: There is no layer to freeze, or a pattern matches none.
        RuntimeError: A layer's own methods keep it from being frozen.
    """
    layers = chosen(model, include, exclude, fact="has_modes")
    for layer in layers.values():
        trained = [name for name, p in layer.named_parameters(recurse=False) if p.requires_grad] if affine else []
        for name in trained:
            layer.get_parameter(name).requires_grad_(False)
        held = next((h for h in layer._forward_pre_hooks.values() if isinstance(h, _StayFrozen)), None)
        if held is None:
            layer.register_forward_pre_hook(_StayFrozen(tuple(trained)))
        else:
            held.trained += tuple(trained)
        layer.eval()
    return Names(layers, _frozen(layers, affine=affine))


def _frozen(layers: Mapping[str, nn.Module], *, affine: bool) -> str:
    """Check what :func:`freeze` did, and say it.

    Raises:
        RuntimeError: A layer is not frozen.
    """
    moving = [name for name, layer in layers.items() if layer.training]
    trained = [n for n, layer in layers.items() if affine and any(p.requires_grad for p in layer.parameters(False))]
    if moving or trained:
        raise RuntimeError(f"{listing(moving or trained, 3)}: a method of its own keeps the layer from being frozen")
    what = "running statistics, gamma and beta stay" if affine else "running statistics stay, gamma and beta train"
    return f"{count(len(layers), 'layer')} frozen in evaluation mode: {what}"


def thaw(model: nn.Module, *, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()) -> Names:
    """Undo :func:`freeze`: layers follow the model's mode again, and what was trained before is trained again.

    Args:
        model: The model.
        include: Glob patterns over layer names; a layer is thawed if one matches.
        exclude: Glob patterns; a layer is not thawed if one matches.

    Returns:
        Names of the layers that were frozen; printed, a sentence.

    Raises:
        ValueError: There is no normalization layer, or a pattern matches none.
    """
    layers = chosen(model, include, exclude, fact="has_modes")
    thawed = tuple(name for name, layer in layers.items() if is_frozen(layer))
    for name in thawed:
        layer = layers[name]
        for key, hook in list(layer._forward_pre_hooks.items()):
            if isinstance(hook, _StayFrozen):
                del layer._forward_pre_hooks[key]
                for trained in hook.trained:
                    layer.get_parameter(trained).requires_grad_(True)
        layer.train(model.training)
    mode = "training" if model.training else "evaluation"
    return Names(thawed, f"{count(len(thawed), 'layer')} thawed, now in {mode} mode as the model is")
