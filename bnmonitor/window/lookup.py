"""What can be asked of a layer over the window: what was recorded, what follows from it, and what was sampled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

import torch
from torch import Tensor

from bnmonitor.window.sample import Moments, Sample
from bnmonitor.window.window import CHANNEL_STATISTICS

_UPDATES = {"gamma_update": "gamma", "beta_update": "beta"}
_SAMPLED = tuple(f"{side}_{field.name}" for side in ("input", "output") for field in fields(Moments))

SERIES = (*CHANNEL_STATISTICS, *_UPDATES, *_SAMPLED, "input_between")
"""Names of all statistics that have a value per channel and step."""


def series(
    name: str, rows: Mapping[str, Tensor], steps: Sequence[int], samples: Sequence[Sample], span: slice
) -> Tensor:
    """Return one statistic of one layer over the window.

    Args:
        name: One of :data:`SERIES`.
        rows: The recorded statistics, ``[T, C]`` by name.
        steps: The step of each row.
        samples: The samples that are kept.
        span: The layer's channels.

    Returns:
        ``[T, channels]``, a copy; NaN where nothing is known: the update of the first row, steps without a sample.
    """
    if name in CHANNEL_STATISTICS:
        return rows[name][:, span].clone()
    if name in _UPDATES:
        values = rows[_UPDATES[name]][:, span]
        return torch.cat([values[:1] * torch.nan, values.diff(dim=0)])
    shown = torch.full_like(rows["gamma"][:, span], torch.nan)
    at = {step: row for row, step in enumerate(steps)}
    side, _, statistic = name.partition("_")
    for sample in samples:
        if sample.step in at:
            value = sample.between if statistic == "between" else getattr(getattr(sample, side), statistic)
            shown[at[sample.step]] = value[span].to(shown.dtype)
    return shown
