"""How many steps a block has, how many blocks a page, and which pages are joined so that a record keeps its budget."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from bnmonitor.history.flight.layout import PARTS, STATISTICS, Layout, Part

EACH_STEP = 333
"""Channels up to which each step is kept by itself: to encode it costs some 30 us."""

_DEAREST = 111
"""Channels per step of a block beyond that, so that a step costs as much."""

_LONG = 256
"""Blocks after which a run is long: from then on blocks have twice as many steps."""

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


def block_at(channels: int, steps: int) -> int:
    """Return how many steps a block has that begins after so many steps of a run: from a length on twice as many.

    >>> block_at(26_560, 65_535), block_at(26_560, 65_536), block_at(200, 10**6)
    (256, 512, 1)
    """
    block = steps_per_block(channels)
    return block if block == 1 or steps < _LONG * block else 2 * block


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


def to_join(pages: Mapping[Part, int]) -> tuple[Part, ...]:
    """Return the pages to make coarser next: the oldest two of the length with the most pages; else the oldest one.

    So the blocks get longer with their age, and each length covers about as many pages. Pages whose blocks are shorter
    than those of a newer one, as new blocks have become longer since, come before all others.

    Args:
        pages: How many steps a block of each page has.
    """
    lengths: dict[tuple[int, int, int], list[Part]] = {}
    for page in sorted(pages):
        lengths.setdefault((page.session, page.layout, pages[page]), []).append(page)
    if not lengths:
        return ()
    # The earliest of several with as many pages, as dict and max keep their order.
    most = lengths[max(sorted(lengths, key=lambda key: (*key[:2], -key[2])), key=lambda key: len(lengths[key]))]
    for first, second in (*_shorter(pages), *pairwise(most)):
        if first.level == second.level and first.end == second.number and first.number % (2 << first.level) == 0:
            return first, second
    return (min(pages),)


def _shorter(pages: Mapping[Part, int]) -> list[tuple[Part, Part]]:
    """Each page whose blocks are shorter than those of a newer one of its layout, and the next page; oldest first."""
    found, longest = list[tuple[Part, Part]](), 0
    for newer, page in pairwise(sorted(pages, reverse=True)):
        same = (page.session, page.layout) == (newer.session, newer.layout)
        longest = max(longest, pages[newer]) if same else 0
        if same and pages[page] < longest:
            found.append((page, newer))
    return found[::-1]


def length_of(page: Part, layout: Layout) -> int:
    """Return how many steps a block of a page has; the last one may have fewer."""
    return block_at(layout.total, page.number * layout.page * layout.block) << page.level
