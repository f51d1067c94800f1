"""The networks of the experiments: small, with a normalization that is exchanged."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]
"""Makes the layer for so many channels."""


class Meter(nn.Module):
    """Lets its input through and computes its batch statistics beside, so that bnmonitor sees a network without norms.

    Args:
        channels: Channels of the input.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.of = nn.BatchNorm1d(channels, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """Measure, and return the input."""
        with torch.no_grad():
            self.of(x.flatten(2) if x.dim() > 2 else x)
        return x


class Ghost(nn.Module):
    """BatchNorm over groups of the batch, each normalized by itself, as if the batch were small.

    Args:
        channels: Channels of the input.
        group: Samples of a group; a rest that is smaller joins the last one.
    """

    def __init__(self, channels: int, group: int) -> None:
        super().__init__()
        self.norm, self.group = batch(channels), group

    def forward(self, x: Tensor) -> Tensor:
        """Normalize each group."""
        if not self.training or len(x) < 2 * self.group:
            out: Tensor = self.norm(x)
            return out
        ends = list(range(self.group, len(x) - self.group + 1, self.group))
        return torch.cat([self.norm(part) for part in torch.tensor_split(x, ends)])


class Noisy(nn.Module):
    """BatchNorm whose output is shifted and stretched anew at each step, channel by channel (Santurkar et al. 2018).

    Args:
        channels: Channels of the input.
        noise: Standard deviation of the shift and of the log of the stretch.
    """

    def __init__(self, channels: int, noise: float = 0.5) -> None:
        super().__init__()
        self.norm, self.noise = batch(channels), noise

    def forward(self, x: Tensor) -> Tensor:
        """Normalize, and move the distribution again."""
        out: Tensor = self.norm(x)
        if self.training:
            shape = (1, out.shape[1], *([1] * (out.dim() - 2)))
            out = out * (self.noise * torch.randn(shape)).exp() + self.noise * torch.randn(shape)
        return out


class Any(nn.BatchNorm1d):
    """BatchNorm for batches of vectors and of pictures alike."""

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() not in (2, 3, 4):
            raise ValueError(f"expected 2, 3 or 4 dimensions, got {x.dim()}")


def batch(channels: int, **settings: float) -> nn.Module:
    """BatchNorm for vectors and pictures."""
    return Any(channels, **settings)


def none(channels: int) -> nn.Module:
    """No normalization, with a meter."""
    return Meter(channels)


def group(channels: int, groups: int = 4) -> nn.Module:
    """GroupNorm, with a meter before it."""
    return nn.Sequential(Meter(channels), nn.GroupNorm(groups, channels))


def layer(channels: int) -> nn.Module:
    """LayerNorm over all channels and places, with a meter before it."""
    return nn.Sequential(Meter(channels), nn.GroupNorm(1, channels))


def mlp(norm: Norm, *, depth: int = 3, width: int = 64, inputs: int = 64, outputs: int = 10) -> nn.Sequential:
    """Dense layers, each with a norm and a ReLU, and one for the result.

    Args:
        norm: The normalization.
        depth: Hidden layers.
        width: Channels of each.
        inputs: Numbers of a sample.
        outputs: Numbers of a result.
    """
    parts: list[nn.Module] = [nn.Flatten()]
    for number in range(depth):
        parts += [nn.Linear(width if number else inputs, width), norm(width), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(width, outputs))


def cnn(
    norm: Norm, *, channels: Sequence[int] = (12, 12, 24), planes: int = 1, outputs: int = 10, order: str = "before"
) -> nn.Sequential:
    """Convolutions 3x3, each with a norm and a ReLU; the picture is halved before the last.

    Args:
        norm: The normalization.
        channels: Of each convolution.
        planes: Of a picture.
        outputs: Numbers of a result.
        order: ``before`` or ``after``: where the norm is, seen from the ReLU.
    """
    parts: list[nn.Module] = []
    for number, width in enumerate(channels):
        parts += [nn.MaxPool2d(2)] if number == len(channels) - 1 else []
        pair = [norm(width), nn.ReLU()]
        parts += [nn.Conv2d(planes, width, 3, padding=1), *(pair if order == "before" else pair[::-1])]
        planes = width
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(planes, outputs))


class Block(nn.Module):
    """A residual block of two convolutions.

    Args:
        norm: The normalization.
        width: Channels.
        order: ``before``: convolution, norm, ReLU; ``after``: convolution, ReLU, norm; ``preactivation``: norm, ReLU,
            convolution.
    """

    def __init__(self, norm: Norm, width: int, order: str) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for _ in range(2):
            one = {"conv": nn.Conv2d(width, width, 3, padding=1, bias=False), "norm": norm(width), "relu": nn.ReLU()}
            parts += [one[name] for name in ORDERS[order]]
        self.branch = nn.Sequential(*(parts[:-1] if order == "before" else parts))
        self.last = nn.ReLU() if order == "before" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch."""
        out: Tensor = self.last(x + self.branch(x))
        return out


ORDERS = {
    "before": ("conv", "norm", "relu"),
    "after": ("conv", "relu", "norm"),
    "preactivation": ("norm", "relu", "conv"),
}


def residual(
    norm: Norm, *, order: str = "before", blocks: int = 2, width: int = 12, outputs: int = 10
) -> nn.Sequential:
    """A small residual network for the digits.

    Args:
        norm: The normalization.
        order: That of a :class:`Block`.
        blocks: How many.
        width: Channels.
        outputs: Numbers of a result.
    """
    begin = nn.Conv2d(1, width, 3, padding=1, bias=False)
    body = [Block(norm, width, order) for _ in range(blocks)]
    end = [norm(width), nn.ReLU()] if order == "preactivation" else []
    return nn.Sequential(
        begin, nn.MaxPool2d(2), *body, *end, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, outputs)
    )
