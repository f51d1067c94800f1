"""Every kind of normalization layer, and what bnmonitor records of it: the single list for tests and documentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from bnmonitor.testing.contracts import LayerCase
from bnmonitor.window import Recovery
from tests.models import FrozenBatchNorm2d

CHANNELS = 6
FLAT, LINE, IMAGE, VOLUME = (5,), (3, 12), (3, 6, 6), (2, 4, 4, 4)

Status = Literal["exact", "fallback", "not possible", "not watched"]


@dataclass(frozen=True, kw_only=True)
class Kind(LayerCase):
    """A kind of layer, as the documentation lists it.

    Attributes:
        name: As the documentation calls it.
        status: How good the batch statistics are.
        how: Where they come from, or why there are none.
    """

    name: str
    status: Status = "exact"
    how: str = "the running statistics"
    channels: int = CHANNELS


class SyncOfOne(nn.SyncBatchNorm):
    """Writes its buffers like SyncBatchNorm, which cannot run without a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return nn.BatchNorm2d.forward(self, x)
        self.num_batches_tracked.add_(1)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, True, self.momentum)


class Subclass(nn.BatchNorm2d):
    """A subclass that does not change the statistics."""


class BatchNormAct2d(nn.BatchNorm2d):
    """Applies its activation too, like timm's: its output is not that of BatchNorm."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class Wrapper(nn.Module):
    """Holds the layer, as PyTorch Geometric's BatchNorm does."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.BatchNorm1d(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


class Ghost(nn.Module):
    """Normalizes each chunk of the batch alone, as pytorch-tabnet does."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.bn(chunk) for chunk in x.chunk(4)])


class GhostList(nn.Module):
    """Has a layer of its own for each chunk of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.bns = nn.ModuleList(nn.BatchNorm1d(CHANNELS) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([bn(chunk) for bn, chunk in zip(self.bns, x.chunk(2), strict=True)])


class Twice(nn.Module):
    """Calls one layer twice a step."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.norm = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.norm(x) * 3 + x + 1)


class Alias(nn.Module):
    """Reaches one layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(CHANNELS)
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.second(x)


class Checkpointed(nn.Module):
    """Computes the layer once more in the backward."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.bn = layer

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.bn, x, use_reentrant=False)


def compiled(backend: str) -> Callable[[nn.Module], None]:
    def wrap(model: nn.Module) -> None:
        torch.compiler.reset()  # code that was compiled for a model without hooks would be used for one with hooks
        model.compile(backend=backend)

    return wrap


def untracked(**arguments: Any) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(CHANNELS, track_running_stats=False, **arguments)


def instance(norm: Callable[..., nn.Module], **arguments: Any) -> nn.Module:
    return norm(CHANNELS, track_running_stats=True, **arguments)


def without_bias() -> nn.Module:
    layer = nn.BatchNorm2d(CHANNELS)
    layer.register_parameter("bias", None)  # what bias=False does, where PyTorch knows it
    return layer


def frozen_by_mode() -> nn.Module:
    return nn.BatchNorm2d(CHANNELS).requires_grad_(False).eval()


GRAPH = "what autograd has kept of the forward, by a hook on these layers alone"
AVERAGE = "the running statistics: the weighted average of the calls of a step"
ROUNDED = "the running statistics; error of their rounding divided by the momentum, values of mostly rounding withheld"

KINDS = (
    Kind(name="`BatchNorm1d` on `[N, C]`", make=lambda: nn.BatchNorm1d(CHANNELS), shape=FLAT),
    Kind(name="`BatchNorm1d` on `[N, C, L]`", make=lambda: nn.BatchNorm1d(CHANNELS), shape=LINE),
    Kind(name="`BatchNorm2d`", make=lambda: nn.BatchNorm2d(CHANNELS)),
    Kind(name="`BatchNorm3d`", make=lambda: nn.BatchNorm3d(CHANNELS), shape=VOLUME),
    Kind(
        name="`SyncBatchNorm`",
        make=lambda: SyncOfOne(CHANNELS),
        how="the running statistics, which are of the batch of all processes; tested by a stand-in on the CPU",
    ),
    Kind(name="`LazyBatchNorm2d`", make=nn.LazyBatchNorm2d, how="the running statistics, from the second step on"),
    Kind(name="a subclass of these", make=lambda: Subclass(CHANNELS)),
    Kind(
        name="a subclass with a fused activation (timm's `BatchNormAct2d`)",
        make=lambda: BatchNormAct2d(CHANNELS),
        how="the running statistics; sampled `output` is the module's, after the activation",
    ),
    Kind(
        name="a wrapper (PyTorch Geometric's `BatchNorm`)",
        make=Wrapper,
        shape=FLAT,
        layers=("layer.module",),
        how="the running statistics, under the name of the layer within",
    ),
    Kind(name="a layer under two names", make=Alias, layers=("layer.first",), how="the running statistics, once"),
    Kind(
        name="a layer called several times a step",
        make=lambda: Twice(nn.BatchNorm2d(CHANNELS)),
        layers=("layer.norm",),
        how=AVERAGE,
        recovery=Recovery.AVERAGED,
    ),
    Kind(
        name="ghost batch normalization, one layer",
        make=Ghost,
        shape=FLAT,
        layers=("layer.bn",),
        how=AVERAGE,
        recovery=Recovery.AVERAGED,
    ),
    Kind(
        name="ghost batch normalization, a layer for each chunk",
        make=GhostList,
        shape=FLAT,
        layers=("layer.bns.0", "layer.bns.1"),
    ),
    Kind(name="`affine=False`", make=lambda: nn.BatchNorm2d(CHANNELS, affine=False)),
    Kind(name="`bias=False`", make=without_bias),
    Kind(name="`momentum=None`", make=lambda: nn.BatchNorm2d(CHANNELS, momentum=None)),
    Kind(name="`InstanceNorm1d`", make=lambda: instance(nn.InstanceNorm1d), shape=LINE),
    Kind(name="`InstanceNorm2d`", make=lambda: instance(nn.InstanceNorm2d, affine=True)),
    Kind(name="`InstanceNorm3d`", make=lambda: instance(nn.InstanceNorm3d), shape=VOLUME),
    Kind(
        name="`InstanceNorm2d` called several times a step",
        make=lambda: Twice(instance(nn.InstanceNorm2d)),
        layers=("layer.norm",),
        how=f"{AVERAGE}; under `torch.compile` and in several processes they are mistaken for one call",
        recovery=Recovery.AVERAGED,
    ),
    Kind(
        name="`InstanceNorm2d` under `torch.compile`",
        make=lambda: instance(nn.InstanceNorm2d),
        wrap=compiled("aot_eager"),
    ),
    Kind(name="`track_running_stats=False`", make=untracked, how=GRAPH, recovery=Recovery.OBSERVED),
    Kind(
        name="`track_running_stats=False`, several calls a step",
        make=lambda: Twice(untracked()),
        layers=("layer.norm",),
        how=f"{GRAPH}: the average of the calls, weighted by their values",
        recovery=Recovery.AVERAGED,
    ),
    Kind(
        name="`track_running_stats=False` within a checkpoint",
        make=lambda: Checkpointed(untracked()),
        layers=("layer.bn",),
        status="fallback",
        how="the hook reduces the input: what autograd has kept is packed away",
        recovery=Recovery.OBSERVED,
    ),
    Kind(
        name="`track_running_stats=False` in bfloat16",
        make=untracked,
        status="fallback",
        how="the hook reduces the input in float32: what autograd has kept is rounded",
        recovery=Recovery.OBSERVED,
        dtype=torch.bfloat16,
    ),
    Kind(
        name="buffers in float16",
        make=lambda: nn.BatchNorm2d(CHANNELS),
        status="fallback",
        how=ROUNDED,
        mean=0.053,
        var=0.053,
        rounded=True,
        dtype=torch.float16,
    ),
    Kind(
        name="buffers in bfloat16",
        make=lambda: nn.BatchNorm2d(CHANNELS),
        status="fallback",
        how=ROUNDED,
        mean=0.11,
        var=0.11,
        rounded=True,
        dtype=torch.bfloat16,
    ),
    Kind(
        name="`track_running_stats=False` under `torch.compile`",
        make=untracked,
        status="not possible",
        how="no buffers, and no hook is let through",
        recovery=Recovery.NO_BUFFERS,
        wrap=compiled("eager"),
    ),
    Kind(
        name="`momentum=0`",
        make=lambda: nn.BatchNorm2d(CHANNELS, momentum=0.0),
        status="not possible",
        how="the running statistics carry nothing of the batch",
        recovery=Recovery.NO_MOMENTUM,
    ),
    Kind(
        name="evaluation mode",
        make=frozen_by_mode,
        status="not possible",
        how="the running statistics contain no batch",
        recovery=Recovery.NO_UPDATE,
    ),
    Kind(
        name="`FrozenBatchNorm2d` of torchvision, detectron2 and others",
        make=lambda: FrozenBatchNorm2d(CHANNELS),
        status="not possible",
        how="fixed statistics contain no batch: the layer is shown as frozen, without a warning",
        recovery=Recovery.NO_UPDATE,
    ),
    Kind(
        name="`InstanceNorm2d` without running statistics",
        make=lambda: nn.InstanceNorm2d(CHANNELS),
        layers=(),
        status="not watched",
        how="it keeps nothing",
    ),
    Kind(
        name="`GroupNorm`, `LayerNorm`, `RMSNorm`",
        make=lambda: nn.GroupNorm(2, CHANNELS),
        layers=(),
        status="not watched",
        how="they have no statistics of a batch",
    ),
)
