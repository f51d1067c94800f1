"""Batch statistics that autograd keeps, and the affine map that one call of a BatchNorm applied to each channel."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bnmonitor.layers import runs_torch_forward
from bnmonitor.measures import Affine, carried, nonpositive, samples_reduced

_NODES = ("NativeBatchNormBackward0", "CudnnBatchNormBackward0", "MiopenBatchNormBackward0")

_packer: Callable[[bool], object] | None = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)

_PLAIN = {Tensor, nn.Parameter, type(None)}


def kept_by_autograd(x: Tensor, node: Any) -> tuple[Tensor, Tensor] | None:
    """Return the batch mean and ``1 / sqrt(var + eps)`` that autograd has kept for the backward.

    Args:
        x: The layer's input.
        node: The ``grad_fn`` of its output.

    Returns:
        ``[channels]`` each; None where autograd kept nothing, and in half precision. The names are private to PyTorch.
    """
    if type(node).__name__ not in _NODES or _packed():
        return None
    mean, scale = getattr(node, "_saved_result1", None), getattr(node, "_saved_result2", None)
    wanted = torch.float64 if x.dtype == torch.float64 else torch.float32
    if mean is None or scale is None or mean.dtype != wanted or mean.numel() != x.shape[1]:
        return None
    return (mean.detach(), scale.detach()) if mean.requires_grad or scale.requires_grad else (mean, scale)


def _packed() -> bool:
    """Whether a checkpoint or an offload packs what autograd keeps: reading it would run its forward once more."""
    try:
        return _packer is None or _packer(True) is not None
    except TypeError:
        return True


_READ = {"ConvolutionBackward0": "_saved_input", "AddmmBackward0": "_saved_mat1", "MmBackward0": "_saved_self"}
"""What autograd keeps of the input of an operation with weights, by the name of its node."""

_RESHAPING = {
    *("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "TransposeBackward0", "PermuteBackward0"),
    *("UnsqueezeBackward0", "SqueezeBackward1", "TBackward0"),
}


def data_of(x: Tensor) -> Tensor | None:
    """Return the data that a layer reads: its own input or that of the operation with weights before it.

    Args:
        x: The layer's input.

    Returns:
        ``[N, C, ...]``, without a gradient; None where something before it is trained, or where autograd did not keep
        it. The names are private to PyTorch.
    """
    node = _made_by(x)
    if node is None:
        return None if x.requires_grad else x
    return _read_by(node)


def producer_of(x: Tensor) -> tuple[Any, Tensor, Tensor] | None:
    """Return the operation with weights that made a layer's input of the data, with the data and its weight.

    None if there is none, if its weight is computed of other parameters or not trained, and where that is not known.
    """
    node = _made_by(x)
    data = None if node is None else _read_by(node)
    if data is None:
        return None
    if type(node).__name__ != "ConvolutionBackward0" and (x.dim() != 2 or data.dim() != 2):
        return None
    reads = node.next_functions
    edge = reads[-1][0] if type(node).__name__ != "ConvolutionBackward0" else reads[1][0]
    for _ in range(3):
        if edge is None or type(edge).__name__ == "AccumulateGrad":
            break
        # A cast or a transposition; what has several inputs is computed.
        edge = edge.next_functions[0][0] if len(edge.next_functions) == 1 else None
    weight = getattr(edge, "variable", None)
    return (node, data, weight) if isinstance(weight, Tensor) else None


def _made_by(x: Tensor) -> Any:
    """The node that made a tensor, changes of shape looked through; None for the data."""
    node: Any = x.grad_fn
    for _ in range(3):
        if type(node).__name__ not in _RESHAPING:
            break
        node = node.next_functions[0][0]
    return node


def _read_by(node: Any) -> Tensor | None:
    """The data that an operation with weights read; None for another operation, and if it read something trained."""
    name = _READ.get(type(node).__name__)
    if name is None or _packed():
        return None
    read = getattr(node, name, None)
    if not isinstance(read, Tensor) or read.requires_grad or read.dim() < 2:
        return None
    return read


def affine_of(module: nn.Module, x: Tensor, output: Tensor, kept: tuple[Tensor, Tensor] | None) -> Affine | None:
    """Return the affine map that one call of a layer applied to each channel; None where that is not certain.

    It is certain for PyTorch's own forward if autograd has kept the batch statistics, or if the call used the running
    ones. It is not for another forward (SyncBatchNorm, an activation within the layer), an output that a hook has since
    changed, a gamma that is computed or split over the processes, and an output in float16, which may overflow.

    Args:
        module: The layer.
        x: Its input.
        output: Its output.
        kept: What :func:`kept_by_autograd` returned for the call.
    """
    if (
        output._version
        or not runs_torch_forward(module)
        or output.dtype == torch.float16
        or type(output.grad_fn).__name__ not in _NODES
    ):
        return None
    statistics = kept if module.training else _running(module)
    if statistics is None or not module._parameters.keys() >= {"weight", "bias"}:
        return None
    mean, scale = statistics
    gamma, beta = module._parameters["weight"], module._parameters["bias"]
    if any(p is not None and p.shape != mean.shape for p in (gamma, beta)):
        return None
    if not {type(t) for t in (x, output, mean, gamma, beta)} <= _PLAIN:
        return None
    scale = scale if gamma is None else scale * gamma
    return Affine(scale, mean, torch.zeros_like(mean) if beta is None else beta)


class Passed(NamedTuple):
    """What is left to know of an output whose layer is a known affine map: ``[channels]`` each, on its device.

    Attributes:
        through: The map, as it was in the call.
        nonpositive: How many values of the output are not positive.
        margin: How close the output is, in a few places, to what the map makes of the input: the least that a value's
            magnitude is beyond the difference, which is counted in multiples of the rounding of 1.
    """

    through: Affine
    nonpositive: Tensor
    margin: Tensor

    def reduced(self, given: Tensor) -> Tensor:
        """Return what :func:`bnmonitor.measures.reduce` would return for the output; NaN where it is another one.

        A hook may change the output in place where autograd does not see it.

        Args:
            given: The result for the input.
        """
        scale, center, beta = self.through
        differs = -self.margin > (scale * center).abs() + beta.abs()
        return carried(given, self.through, self.nonpositive).masked_fill(differs, torch.nan)


def passed(through: Affine, x: Tensor, output: Tensor, *, training: bool) -> Passed:
    """Look at an output whose layer is a known affine map, and keep the map, which the step's update will change.

    Args:
        through: The map.
        x: The layer's input, ``[N, C, ...]``.
        output: Its output.
        training: Whether the layer was in training mode. Else the map has the running mean, which is overwritten.
    """
    given, made = _some(x), _some(output)
    scale, center, beta = (t.to(given.dtype) for t in through)
    wanted = torch.addcmul(beta[:, None], scale[:, None], given - center[:, None])
    far = (made - wanted).abs_()
    # What is not finite says nothing.
    margin = wanted.abs_().sub_(far, alpha=1 / _ROUNDING[output.dtype]).nan_to_num_(nan=0.0).amin(0).amin(1)
    kept = Affine(scale, center if training else center.clone(), beta.clone())
    return Passed(kept, nonpositive(output), margin)


def _some(x: Tensor) -> Tensor:
    """60 to 200 values of each channel of ``[N, C, ...]``, from all over it: ``[n, C, m]``, in float32 at least."""
    samples, positions = x.shape[0], max(1, math.prod(x.shape[2:]))
    step = samples // max(8, 64 // positions)
    every = positions // 8 | 1  # an odd number: an even one may divide the width, and takes one edge of all images
    x = x[::step] if step > 1 else x
    x = x.flatten(2) if x.dim() > 2 else x[..., None]
    x = x[:, :, every // 2 :: every] if every > 1 else x
    return x if x.dtype == torch.float64 else x.float()


_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.01}


class Batch(NamedTuple):
    """Mean and variance of the batch that one call of a layer normalized: ``[channels]`` each.

    Attributes:
        mean: The mean.
        var: The unbiased variance; with an ``eps`` what autograd keeps instead, ``1 / sqrt(var + eps)``, var biased.
        eps: The layer's eps; None where ``var`` is the variance.
        bias: The unbiased variance over the biased one.
    """

    mean: Tensor
    var: Tensor
    eps: float | None
    bias: float


def batch_of(module: nn.Module, x: Tensor, reduced: Tensor, kept: tuple[Tensor, Tensor] | None) -> Batch | None:
    """Return mean and variance of the batch that one call of a layer normalized; None if unknown.

    Args:
        module: The layer.
        x: Its input.
        reduced: What :func:`bnmonitor.measures.reduce` made of the input.
        kept: What :func:`kept_by_autograd` returned for the call.
    """
    count = x.numel() // max(1, x.shape[1])
    if not module.training or not runs_torch_forward(module) or count < 2:
        return None
    if kept is not None:
        return Batch(*kept, float(module.eps), count / (count - 1))  # type: ignore[arg-type]
    if samples_reduced(x) < x.shape[0]:
        return None
    return Batch(reduced[1], reduced[2] / (count - 1), None, 1.0)


def unbiased_variances(batches: Sequence[Batch | None]) -> list[Tensor | None]:
    """Return the unbiased variance of each batch, all computed together; None for None."""
    kept = [(batch.var, batch.eps, batch.bias) for batch in batches if batch is not None and batch.eps is not None]
    made: list[Tensor] = []
    if kept:
        scales, eps, bias = (list(each) for each in zip(*kept, strict=True))
        made = list(torch._foreach_pow(scales, -2))
        torch._foreach_sub_(made, eps)
        torch._foreach_clamp_min_(made, 0)
        torch._foreach_mul_(made, bias)
    computed = iter(made)
    return [None if b is None else b.var if b.eps is None else next(computed) for b in batches]


def _running(module: nn.Module) -> tuple[Tensor, Tensor] | None:
    mean, var = module._buffers.get("running_mean"), module._buffers.get("running_var")
    return None if mean is None or var is None else (mean, (var + module.eps).rsqrt())  # type: ignore[operator]
