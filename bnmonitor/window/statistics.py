"""How a statistic of the window is declared: the one row that recording, the ring and made-up windows derive from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch


@dataclass(frozen=True, kw_only=True)
class Statistic:
    """One statistic that is recorded at every step.

    Attributes:
        name: The field of :class:`~bnmonitor.window.Window` that holds it.
        per: Whether it has a value per channel, ``[T, C]``, or per layer, ``[T, L]``.
        neutral: The value that says nothing of a layer.
        dtype: Its type; a statistic per channel is recorded in float64 where a layer's buffers are.
    """

    name: str
    per: Literal["channel", "layer"]
    neutral: float
    dtype: torch.dtype


def per_channel(neutral: float = math.nan) -> dict[str, Any]:
    """Return the metadata of a field that holds a statistic per channel."""
    return {"per": "channel", "neutral": neutral, "dtype": torch.float32}


def per_layer(neutral: float = math.nan, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Return the metadata of a field that holds a statistic per layer."""
    return {"per": "layer", "neutral": neutral, "dtype": dtype}
