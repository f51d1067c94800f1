"""Rows of padding, where sequences of unequal length were laid end to end."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bnmonitor.measures import padded_rows

SEEDS = range(5)


def laid_end_to_end(lengths: list[int], longest: int, generator: torch.Generator, *, left: bool = False) -> Tensor:
    """Rows of sequences that are filled up with zeros to one length, behind a linear map with a bias: ``[R, 24]``."""
    x = torch.zeros(len(lengths), longest, 8)
    for row, length in enumerate(lengths):
        x[row, :length] = torch.randn(length, 8, generator=generator)
    x = x.flip(1) if left else x
    return x.flatten(0, 1) @ torch.randn(8, 24, generator=generator) + torch.randn(24, generator=generator)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_every_padded_row_is_counted(seed: int, left: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 31, (40,), generator=generator).tolist()
    # The longest fills its place, and one sequence is missing altogether.
    lengths[:2] = 30, 0
    found = padded_rows(laid_end_to_end(lengths, 30, generator, left=left))
    assert found.tolist() == [40 * 30 - sum(lengths), 40 * 30]


@pytest.mark.parametrize("seed", range(40))
def test_equal_rows_elsewhere_are_no_padding(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    few = torch.randn(3, 8, generator=generator)

    def drawn(rows: int, weights: list[float]) -> Tensor:
        return few[
            torch.multinomial(torch.tensor(weights, dtype=torch.float64), rows, replacement=True, generator=generator)
        ]

    runs = torch.repeat_interleave(few, torch.tensor([100, 40, 100]), 0)
    views = torch.randn(60, 8, generator=generator).repeat_interleave(4, 0)
    for x in (torch.randn(240, 8), drawn(240, [1, 1, 1]), drawn(1200, [0.9, 0.05, 0.05]), runs, views, few, few[:0]):
        assert padded_rows(x).tolist() == [0, len(x)]


def test_places_that_are_all_filled_up_alike_are_no_padding_of_sequences_of_unequal_length() -> None:
    x = laid_end_to_end(20 * [12], 16, torch.Generator().manual_seed(0))
    assert padded_rows(x).tolist() == [0, 320]
