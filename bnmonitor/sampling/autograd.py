"""Batch statistics that autograd keeps, and the affine map that one call of a BatchNorm applied to each channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bnmonitor.layers import runs_torch_forward
from bnmonitor.measures import Affine, samples_reduced, spread

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
    return mean.detach(), scale.detach()


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


def affine_of(module: nn.Module, x: Tensor, output: Tensor) -> Affine | None:
    """Return the affine map that one call of a layer applied to each channel; None where that is not certain.

    It is certain for PyTorch's own forward if autograd has kept the batch statistics, or if the call used the running
    ones. It is not for another forward (SyncBatchNorm, an activation within the layer), an output that a hook has since
    changed, a gamma that is computed or split over the processes, and an output in float16, which may overflow.
    """
    if (
        output._version
        or not runs_torch_forward(module)
        or output.dtype == torch.float16
        or type(output.grad_fn).__name__ not in _NODES
    ):
        return None
    statistics = kept_by_autograd(x, output.grad_fn) if module.training else _running(module)
    if statistics is None or not module._parameters.keys() >= {"weight", "bias"}:
        return None
    mean, scale = statistics
    gamma, beta = module._parameters["weight"], module._parameters["bias"]
    if any(p is not None and p.shape != mean.shape for p in (gamma, beta)):
        return None
    if not {type(t) for t in (x, output, mean, gamma, beta)} <= _PLAIN:
        return None
    scale = scale if gamma is None else scale * gamma.detach()
    return Affine(scale, mean, torch.zeros_like(mean) if beta is None else beta.detach())


def agrees(through: Affine, x: Tensor, output: Tensor) -> Tensor:
    """Return in which channels an output is what an affine map made of the input, in a few places: ``[C]`` bool.

    A hook may change the output in place where autograd does not see it.
    """
    given, made = (_some(t) for t in (x, output))
    scale, center, beta = (t[:, None].to(given.dtype) for t in through)
    wanted = torch.addcmul(beta, scale, given - center)
    allowed = _ROUNDING[output.dtype] * (wanted.abs() + (scale * center).abs() + beta.abs())
    # What is not finite says nothing.
    return ~((made - wanted).abs() > allowed).any(1)


def _some(x: Tensor) -> Tensor:
    """A few values of each channel of ``[N, C, ...]``, from all over it: ``[C, n]``, in float32 at least."""
    x = spread(x.detach())
    x = x[:: max(1, x.shape[0] // 8)].transpose(0, 1).flatten(1)
    return x if x.dtype == torch.float64 else x.float()


_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.01}


def batch_of(module: nn.Module, x: Tensor, output: Tensor, reduced: Tensor) -> Tensor | None:
    """Return mean and unbiased variance of the batch that one call of a layer normalized, ``[2, C]``; None if unknown.

    Args:
        module: The layer.
        x: Its input.
        output: Its output.
        reduced: What :func:`bnmonitor.measures.reduce` made of the input.
    """
    count = x.numel() // max(1, x.shape[1])
    if not module.training or not runs_torch_forward(module) or count < 2:
        return None
    kept = kept_by_autograd(x, output.grad_fn)
    if kept is not None:
        mean, scale = kept
        eps: Any = module.eps
        return torch.stack([mean, (scale.pow(-2) - eps).clamp(min=0) * (count / (count - 1))])
    return torch.stack([reduced[1], reduced[2] / (count - 1)]) if samples_reduced(x) == x.shape[0] else None


def _running(module: nn.Module) -> tuple[Tensor, Tensor] | None:
    mean, var = module._buffers.get("running_mean"), module._buffers.get("running_var")
    return None if mean is None or var is None else (mean, (var + module.eps).rsqrt())  # type: ignore[operator]
