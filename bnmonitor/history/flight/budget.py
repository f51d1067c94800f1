"""How many steps a block has, how many blocks a page, and which pages are joined so that a record keeps its budget."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from bnmonitor.history.flight.layout import PARTS, STATISTICS, Part

EACH_STEP = 333
"""Channels up to which each step is kept by itself: to encode it costs some 30 us."""

_DEAREST = 111
"""Channels per step of a block beyond that, so that a step costs as much."""

_PAGE_STEPS = 2048
_MOST_PAGE_BYTES = 32 * 2**20
_FEWEST = 2
_SHARES = 8
"""The tail, a page while it is written, and the rest: a tail takes at most one share of the budget."""


def block_bytes(channels: int, block: int) -> int:
    """Return the bytes of a block in the tail."""
    return 4 * channels * len(STATISTICS) * (1 if block == 1 else len(PARTS)) + 128


def steps_per_block(channels: int) -> int:
    """Return how many steps a block has, so that to keep a step costs about the same for every model.

    >>> steps_per_block(200), steps_per_block(4_800), steps_per_block(26_560)
    (1, 64, 256)
    """
    return 1 if channels <= EACH_STEP else max(4, 1 << (-(-channels // _DEAREST) - 1).bit_length())


def least(channels: int) -> int:
    """Return the least budget with which a model of so many channels can be recorded.

    >>> least(26_560) < 32 * 2**20
    True
    """
    return _SHARES * _FEWEST * block_bytes(channels, steps_per_block(channels)) + 2**20


def blocks_per_page(channels: int, block: int, budget: int) -> int:
    """Return how many blocks a page has."""
    most = min(_MOST_PAGE_BYTES, budget // _SHARES) // block_bytes(channels, block)
    return max(_FEWEST, min(_PAGE_STEPS // block, most) // 2 * 2, min(16, most // 2 * 2))


def limit(budget: int) -> int:
    """Return the most bytes of all pages: the rest is for a tail, and for a page that is being written."""
    return budget * (_SHARES - 2) // _SHARES


def to_join(pages: Iterable[Part]) -> tuple[Part, ...]:
    """Return the pages to make coarser next: the oldest two of the level with the most pages; else the oldest one.

    So the blocks get longer with their age, and each length covers about as many pages.
    """
    levels: dict[tuple[int, int, int], list[Part]] = {}
    for page in sorted(pages):
        levels.setdefault((page.session, page.layout, page.level), []).append(page)
    if not levels:
        return ()
    # The earliest of several with as many pages, as dict and max keep their order.
    most = max(sorted(levels.values(), key=lambda each: (each[0].session, each[0].layout, -each[0].level)), key=len)
    for first, second in pairwise(most):
        if first.end == second.number and first.number % (2 << first.level) == 0:
            return first, second
    return (min(page for each in levels.values() for page in each),)
