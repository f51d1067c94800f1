"""What a checkpoint keeps of the newest steps, so that a resumed run judges them as if it had never stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from bnmonitor.recording.ring import Ring
from bnmonitor.window import Moments, Sample

_RENAMED = {"apart": "distance"}
"""Fields of a sample by the names that an older version saved them with."""

LIMIT = 32 * 2**20
"""Bytes above which the window is left out of a checkpoint: a resumed run then begins with an empty one."""


def save_window(ring: Ring, samples: Sequence[Sample], limit: int = LIMIT) -> dict[str, Any] | None:
    """Return the window and the samples as plain types and tensors; None if they are larger than a limit."""
    rows = ring.view()
    size = sum(t.numel() * t.element_size() for t in rows.values())
    plain = [_plain(sample) for sample in samples]
    size += sum(t.numel() * t.element_size() for each in plain for t in _tensors(each))
    if not ring.steps or size > limit:
        return None
    return {
        "steps": list(ring.steps),
        "rates": [float(rate) for rate in ring.rates],
        "rows": {name: rows_of.clone() for name, rows_of in rows.items()},
        "samples": plain,
    }


def restore_window(kept: Mapping[str, Any], ring: Ring) -> list[Sample]:
    """Fill an empty ring of the same layers with what was kept, and return the samples.

    A window that is smaller now takes the newest steps. Statistics that an older version did not keep are NaN or 0.
    """
    if not all(isinstance(step, int) for step in kept["steps"]):
        raise TypeError("a step of the window is not an int")
    if not all(isinstance(rate, float) for rate in kept["rates"]) or len(kept["rates"]) != len(kept["steps"]):
        raise TypeError("the learning rates of the window are not a float a step")
    new = min(len(kept["steps"]), ring.size)
    room = ring.room(kept["steps"][-new:], kept["rates"][-new:])
    for name, rows in room.items():
        was = kept["rows"].get(name)
        if was is None:
            rows.fill_(torch.nan if rows.is_floating_point() else 0)
        else:
            rows.copy_(was[-new:])
    return [_sample(plain) for plain in kept["samples"]]


def _plain(sample: Sample) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for each in fields(sample):
        value = getattr(sample, each.name)
        if isinstance(value, Moments):
            value = {f.name: getattr(value, f.name) for f in fields(value)}
        elif isinstance(value, tuple):
            value = [None if dtype is None else str(dtype).removeprefix("torch.") for dtype in value]
        plain[each.name] = value
    return plain


def _sample(plain: Mapping[str, Any]) -> Sample:
    known = {f.name for f in fields(Sample)}
    current = {_RENAMED.get(name, name): value for name, value in plain.items()}
    values = {name: value for name, value in current.items() if name in known}
    for side in ("input", "output"):
        values[side] = Moments(**values[side])
    dtypes = [None if name is None else getattr(torch, name) for name in values["input_dtypes"]]
    return Sample(**{**values, "input_dtypes": tuple(dtypes)})


def _tensors(plain: Mapping[str, Any]) -> list[Tensor]:
    found = [t for t in plain.values() if isinstance(t, Tensor)]
    return found + [t for part in plain.values() if isinstance(part, Mapping) for t in _tensors(part)]
