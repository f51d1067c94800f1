"""Momentum and weight decay of normalization layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from bnmonitor._text import count, listing, nearest
from bnmonitor.layers import ANY_NORM
from bnmonitor.remedies._layers import bare, chosen
from bnmonitor.remedies.freezing import is_frozen
from bnmonitor.remedies.said import ByLayer


def set_momentum(
    model: nn.Module,
    momentum: float | Mapping[str, float | None] | None,
    *,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
) -> ByLayer[float | None]:
    """Set the momentum of BatchNorm layers: the weight of the newest batch in the running average.

    PyTorch's momentum is one minus that of Keras and of most papers.

    Args:
        model: The model.
        momentum: Between 0 and 1; None for the plain average of all batches; or what an earlier call returned, to put
            it back.
        include: Glob patterns over layer names; a layer is set if one matches.
        exclude: Glob patterns; a layer is not set if one matches.

    Returns:
        The momentum before, by layer; printed, a sentence.

    Raises:
        ValueError: The momentum is not between 0 and 1, there is no layer, or a mapping names one that is not there.
    """
    layers = chosen(model, include, exclude)
    wanted = momentum if isinstance(momentum, Mapping) else dict.fromkeys(layers, momentum)
    for name, value in wanted.items():
        if name not in layers:
            raise ValueError(f"the model has no BatchNorm layer {name!r} to set{nearest(name, layers)}")
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (number and 0 <= value <= 1):
            raise ValueError(f"momentum={value!r} must be between 0 and 1, or None for a cumulative average")
    before = {name: layers[name].momentum for name in wanted}
    for name, value in wanted.items():
        layers[name].momentum = value  # type: ignore[assignment]
    return ByLayer(before, _momentum_set({name: layers[name] for name in wanted}, before))  # type: ignore[arg-type]


def _momentum_set(layers: Mapping[str, nn.Module], before: Mapping[str, object]) -> str:
    """Say which momentum is in force, and which layers it does nothing to."""
    now = {layer.momentum for layer in layers.values()}
    idle = [name for name, layer in layers.items() if layer.running_mean is None or not layer.track_running_stats]
    frozen = [name for name, layer in layers.items() if name not in idle and is_frozen(layer)]
    had = listing(dict.fromkeys(before.values()), 3)
    parts = [f"momentum {listing(sorted(now, key=str), 3)} in {count(len(layers), 'layer')} (was {had})"]
    parts += [f"no effect in {listing(idle, 3)}, which keeps no running statistics"] * bool(idle)
    parts += [f"no effect in {listing(frozen, 3)} while it is frozen"] * bool(frozen)
    return "; ".join(parts)


def parameter_groups(
    model: nn.Module, weight_decay: float, *, biases: bool = False, **options: Any
) -> list[dict[str, Any]]:
    """Return parameter groups for an optimizer in which gamma and beta are not decayed.

    Decay on gamma does not regularize: the next layer makes up for it, and a channel is dead once its gamma is zero.
    Covers BatchNorm, InstanceNorm, GroupNorm, LayerNorm and RMSNorm with all their subclasses::

        torch.optim.SGD(parameter_groups(model, weight_decay=1e-4), lr=0.1, momentum=0.9)

    Args:
        model: The model; parameters that do not require a gradient are left out.
        weight_decay: The decay of everything else.
        biases: Whether the biases of other layers are decayed, too; He et al. (Bag of tricks, 2019) do not.
        options: Further options of both groups, such as ``lr``.

    Returns:
        Two groups, the decayed one first; one group if the other would be empty.

    Raises:
        ValueError: ``weight_decay`` is negative, or no parameter is trained.
    """
    if isinstance(weight_decay, bool) or not isinstance(weight_decay, (int, float)) or not weight_decay >= 0:
        raise ValueError(f"weight_decay={weight_decay!r} must be a number, 0 or more")
    decayed: dict[int, nn.Parameter] = {}
    spared: dict[int, nn.Parameter] = {}
    for module in bare(model).modules():
        for name, parameter in module.named_parameters(recurse=False):
            spare = isinstance(module, ANY_NORM) or (not biases and name == "bias")
            if parameter.requires_grad:
                (spared if spare else decayed)[id(parameter)] = parameter
    groups = [
        {"params": [p for key, p in decayed.items() if key not in spared], "weight_decay": weight_decay, **options},
        {"params": list(spared.values()), "weight_decay": 0.0, **options},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ValueError("no parameter of the model requires a gradient: there is nothing to put in a group")
    return groups
