"""How many positions of a batch are padding at the ends of sequences."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from bnmonitor.measures.moments import LEAST_SAMPLES, part

LEAST_RUN = 3
"""Least number of positions that make a constant end."""

EDGE = 4
"""Largest part of a sequence, as one over it, by which its very end may differ from the constant before it."""

STILL = 1e-5
"""Difference of neighbors that are the same, in deviations: summed in another order they differ by rounding."""


def padding(x: Tensor) -> Tensor:
    """Count the positions of ``[N, C, L]`` at constant ends: at the start or the end of a sequence, in all channels.

    Behind operations with wide kernels the very last positions differ from the constant before them, as these see the
    zeros with which a convolution fills up its input. A sequence that is constant throughout does not count; nor do
    ends that are equally long in all sequences, as what repeats each position makes them. Of large batches a part of
    the samples is read, as by :func:`between`.

    Returns:
        ``[2]``: positions at constant ends, and all positions.
    """
    x = part(x, x.shape[0] // LEAST_SAMPLES).float()
    ends = torch.zeros(2, x.shape[0], dtype=torch.int64, device=x.device)
    if x.shape[2] > LEAST_RUN:
        spread, level = torch.var_mean(x, (0, 2), correction=0, keepdim=True)
        same = STILL * spread.sqrt_() + 8 * torch.finfo(x.dtype).eps * level.abs_()
        still = (x.diff(dim=-1).abs_() <= same).all(1)
        run, offset = (torch.stack(each) for each in zip(_run(still), _run(still.flip(-1)), strict=True))
        # Where both sides come to the same run, it belongs to the end that it is nearer to.
        shared = (run + offset).sum(0) > still.shape[-1]
        ends = run + 1
        ends = ends.where((ends >= LEAST_RUN) & (~shared | (offset < offset.flip(0))), 0)
        ends = ends.where((ends != ends[:, :1]).any(1, keepdim=True), 0)
    found = ends.sum()
    return torch.stack([found, torch.full_like(found, x.shape[0] * x.shape[2])])


def _run(still: Tensor) -> tuple[Tensor, Tensor]:
    """Length of the run of True that begins near the start of each row ``[n, L]``, 0 where none does, and its place."""
    started = still.cumsum(-1) > 0
    offset = (~started).sum(-1)
    run = (still | ~started).cumprod(-1).sum(-1) - offset
    return run.where(offset <= still.shape[-1] // EDGE, 0), offset


LEAST_ENDS = 6
"""Least number of sequences with padding that show where sequences end in rows without an axis for them.

With a length of 4 and more, as many ends of random runs of equal rows lie at its multiples in less than one case of
3,000."""

LEAST_LENGTH = 4
"""Least length of such a sequence."""

MOST_ROWS = 32768
"""Of more rows than these no ends are looked for."""

COMPARED = 16
"""Channels that tell whether two rows are equal."""


def padded_rows(x: Tensor) -> Tensor:
    """Count the rows of ``[R, C]`` that are padding of sequences which were laid end to end, as of nodes of graphs.

    Padded rows are equal to one another. Where all runs of them end, or all begin, at multiples of one length, and are
    not equally long, rows of that number belonged to a sequence.

    Returns:
        ``[2]``: rows of padding, and all rows.
    """
    rows, x = len(x), x[:, :: max(1, x.shape[1] // COMPARED)].detach().float()
    nothing = torch.stack([torch.zeros((), dtype=torch.int64, device=x.device), torch.full((), rows, device=x.device)])
    lengths = _lengths(rows) if rows <= MOST_ROWS else ()
    if not lengths:
        return nothing
    spread, level = torch.var_mean(x, 0, correction=0)
    same = STILL * spread.sqrt_() + 8 * torch.finfo(x.dtype).eps * level.abs_()
    still = (x.diff(dim=0).abs_() <= same).all(1)
    if x.device.type == "cpu" and int(still.sum()) < LEAST_ENDS:  # elsewhere nothing waits
        return nothing
    # Most equal neighbors are padding, if any are.
    middle = (still.cumsum(0) > still.sum() // 2).long().argmax()
    pad = ((x - x.index_select(0, middle[None])).abs_() <= same).all(1)
    # A list of numbers would be copied to the device, which waits for it.
    by = torch.stack([torch.full((), length, device=x.device) for length in lengths])[:, None]
    place = torch.arange(rows, device=x.device)
    inside = place % by != 0
    begins, after = pad.clone(), torch.zeros_like(pad)
    begins[1:] &= ~pad[:-1]
    after[1:] = pad[:-1] & ~pad[1:]
    fits = torch.stack([~(edges & inside).any(1) for edges in (begins, after)]).any(0)
    # Of the lengths that fit the largest: the others are its divisors.
    length = (by[:, 0] * fits).max().clamp(min=1)
    padded = torch.zeros(rows, dtype=torch.int64, device=x.device).index_add_(0, place // length, pad.long())
    some, ragged = padded > 0, (padded > 0) & (padded < length)
    first = padded.gather(0, some.long().argmax()[None])
    found = fits.any() & (ragged.sum() >= LEAST_ENDS) & (ragged & (padded != first)).any()
    return torch.stack([pad.sum().where(found, 0), nothing[1]])


@lru_cache(maxsize=64)
def _lengths(rows: int) -> tuple[int, ...]:
    """The lengths that so many rows can be made of, if they are at least :data:`LEAST_ENDS` sequences."""
    return tuple(length for length in range(LEAST_LENGTH, rows // LEAST_ENDS + 1) if rows % length == 0)
