"""A VGG-like network on the digits of scikit-learn, and how a published fault gets into its training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset

from bnmonitor import Monitor

RATE, BATCH, STEPS = 0.01, 64, 240


class Channelwise(nn.Module):
    """A softmax over channels, where an activation should be."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return x.softmax(1)


def network(*, norm: bool = True, act: type[nn.Module] = nn.ReLU, drops: tuple[float, ...] = (0.2, 0.3, 0.4, 0.5),
            between: float = 0.0, hidden: bool = True) -> nn.Sequential:  # fmt: skip
    """Twice two convolutions and a pooling, then a hidden layer; BatchNorm behind each activation."""
    parts: list[nn.Module] = []

    def convolve(i: int, o: int) -> None:
        parts.extend([nn.Conv2d(i, o, 3, padding=1, bias=not norm), act()])
        if norm:
            parts.append(nn.BatchNorm2d(o))

    for block, (i, o) in enumerate(((1, 12), (12, 24))):
        convolve(i, o)
        if between:
            parts.append(nn.Dropout(between))
        convolve(o, o)
        parts.extend([nn.MaxPool2d(2), nn.Dropout(drops[block])])
    parts.extend([nn.Flatten(), nn.Linear(96, 48), act()])
    if norm and hidden:
        parts.append(nn.BatchNorm1d(48))
    return nn.Sequential(*parts, nn.Dropout(drops[3]), nn.Linear(48, 10))


def he_normal(model: nn.Module) -> None:
    """Initialize as the sound program does."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)


def constant(model: nn.Module) -> None:
    """Every weight the same."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.constant_(module.weight, 0.01)


def arbitrary(model: nn.Module) -> None:
    """A deviation that has nothing to do with the widths."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(module.weight, std=0.25)


def entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy, as it should be."""
    return F.cross_entropy(logits, y)


def of_probabilities(p: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy by hand, a value a sample."""
    return -p.clamp(1e-7, 1 - 1e-7).log().gather(1, y[:, None]).squeeze(1)


def along_batch(logits: Tensor, y: Tensor) -> Tensor:
    """The sum of the cross-entropy over the batch for each class, instead of over the classes for each sample."""
    return -(F.one_hot(y, 10) * logits.softmax(1).clamp(1e-7).log()).sum(0).mean()


def erased(x: Tensor) -> Tensor:
    """Noise, and in half of the images a box of 40 to 80 % of the image that is filled with noise."""
    x = x + (torch.rand_like(x) * 0.2 - 0.1) * (torch.rand_like(x) < 0.5)
    for i in (torch.rand(len(x)) < 0.5).nonzero().flatten().tolist():
        side = int(8 * (0.4 + 0.4 * float(torch.rand(()))) ** 0.5 + 0.5)
        top, left = (int(torch.randint(0, 9 - side, ())) for _ in range(2))
        x[i, :, top : top + side, left : left + side] = torch.rand(1, side, side)
    return x


Minimizer = Callable[[nn.Module], torch.optim.Optimizer]


def momentum(rate: float) -> Minimizer:
    """SGD with momentum, as the sound program has it."""
    return lambda model: torch.optim.SGD(model.parameters(), rate, momentum=0.9)


FITTING = momentum(RATE)
"""What the sound program is trained with."""


@dataclass(frozen=True)
class Program:
    """One training.

    Attributes:
        name: As the list calls it.
        what: What is broken.
        ours: Codes of the rules that should name it; none where it is no matter of normalization.
        why: Why it is not ours, or what the rules see of it.
        make: The network.
        start: Its initialization.
        prepare: What is done to pixels from 0 to 255.
        augment: What is done to a batch.
        loss: What is minimized.
        minimizer: With what.
        sign: Of the gradients.
        labels: What becomes of the labels of the training data.
        rare: Whether later classes are rarer and rarer.
        momentum: Of the BatchNorm layers; None: as PyTorch has it.
        batch: Samples a batch.
        shuffle: Whether the training data are shuffled; if not they lie by class, as in folders.
        tuned: Whether the convolutions come trained, and stand still save for their statistics.
    """

    name: str
    what: str
    ours: tuple[str, ...] = ()
    why: str = ""
    make: Callable[[], nn.Module] = network
    start: Callable[[nn.Module], None] = he_normal
    prepare: Callable[[Tensor], Tensor] = lambda x: x / 255
    augment: Callable[[Tensor], Tensor] = lambda x: x
    loss: Callable[[Tensor, Tensor], Tensor] = entropy
    minimizer: Minimizer = FITTING
    sign: float = 1.0
    labels: Callable[[Tensor], Tensor] = lambda y: y
    rare: bool = False
    momentum: float | None = None
    batch: int = BATCH
    shuffle: bool = True
    tuned: bool = False


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pixels from 0 to 255: training images and labels, then those of the validation."""
    found = load_digits()
    x, y = torch.tensor(found.images).float()[:, None] / 16 * 255, torch.tensor(found.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    return x[:1400], y[:1400], x[1400:], y[1400:]


def train(program: Program, seed: int = 0) -> tuple[float, Monitor]:
    """Train under watch; return the accuracy in evaluation and the monitor."""
    torch.manual_seed(seed)
    x, y, x_val, y_val = digits()
    if program.rare:
        kept = torch.rand(len(y)) < 0.6 ** y.float()
        x, y = x[kept], y[kept]
    if not program.shuffle:
        x, y = x[y.argsort(stable=True)], y.sort(stable=True).values
    model = program.make()
    program.start(model)
    if program.tuned:
        _fit(model, x / 255, y)
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.modules.batchnorm._BatchNorm)):
                module.requires_grad_(False)
    for layer in model.modules():
        if program.momentum is not None and isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.momentum = program.momentum
    data = TensorDataset(program.prepare(x), program.labels(y))
    loader = DataLoader(data, program.batch, shuffle=program.shuffle, drop_last=True)
    validation = DataLoader(TensorDataset(program.prepare(x_val), y_val), 128)
    optimizer = program.minimizer(model)
    monitor = Monitor(model, optimizer=optimizer, sinks=[], on_alert="log", select=("all",), train_loader=loader)
    step, accuracy = 0, 0.0
    with monitor:
        while step < STEPS:
            for images, labels in loader:
                model.train()
                loss = program.loss(model(program.augment(images)), labels)
                optimizer.zero_grad()
                (program.sign * loss).backward()
                optimizer.step()
                monitor.step(loss=loss.detach())
                step += 1
                if step == STEPS:
                    break
            model.eval()
            with monitor.evaluation(), torch.no_grad():
                right = [(model(images).argmax(1) == labels) for images, labels in validation]
            accuracy = float(torch.cat(right).float().mean())
    return accuracy, monitor


def _fit(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Train a little, unwatched."""
    optimizer = momentum(RATE)(model)
    for _ in range(80):
        drawn = torch.randint(0, len(x), (BATCH,))
        optimizer.zero_grad()
        F.cross_entropy(model(x[drawn]), y[drawn]).backward()
        optimizer.step()
    model.zero_grad()
