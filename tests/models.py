"""Small architectures that together cover the ways BatchNorm is used, and one deterministic training loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.optim import Optimizer

from bnmonitor import Monitor

# Threads that share busy cores wait for each other: a step of these models takes 1 ms on one, up to a second on two.
torch.set_num_threads(1)


class ResidualBlock(nn.Module):
    def __init__(self, channels: int, momentum: float | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels, momentum=momentum)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels, momentum=momentum)
        nn.init.zeros_(self.bn2.weight)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(x + self.bn2(self.conv2(out)))


def residual(momentum: float | None = 0.1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8, momentum=momentum),
        nn.ReLU(inplace=True),
        ResidualBlock(8, momentum),
        ResidualBlock(8, momentum),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def depthwise(momentum: float | None = 0.1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 1, bias=False),
        nn.BatchNorm2d(12, momentum=momentum),
        nn.ReLU6(),
        nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False),
        nn.BatchNorm2d(12, momentum=momentum, eps=1e-3),
        nn.SiLU(),
        nn.Conv2d(12, 6, 1, bias=False),
        nn.BatchNorm2d(6, momentum=momentum),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(6, 4),
    )


class UNet(nn.Module):
    """Defined outside in, executed down and up: the decoder's layer is defined before the encoder's."""

    def __init__(self, momentum: float | None = 0.1) -> None:
        super().__init__()
        self.up = nn.Conv2d(16, 4, 3, padding=1)
        self.up_bn = nn.BatchNorm2d(4, momentum=momentum)
        self.bottom = nn.Conv2d(8, 8, 3, padding=1)
        self.bottom_bn = nn.BatchNorm2d(8, momentum=momentum)
        self.down = nn.Conv2d(3, 8, 3, padding=1)
        self.down_bn = nn.BatchNorm2d(8, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.down_bn(self.down(x)))
        low = F.relu(self.bottom_bn(self.bottom(F.max_pool2d(skip, 2))))
        joined = torch.cat([skip, F.interpolate(low, scale_factor=2)], 1)
        return self.up_bn(self.up(joined)).mean((2, 3))


def mlp(momentum: float | None = 0.1) -> nn.Module:
    return nn.Sequential(
        nn.Linear(10, 16),
        nn.BatchNorm1d(16, momentum=momentum),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(16, 8),
        nn.BatchNorm1d(8, momentum=momentum),
        nn.Tanh(),
        nn.Linear(8, 4),
    )


def conv1d(momentum: float | None = 0.1) -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, 6, 3),
        nn.BatchNorm1d(6, momentum=momentum),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )


def conv3d(momentum: float | None = 0.1) -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(2, 5, 3),
        nn.BatchNorm3d(5, momentum=momentum),
        nn.ReLU(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(5, 4),
    )


class Shared(nn.Module):
    """One BatchNorm under two names, called twice a step."""

    def __init__(self, momentum: float | None = 0.1) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6, momentum=momentum)
        self.again = self.bn
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.first(x)))
        return self.head(F.relu(self.again(self.second(x))).mean((2, 3)))


def without_affine(momentum: float | None = 0.1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6, momentum=momentum, affine=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )


def without_tracking(momentum: float | None = 0.1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6, momentum=momentum, track_running_stats=False),
        nn.ReLU(),
        nn.Conv2d(6, 5, 3),
        nn.BatchNorm2d(5, momentum=momentum),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 4),
    )


class FunctionalRelu(nn.Module):
    def __init__(self, momentum: float | None = 0.1, *, inplace: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.bn = nn.BatchNorm2d(6, momentum=momentum)
        self.head = nn.Linear(6, 4)
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.bn(self.conv(x)), inplace=self.inplace).mean((2, 3)))


class InPlaceRelu(FunctionalRelu):
    def __init__(self, momentum: float | None = 0.1) -> None:
        super().__init__(momentum, inplace=True)


class FrozenBatchNorm2d(nn.Module):
    """Fixed statistics and parameters, all of them buffers, as in torchvision and detectron2."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.linspace(0.5, 1.5, channels))
        self.register_buffer("bias", torch.linspace(-1.0, 1.0, channels))
        self.register_buffer("running_mean", torch.linspace(0.0, 0.3, channels))
        self.register_buffer("running_var", torch.linspace(1.0, 2.0, channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return x * scale.view(1, -1, 1, 1) + (self.bias - self.running_mean * scale).view(1, -1, 1, 1)


@dataclass(frozen=True)
class Architecture:
    """How to make a model, and the shape of its input."""

    make: Callable[..., nn.Module]
    shape: tuple[int, ...]

    def build(self, momentum: float | None = 0.1, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return self.make(momentum)

    def batches(self, count: int, size: int = 16, seed: int = 1) -> list[Tensor]:
        """Batches that drift and differ by channel, so that a wrong recovery cannot pass for a right one."""
        generator = torch.Generator().manual_seed(seed)
        batches = []
        for i in range(count):
            x = torch.randn(size, *self.shape, generator=generator)
            scale = torch.linspace(0.5, 2.0, self.shape[0]).view(1, -1, *[1] * (len(self.shape) - 1))
            batches.append(x * scale * (1 + 0.1 * i) + 0.3 * i)
        return batches


ARCHITECTURES = {
    "residual": Architecture(residual, (3, 8, 8)),
    "depthwise": Architecture(depthwise, (3, 8, 8)),
    "unet": Architecture(UNet, (3, 8, 8)),
    "mlp": Architecture(mlp, (10,)),
    "conv1d": Architecture(conv1d, (3, 12)),
    "conv3d": Architecture(conv3d, (2, 5, 5, 5)),
    "shared": Architecture(Shared, (3, 6, 6)),
    "without_affine": Architecture(without_affine, (3, 6, 6)),
    "without_tracking": Architecture(without_tracking, (3, 8, 8)),
    "functional_relu": Architecture(FunctionalRelu, (3, 6, 6)),
    "inplace_relu": Architecture(InPlaceRelu, (3, 6, 6)),
}


def train(
    model: nn.Module,
    batches: Sequence[Tensor],
    *,
    optimizer: Optimizer | None = None,
    monitor: Monitor | None = None,
    evaluate_every: int = 0,
    after_step: Callable[[int], None] | None = None,
) -> list[float]:
    """Train on one batch a step, and evaluate on the first one now and then; return the losses."""
    opt = optimizer or torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for step, x in enumerate(batches):
        opt.zero_grad()
        out = model(x)
        loss = F.cross_entropy(out, torch.arange(len(x)) % out.shape[1])
        loss.backward()
        opt.step()
        losses.append(float(loss.detach()))
        if monitor is not None:
            monitor.step()
        if after_step is not None:
            after_step(step)
        if evaluate_every and (step + 1) % evaluate_every == 0:
            if monitor is not None:
                monitor.begin_evaluation()
            _evaluate(model, batches[0])
            if monitor is not None:
                monitor.end_evaluation()
    return losses


def _evaluate(model: nn.Module, x: Tensor) -> None:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    with torch.no_grad():
        model(x)
    for module, mode in modes:
        module.training = mode
