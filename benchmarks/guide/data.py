"""The data sets that scikit-learn brings along, as tensors: digits, tables, and squares out of two photographs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from sklearn import datasets
from torch import Tensor


@dataclass(frozen=True)
class Data:
    """Inputs and targets to train on, and others to judge by.

    Attributes:
        x: ``[N, ...]`` training inputs.
        y: ``[N]`` training targets: classes, or numbers in a regression.
        held_x: Inputs that are not trained on.
        held_y: Their targets.
        classes: How many classes there are; 0: a regression.
    """

    x: Tensor
    y: Tensor
    held_x: Tensor
    held_y: Tensor
    classes: int

    def first(self, samples: int) -> Data:
        """The same with fewer training samples."""
        return Data(self.x[:samples], self.y[:samples], self.held_x, self.held_y, self.classes)

    def of_classes(self, classes: tuple[int, ...]) -> Data:
        """Only some of the classes, numbered from 0."""

        def chosen(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            those = torch.isin(y, torch.tensor(classes))
            numbers = torch.zeros(self.classes, dtype=torch.long)
            numbers[list(classes)] = torch.arange(len(classes))
            return x[those], numbers[y[those]]

        return Data(*chosen(self.x, self.y), *chosen(self.held_x, self.held_y), len(classes))

    def changed(self, scale: float, shift: float) -> Data:
        """The same with other inputs: ``scale * x + shift``."""
        return Data(scale * self.x + shift, self.y, scale * self.held_x + shift, self.held_y, self.classes)


def _split(x: Tensor, y: Tensor, seed: int, held: float, classes: int) -> Data:
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1000 + seed))
    held_out, rest = order[: int(held * len(x))], order[int(held * len(x)) :]
    return Data(x[rest], y[rest], x[held_out], y[held_out], classes)


@cache
def digits(seed: int) -> Data:
    """1,797 handwritten digits, ``[N, 1, 8, 8]``, standardized as a whole; a third is held out, another for each seed.

    Args:
        seed: Which third.
    """
    x, y = datasets.load_digits(return_X_y=True)
    pixels = torch.tensor(x, dtype=torch.float32).view(-1, 1, 8, 8)
    return _split((pixels - pixels.mean()) / pixels.std(), torch.tensor(y), seed, 1 / 3, 10)


@cache
def table(name: str, seed: int) -> Data:
    """A table of scikit-learn, each column standardized: ``breast_cancer``, ``wine`` or ``diabetes`` (a regression).

    Args:
        name: Its name.
        seed: Which third is held out.
    """
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    columns = torch.tensor(x, dtype=torch.float32)
    columns = (columns - columns.mean(0)) / columns.std(0)
    if name == "diabetes":
        numbers = torch.tensor(y, dtype=torch.float32)
        return _split(columns, (numbers - numbers.mean()) / numbers.std(), seed, 1 / 3, 0)
    return _split(columns, torch.tensor(y), seed, 1 / 3, int(y.max()) + 1)


@cache
def photographs(seed: int, side: int = 16, each: int = 600) -> Data:
    """Squares out of the two photographs, ``[N, 3, side, side]``: which of the two is it?

    The held-out squares are from the right thirds of the photographs, the others from the left two thirds.

    Args:
        seed: Which squares.
        side: Pixels of a side, of photographs at half their size.
        each: Squares of each photograph to train on.
    """
    draw = torch.Generator().manual_seed(1000 + seed)
    parts: dict[str, list[Tensor]] = {"x": [], "y": [], "held_x": [], "held_y": []}
    for label, photograph in enumerate(datasets.load_sample_images().images):
        picture = torch.tensor(photograph, dtype=torch.float32).permute(2, 0, 1)[:, ::2, ::2] / 128 - 1
        height, width = picture.shape[1:]
        border = 2 * width // 3
        for name, left, right, count in (("", 0, border, each), ("held_", border, width, each // 2)):
            rows = torch.randint(0, height - side, (count,), generator=draw).tolist()
            columns = torch.randint(left, right - side, (count,), generator=draw).tolist()
            squares = [picture[:, r : r + side, c : c + side] for r, c in zip(rows, columns, strict=True)]
            parts[f"{name}x"].append(torch.stack(squares))
            parts[f"{name}y"].append(torch.full((count,), label))
    return Data(**{name: torch.cat(pieces) for name, pieces in parts.items()}, classes=2)
