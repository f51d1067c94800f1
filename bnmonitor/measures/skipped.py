"""Steps that an optimizer or a guard has skipped."""

from __future__ import annotations

import torch

from bnmonitor.window import Window

MOST_SKIPPED = 0.25
"""Largest part of the window that steps without a scaler may be skipped in: else they are no exception."""


def skipped_steps(window: Window, most: float = MOST_SKIPPED) -> list[int]:
    """Return the positions of the steps that moved no parameter, as far as the scaler or gamma and beta tell."""
    known = window.facts.skipped_steps
    if known:
        return [t for t, was in enumerate(known) if was] if len(known) == len(window) else []
    trains = window.facts.affine_trains & torch.tensor(window.layers.affine, dtype=torch.bool, device="cpu")
    if len(window) < 2 or not trains.any():
        return []
    one = window.gamma[:, window.layers.offsets[int(trains.long().argmax())]]  # a single channel nearly always decides
    if not (one[1:] == one[:-1]).any():
        return []
    starts = torch.tensor(window.layers.offsets[:-1], dtype=torch.int64, device="cpu")[trains]
    first = [rows[:, starts] for rows in (window.gamma, window.beta)]  # one channel of each layer rules most out
    still = torch.stack([(rows[1:] == rows[:-1]).all(1) for rows in first]).all(0)
    still &= (window.updates[1:, trains] > 0).any(1)
    at = [t + 1 for t in still.nonzero().flatten().tolist()]
    if not at or len(at) > most * len(window):
        return []
    mine = trains[window.layers.owner]
    return [t for t in at if all(bool((r[t] == r[t - 1])[mine].all()) for r in (window.gamma, window.beta))]
