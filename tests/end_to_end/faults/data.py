"""Real data that scikit-learn ships, as images, vectors, sequences, volumes and photographs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from sklearn import datasets
from torch import Tensor


@dataclass(frozen=True)
class Data:
    """Training and validation samples, shuffled once, standardized by the training part."""

    x: Tensor
    y: Tensor
    x_val: Tensor
    y_val: Tensor


def _split(x: Tensor, y: Tensor, share: float = 0.78) -> Data:
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    n = int(share * len(x))
    return Data(x[:n], y[:n], x[n:], y[n:])


def _tensors(load: Callable[[], object]) -> tuple[Tensor, Tensor]:
    found = load()
    x, y = torch.tensor(found.data).float(), torch.tensor(found.target)  # type: ignore[attr-defined]
    return x, y


@lru_cache
def images() -> Data:
    """Digits as they are: ``[1, 8, 8]``, ten classes."""
    x, y = _tensors(datasets.load_digits)
    return _split(((x - x.mean()) / x.std()).view(-1, 1, 8, 8), y)


@lru_cache
def vectors() -> Data:
    """Digits as vectors: ``[64]``."""
    return _reshaped(lambda x: x.flatten(1))


@lru_cache
def sequences() -> Data:
    """Digits read row by row, back and forth, so that neighbors in time are neighbors in the picture: ``[1, 64]``."""

    def wind(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, :, 1::2] = x[:, :, 1::2].flip(-1)
        return x.flatten(2)

    return _reshaped(wind)


@lru_cache
def volumes() -> Data:
    """Digits that wander to the right from slice to slice: ``[1, 4, 8, 8]``."""
    return _reshaped(lambda x: torch.stack([x.roll(i, -1) for i in range(4)], 2))


def _reshaped(form: Callable[[Tensor], Tensor]) -> Data:
    data = images()
    return Data(form(data.x), data.y, form(data.x_val), data.y_val)


def _table(load: Callable[[], object], *, regression: bool = False) -> Data:
    x, y = _tensors(load)
    data = _split(x, y.float() if regression else y)
    mean, std = data.x.mean(0), data.x.std(0)
    low, high = data.y.float().mean(), data.y.float().std()
    targets = ((data.y - low) / high, (data.y_val - low) / high) if regression else (data.y, data.y_val)
    return Data((data.x - mean) / std, targets[0], (data.x_val - mean) / std, targets[1])


@lru_cache
def wine() -> Data:
    """13 measures of 178 wines, three classes."""
    return _table(datasets.load_wine)


@lru_cache
def cells() -> Data:
    """30 measures of 569 cell nuclei, two classes."""
    return _table(datasets.load_breast_cancer)


@lru_cache
def patients() -> Data:
    """Ten measures of 442 patients, and a number to predict."""
    return _table(datasets.load_diabetes, regression=True)


@lru_cache
def photographs(side: int = 40, count: int = 640) -> Data:
    """Crops of two photographs, a building and a flower: ``[3, side, side]``, which of the two."""
    pictures = torch.stack([torch.tensor(p) for p in datasets.load_sample_images().images]).permute(0, 3, 1, 2).float()
    pictures = (pictures - pictures.mean((0, 2, 3), keepdim=True)) / pictures.std((0, 2, 3), keepdim=True)
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 2, (count,), generator=generator)
    top = torch.randint(0, pictures.shape[2] - side, (count,), generator=generator).tolist()
    left = torch.randint(0, pictures.shape[3] - side, (count,), generator=generator).tolist()
    crops = [pictures[c, :, i : i + side, j : j + side] for c, i, j in zip(y.tolist(), top, left, strict=True)]
    return _split(torch.stack(crops), y)
