"""Small networks with what makes real ones hard; each trains on real data in milliseconds a step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.modules.batchnorm import _BatchNorm

from tests.end_to_end.faults import data
from tests.end_to_end.faults.data import Data

_CONVS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_NORMS: dict[int, type[nn.Module]] = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class Unit(nn.Module):
    """Producer, normalization, activation: what all networks here are made of, and where injections go."""

    def __init__(self, producer: nn.Module, norm: nn.Module, act: nn.Module | None) -> None:
        super().__init__()
        self.producer, self.norm, self.act = producer, norm, act or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.producer(x)))


class Ghost(nn.Module):
    """Ghost batch normalization: parts of the batch are normalized apart by one layer (Hoffer et al. 2017)."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.norm, self.size = nn.BatchNorm1d(channels), size

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.norm(x)
        return torch.cat([self.norm(part) for part in x.chunk(max(1, len(x) // self.size))])


def conv(
    i: int, o: int, kernel: int = 3, *, stride: int = 1, groups: int = 1, act: nn.Module | None = None, dim: int = 2
) -> Unit:
    """A convolution with its normalization; ReLU unless another activation is given, ``nn.Identity`` for none."""
    producer = _CONVS[dim](i, o, kernel, stride, kernel // 2, groups=groups, bias=False)
    return Unit(producer, _NORMS[dim](o), nn.ReLU() if act is None else act)


def dense(i: int, o: int, *, ghost: int = 0, act: nn.Module | None = None) -> Unit:
    """A linear layer with its normalization."""
    norm = Ghost(o, ghost) if ghost else nn.BatchNorm1d(o)
    return Unit(nn.Linear(i, o, bias=False), norm, nn.ReLU() if act is None else act)


class Head(nn.Module):
    """Average over positions, and classify."""

    def __init__(self, channels: int, classes: int = 10, dropout: float = 0.0) -> None:
        super().__init__()
        self.drop, self.out = nn.Dropout(dropout), nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.drop(x.flatten(2).mean(2)))


class Residual(nn.Module):
    """Two convolutions around a skip; the last gamma starts at zero (Goyal et al. 2017)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a, self.b = conv(channels, channels), conv(channels, channels, act=nn.Identity())
        nn.init.zeros_(self.b.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.b(self.a(x)))


class Inverted(nn.Module):
    """Expand, depthwise, project (MobileNetV2)."""

    def __init__(self, i: int, o: int, stride: int = 1) -> None:
        super().__init__()
        wide = 3 * i
        self.expand = conv(i, wide, 1, act=nn.ReLU6())
        self.depthwise = conv(wide, wide, stride=stride, groups=wide, act=nn.ReLU6())
        self.project = conv(wide, o, 1, act=nn.Identity())
        self.skip = stride == 1 and i == o

    def forward(self, x: Tensor) -> Tensor:
        out = self.project(self.depthwise(self.expand(x)))
        return x + out if self.skip else out


class DenseLayer(nn.Module):
    """Normalize, activate, convolve, and append to what was (DenseNet-B)."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm, self.a = nn.BatchNorm2d(channels), conv(channels, 2 * growth, 1)
        self.b = nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.b(self.a(F.relu(self.norm(x))))], 1)


class Squeeze(nn.Module):
    """A convolution gated by its own average; the normalization of the gate sees one position an image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body, self.down = conv(channels, channels), conv(channels, channels // 2, 1)
        self.up = nn.Conv2d(channels // 2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        return x + out * torch.sigmoid(self.up(self.down(out.mean((2, 3), keepdim=True))))


class UNet(nn.Module):
    """Removes noise; defined outside in, run down and up."""

    def __init__(self, c: int = 8) -> None:
        super().__init__()
        self.up = conv(3 * c, c)
        self.bottom = nn.Sequential(conv(c, 2 * c), conv(2 * c, 2 * c))
        self.down = nn.Sequential(conv(1, c), conv(c, c))
        self.out = nn.Conv2d(c, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        low = self.bottom(F.max_pool2d(skip, 2))
        return self.out(self.up(torch.cat([skip, F.interpolate(low, scale_factor=2)], 1)))


class PreActivation(nn.Module):
    """A residual stream that nothing normalizes but at its readers (He et al. 2016)."""

    def __init__(self, c: int = 12, blocks: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, c, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for _ in range(blocks))
        self.a = nn.ModuleList(conv(c, c) for _ in range(blocks))
        self.b = nn.ModuleList(nn.Conv2d(c, c, 3, padding=1, bias=False) for _ in range(blocks))
        self.last, self.head = nn.BatchNorm2d(c), Head(c)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, a, b in zip(self.norms, self.a, self.b, strict=True):
            x = x + b(a(F.relu(norm(x))))
        return self.head(F.relu(self.last(x)))


class Siamese(nn.Module):
    """One encoder, two noisy views of each image, pulled together."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(conv(1, 12), conv(12, 16, stride=2), conv(16, 16), Head(16, 16))
        self.out = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.encoder(x))


class Transformer(nn.Module):
    """Convolutions with BatchNorm make the tokens, layers with LayerNorm read them (Xiao et al. 2021)."""

    def __init__(self, c: int = 24) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(1, 12), conv(12, c, stride=2), conv(c, c))
        layer = nn.TransformerEncoderLayer(c, 4, 2 * c, dropout=0.0, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(c, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x).flatten(2).transpose(1, 2)).mean(1))


class Gan(nn.Module):
    """Generator and discriminator; the discriminator sees real and fake in one batch."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(
            dense(16, 64),
            nn.Unflatten(1, (16, 2, 2)),
            nn.Upsample(scale_factor=2),
            conv(16, 16),
            nn.Upsample(scale_factor=2),
            conv(16, 12),
            nn.Conv2d(12, 1, 3, padding=1),
        )
        self.discriminator = nn.Sequential(
            nn.Conv2d(1, 12, 3, 2, 1),
            nn.LeakyReLU(0.2),
            conv(12, 24, stride=2, act=nn.LeakyReLU(0.2)),
            conv(24, 24, act=nn.LeakyReLU(0.2)),
            Head(24, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.discriminator(x)


Losses = Iterator[tuple[int, Tensor]]
"""The losses of a step, each with the number of the optimizer that minimizes it before the next is computed."""


def classify(model: nn.Module, x: Tensor, y: Tensor) -> Losses:
    yield 0, F.cross_entropy(model(x).float(), y)


def regress(model: nn.Module, x: Tensor, y: Tensor) -> Losses:
    yield 0, F.mse_loss(model(x).float().squeeze(1), y)


def denoise(model: nn.Module, x: Tensor, _: Tensor) -> Losses:
    yield 0, F.mse_loss(model(x + 0.5 * torch.randn_like(x)).float(), x)


def attract(model: nn.Module, x: Tensor, y: Tensor) -> Losses:
    one, two = (model.encoder(x + 0.2 * torch.randn_like(x)).float() for _ in range(2))
    yield 0, F.cross_entropy(model.out(one), y) + 0.1 * F.mse_loss(one, two)


def compete(model: nn.Module, x: Tensor, _: Tensor) -> Losses:
    fake = model.generator(torch.randn(len(x), 16))
    real = torch.cat([torch.ones(len(x), 1), torch.zeros(len(x), 1)])
    yield 0, F.binary_cross_entropy_with_logits(model.discriminator(torch.cat([x, fake.detach()])).float(), real)
    judged = model.discriminator(torch.cat([x, fake])).float()[len(x) :]
    yield 1, F.binary_cross_entropy_with_logits(judged, torch.ones_like(judged))


@dataclass(frozen=True)
class Network:
    """How to make a network, what it learns from, and how.

    Attributes:
        traits: ``conv``; ``relu`` where ReLUs read the units; ``once`` where every layer is called once a step;
            ``chain`` where nothing skips a unit; ``supervised`` where ``model(x)`` is the answer.
    """

    name: str
    make: Callable[[], nn.Module]
    data: Callable[[], Data]
    losses: Callable[[nn.Module, Tensor, Tensor], Losses] = classify
    traits: frozenset[str] = frozenset()

    def build(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return self.make()


@dataclass(frozen=True)
class Site:
    """A place for a fault: a unit, and the name of its normalization layer."""

    name: str
    unit: Unit

    @property
    def producer(self) -> nn.Module:
        return self.unit.producer

    @property
    def norm(self) -> _BatchNorm:
        return self.unit.norm.norm if isinstance(self.unit.norm, Ghost) else self.unit.norm  # type: ignore[return-value]


def batchnorms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Every BatchNorm layer by name, in the order of definition."""
    return {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}


def order(model: nn.Module, network: Network) -> list[str]:
    """Names of the BatchNorm layers in the order in which a training step calls them first."""
    twin = copy.deepcopy(model)
    called: dict[str, None] = {}
    for name, layer in batchnorms(twin).items():
        layer.register_forward_pre_hook(lambda *_, name=name: called.setdefault(name))
    source = network.data()
    for _ in network.losses(twin, source.x[:16], source.y[:16]):
        pass
    return list(called)


def sites(model: nn.Module, names: list[str]) -> list[Site]:
    """The units of a model in execution order."""
    units = [(name, m) for name, m in model.named_modules() if isinstance(m, Unit)]
    found = {f"{n}.norm.norm" if isinstance(u.norm, Ghost) else f"{n}.norm": u for n, u in units}
    return [Site(name, found[name]) for name in names if name in found]


def chain(c: int = 12, units: int = 6, inputs: int = 1) -> nn.Module:
    strides = {1: 2, 4: 2}
    units_ = [conv(inputs if i == 0 else c, c, stride=strides.get(i, 1)) for i in range(units)]
    return nn.Sequential(*units_, Head(c))


def mlp(inputs: int, outputs: int, width: int = 48, units: int = 2, ghost: int = 0) -> nn.Module:
    layers = [dense(inputs if i == 0 else width, width, ghost=ghost) for i in range(units)]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def _network(
    name: str, make: Callable[[], nn.Module], source: Callable[[], Data], traits: str, **more: object
) -> Network:
    return Network(name, make, source, traits=frozenset(traits.split()), **more)  # type: ignore[arg-type]


def _stack(*parts: nn.Module) -> nn.Module:
    return nn.Sequential(*parts)


ALL = (
    _network(
        "residual",
        lambda: _stack(conv(1, 12), Residual(12), conv(12, 16, stride=2), Residual(16), Head(16, dropout=0.1)),
        data.images,
        "conv relu once supervised images",
    ),
    _network("preactivation", PreActivation, data.images, "conv relu once supervised images"),
    _network("chain", chain, data.images, "conv relu once chain supervised images"),
    _network(
        "depthwise",
        lambda: _stack(conv(1, 8), Inverted(8, 8), Inverted(8, 12, 2), Inverted(12, 12), Head(12)),
        data.images,
        "conv once supervised images",
    ),
    _network(
        "dense",
        lambda: _stack(
            nn.Conv2d(1, 12, 3, padding=1, bias=False),
            *(DenseLayer(12 + 6 * i, 6) for i in range(3)),
            conv(30, 16, 1, stride=2),
            Head(16),
        ),
        data.images,
        "conv relu once supervised images",
    ),
    _network("unet", UNet, data.images, "conv relu once images", losses=denoise),
    _network(
        "squeeze",
        lambda: _stack(conv(1, 12), Squeeze(12), conv(12, 16, stride=2), Squeeze(16), Head(16)),
        data.images,
        "conv relu once supervised images",
    ),
    _network("mlp", lambda: mlp(64, 10, units=3), data.vectors, "relu once chain supervised"),
    _network("wine", lambda: mlp(13, 3, 24), data.wine, "relu once chain supervised small"),
    _network("patients", lambda: mlp(10, 1, 24), data.patients, "relu once chain small", losses=regress),
    _network(
        "conv1d",
        lambda: _stack(
            conv(1, 12, 5, dim=1), conv(12, 12, 5, stride=2, dim=1), conv(12, 16, 5, stride=2, dim=1), Head(16)
        ),
        data.sequences,
        "conv relu once chain supervised",
    ),
    _network(
        "conv3d",
        lambda: _stack(conv(1, 8, dim=3), conv(8, 12, stride=2, dim=3), conv(12, 12, dim=3), Head(12)),
        data.volumes,
        "conv relu once chain supervised",
    ),
    _network("ghost", lambda: mlp(30, 2, 32, ghost=16), data.cells, "relu chain supervised small"),
    _network("siamese", Siamese, data.images, "conv relu images", losses=attract),
    _network("transformer", Transformer, data.images, "conv relu once supervised images"),
    _network("gan", Gan, data.images, "conv images", losses=compete),
)

NETWORKS = {network.name: network for network in ALL}
