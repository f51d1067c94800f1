"""Gamma and beta that are split over the processes, which are known of the steps at which these told them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from bnmonitor.measures.reductions import once
from bnmonitor.window import Window


@once
def with_affine(window: Window) -> Window:
    """Return the window with the newest gamma and beta that were known at each step, where they are split.

    For what asks how they are. What asks how they change from step to step needs the window itself, in which the steps
    between two exchanges are NaN.
    """
    if not window.layers.split:
        return window
    ranks = window.facts.ranks
    newest = None if ranks is None or ranks.affine is None else ranks.affine
    if newest is not None and newest.gamma.numel() != window.layers.total:
        newest = None
    split = window.layers.split_channels
    steps = torch.tensor(window.steps, device="cpu")
    told = (~window.gamma.isnan() & split).any(1)
    if newest is not None:
        told |= steps == newest.step  # all of them may be NaN
    position = torch.arange(len(window), device="cpu")
    row = position.where(told, -1).cummax(0).values
    rows: dict[str, Any] = {}
    for name in ("gamma", "beta"):
        own = getattr(window, name)
        held = own[row.clamp(min=0)].masked_fill(row[:, None] < 0, torch.nan)
        if newest is not None and not bool(told.any()):
            held = getattr(newest, name).to(own.dtype).expand_as(own)
        rows[name] = torch.where(split, held, own)
    return replace(window, carried=window.averages, **rows)
