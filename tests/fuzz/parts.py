"""The parts that models of programs are composed of."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from tests.end_to_end.kinds import (
    CHANNELS,
    Alias,
    BatchNormAct2d,
    Ghost,
    GhostList,
    Subclass,
    SyncOfOne,
    Wrapper,
    instance,
    untracked,
    without_bias,
)
from tests.models import FrozenBatchNorm2d

if TYPE_CHECKING:
    from tests.fuzz.program import Block

SHAPES: dict[str, tuple[int, ...]] = {"flat": (), "line": (5,), "image": (4, 4), "volume": (3, 3, 3)}
CLASSES = 3

MAKE: dict[str, Callable[[], nn.Module]] = {
    "BatchNorm1d": lambda: nn.BatchNorm1d(CHANNELS),
    "BatchNorm1d untracked": lambda: nn.BatchNorm1d(CHANNELS, track_running_stats=False),
    "BatchNorm2d": lambda: nn.BatchNorm2d(CHANNELS),
    "BatchNorm3d": lambda: nn.BatchNorm3d(CHANNELS),
    "SyncBatchNorm": lambda: SyncOfOne(CHANNELS),
    "LazyBatchNorm1d": nn.LazyBatchNorm1d,
    "LazyBatchNorm2d": nn.LazyBatchNorm2d,
    "subclass": lambda: Subclass(CHANNELS),
    "fused": lambda: BatchNormAct2d(CHANNELS),
    "wrapper": Wrapper,
    "alias": Alias,
    "ghost": Ghost,
    "ghost list": GhostList,
    "without affine": lambda: nn.BatchNorm2d(CHANNELS, affine=False),
    "without bias": without_bias,
    "untracked": untracked,
    "InstanceNorm1d": lambda: instance(nn.InstanceNorm1d),
    "InstanceNorm2d": lambda: instance(nn.InstanceNorm2d, affine=True),
    "InstanceNorm3d": lambda: instance(nn.InstanceNorm3d),
    "InstanceNorm2d untracked": lambda: nn.InstanceNorm2d(CHANNELS),
    "FrozenBatchNorm2d": lambda: FrozenBatchNorm2d(CHANNELS),
    "GroupNorm": lambda: nn.GroupNorm(2, CHANNELS),
}

NORMS = {
    "flat": (
        "BatchNorm1d",
        "BatchNorm1d",
        "BatchNorm1d untracked",
        "LazyBatchNorm1d",
        "wrapper",
        "ghost",
        "ghost list",
    ),
    "line": ("BatchNorm1d", "BatchNorm1d untracked", "InstanceNorm1d", "GroupNorm", "LazyBatchNorm1d"),
    "image": (
        "BatchNorm2d",
        "BatchNorm2d",
        "BatchNorm2d",
        "SyncBatchNorm",
        "LazyBatchNorm2d",
        "subclass",
        "fused",
        "alias",
        "without affine",
        "without bias",
        "untracked",
        "InstanceNorm2d",
        "InstanceNorm2d untracked",
        "FrozenBatchNorm2d",
        "GroupNorm",
    ),
    "volume": ("BatchNorm3d", "InstanceNorm3d", "GroupNorm"),
}

NORM_CLASSES = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
)
"""Base classes of the layers that are counted as normalizations."""

_ACTS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu_": lambda: nn.ReLU(inplace=True),
    "dropout": lambda: nn.Dropout(0.3),
    "none": nn.Identity,
    "silu": nn.SiLU,
}

_WEIGHTS: dict[str, Callable[[nn.Module], Any]] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "old weight_norm": nn.utils.weight_norm,
    "old spectral_norm": nn.utils.spectral_norm,
}

_happen: Callable[[], None] = lambda: None  # noqa: E731


def during_forward(call: Callable[[], None]) -> None:
    """Set what the models call amid their forwards."""
    global _happen
    _happen = call


class Middle(nn.Module):
    """Lets something happen amid a forward."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not torch.compiler.is_compiling():
            _happen()
        return x


class Called(nn.Module):
    """Calls a part in a way of its own."""

    def __init__(self, part: nn.Module, how: str) -> None:
        super().__init__()
        self.part, self.how = part, how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "checkpoint":
            return checkpoint(self.part, x, use_reentrant=False)
        if self.how == "reentrant":
            return checkpoint(self.part, x if x.requires_grad else x.requires_grad_(), use_reentrant=True)
        if self.how == "twice":
            return self.part(self.part(x) * 2 + x + 1)
        if self.how == "no_grad":
            with torch.no_grad():
                return self.part(x)
        return x + self.part(x)


class Net(nn.Module):
    """Blocks and a head."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.middle = Middle()
        self.head = nn.Linear(CHANNELS, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.blocks):
            if i == len(self.blocks) // 2:
                x = self.middle(x)
            x = block(x)
        return self.head(x.flatten(2).mean(2) if x.dim() > 2 else x)


def part(block: Block, family: str, sample: Tensor, *, compiles: bool = True) -> nn.Module:
    """A block of a model.

    Args:
        block: Which.
        family: The family of shapes.
        sample: A batch to trace with.
        compiles: Whether a block is compiled that says so.
    """
    linear: nn.Module = {
        "flat": lambda: nn.Linear(CHANNELS, CHANNELS),
        "line": lambda: nn.Conv1d(CHANNELS, CHANNELS, 3, padding=1),
        "image": lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False),
        "volume": lambda: nn.Conv3d(CHANNELS, CHANNELS, 1),
    }[family]()
    if block.weight:
        _WEIGHTS[block.weight](linear)
    norm = MAKE[block.norm]()
    for module in norm.modules():
        if isinstance(module, NORM_CLASSES):
            module.momentum = block.momentum  # type: ignore[assignment]
    found: nn.Module = nn.Sequential(linear, norm, _ACTS[block.act]())
    if block.call == "script act":
        found[2] = torch.jit.script(found[2])  # type: ignore[operator,index]
    if block.call == "script":
        return torch.jit.script(found)  # type: ignore[no-any-return]
    if block.call == "trace":
        return torch.jit.trace(found, sample, check_trace=False)  # type: ignore[no-any-return,no-untyped-call]
    if block.call == "compile":
        if compiles:
            found.compile(backend="eager")
    elif block.call and block.call != "script act":
        return Called(found, block.call)
    return found


def loss_of(out: Tensor) -> Tensor:
    """The loss of a batch, whose classes follow each other."""
    return F.cross_entropy(out.float(), torch.arange(len(out)) % CLASSES)
