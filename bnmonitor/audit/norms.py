"""The normalization layers of a file as a model of nothing but them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bnmonitor.audit.names import KERAS_EPS, PARTS, as_pytorch, half_norms, norm_names, unwrapped

_DEEPEST = 200
"""Levels of modules within modules; networks have a tenth of it, and Python recurses into no more than a thousand."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a file holds of one model.

    Attributes:
        tensors: Its tensors by name.
        eps: By layer what is added to the variance, where the file says it.
        momentum: By layer the momentum, alike.
    """

    tensors: Mapping[str, Tensor]
    eps: Mapping[str, float] = field(default_factory=dict)
    momentum: Mapping[str, float] = field(default_factory=dict)


class Norms(nn.Module):
    """A model of nothing but normalization layers.

    Attributes:
        left_out: Why a layer of the checkpoint is not among them, by its name.
        others: The other tensors of the checkpoint, by their names in the model.
        momentum_known: Whether the file says the momentum of every layer; else it is PyTorch's default.
    """

    def __init__(self) -> None:
        super().__init__()
        self.left_out: dict[str, str] = {}
        self.others: dict[str, Tensor] = {}
        self.momentum_known = False

    def state(self) -> dict[str, Tensor]:
        """Return every tensor of the checkpoint by its name in the model."""
        return {**self.others, **self.state_dict(keep_vars=True)}


def has_norms(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a layer with running statistics is among tensors, under any of the known names."""
    if norm_names(tensors):
        return True
    return any("moving_mean" in name for name in tensors) and bool(norm_names(as_pytorch(tensors)[0]))


def stand_in(contents: Contents) -> Norms:
    """Make a model of the layers, under their names, that holds the tensors as they are."""
    root = Norms()
    every, keras = as_pytorch(contents.tensors)
    tensors = {name: every[name] for name in norm_names(every)}
    owners = [name[: -len("running_mean")] for name in tensors if name.endswith("running_mean")]
    paths = {owner: unwrapped(owner).rstrip(".").split(".") for owner in owners}
    # What DistributedDataParallel and AveragedModel put before every name.
    wrapped = bool(paths) and all(len(path) > 1 and path[0] == "module" for path in paths.values())
    blank = nn.BatchNorm1d(1, affine=False, device="meta").eval()
    known = 0
    for owner, path in paths.items():
        parts = {part: tensors[owner + part] for part in PARTS if owner + part in tensors}
        if why := _misfit(parts):
            root.left_out[".".join(path[wrapped:]) or "norm"] = why
            continue
        layer = _like(blank)
        layer.num_features = parts["running_mean"].numel()
        name = owner.rstrip(".")
        layer.eps = contents.eps.get(name, KERAS_EPS if name in keras else blank.eps)
        layer.momentum = contents.momentum.get(name, blank.momentum)
        known += name in contents.momentum
        for part, tensor in parts.items():
            if part in ("weight", "bias"):
                layer._parameters[part] = nn.Parameter(tensor, requires_grad=False)
            else:
                layer._buffers[part] = tensor
        if "num_batches_tracked" not in parts:
            layer._buffers["num_batches_tracked"] = None
        _put(root, path[wrapped:], layer)
    root.momentum_known = bool(owners) and known == len(owners)
    cut = len("module.") if wrapped else 0
    root.left_out |= {unwrapped(owner)[cut:].rstrip("."): why for owner, why in half_norms(every).items()}
    root.others = {unwrapped(name)[cut:]: tensor for name, tensor in every.items() if name not in tensors}
    return root


def unsound(tensors: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """Return the name of a tensor that cannot belong to a layer and why; None if all can."""
    for name in norm_names(tensors):
        tensor = tensors[name]
        if name.count(".") > _DEEPEST:
            return name, f"lies {name.count('.')} modules deep"
        size = tensor.numel() * tensor.element_size()
        if not unfit(tensor) and size > tensor.untyped_storage().nbytes():
            return name, f"claims {size:,} bytes and holds {tensor.untyped_storage().nbytes():,}"
    return None


def unfit(tensor: Tensor) -> str:
    """Return why the values of a tensor cannot be read; empty if they can."""
    if tensor.layout != torch.strided:
        return "sparse"
    if tensor.is_complex():
        return "complex"
    if tensor.is_meta:
        return "without values"
    return "quantized" if tensor.is_quantized else ""


def _like(blank: nn.BatchNorm1d) -> nn.BatchNorm1d:
    """Return another layer of the same settings, which nobody hooks; its constructor takes twenty times as long."""
    layer = nn.BatchNorm1d.__new__(nn.BatchNorm1d)
    vars(layer).update(vars(blank), _parameters=dict(blank._parameters), _buffers=dict(blank._buffers))
    return layer


def _misfit(parts: Mapping[str, Tensor]) -> str:
    """Return why tensors cannot be those of one layer (a number per channel each, and one count); empty if they can."""
    for name, tensor in parts.items():
        if kind := unfit(tensor):
            return f"has a {name} that is {kind}"
    mean = parts["running_mean"]
    if mean.dim() != 1 or not mean.numel():
        return f"has a running_mean of shape {list(mean.shape)}, which is not a number per channel"
    for name, tensor in parts.items():
        if tensor.numel() != 1 if name == "num_batches_tracked" else tensor.shape != mean.shape:
            return f"has a {name} of shape {list(tensor.shape)} next to a running_mean of shape {list(mean.shape)}"
    return ""


def _put(root: nn.Module, path: list[str], layer: nn.Module) -> None:
    for part in path[:-1]:
        if part not in root._modules:
            root._modules[part] = nn.Module()  # whatever it is called
        root = root._modules[part]  # type: ignore[assignment]
    root._modules[path[-1] or "norm"] = layer
