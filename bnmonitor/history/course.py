"""The course of a training beside its frames: loss, learning rates, epochs and times."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnmonitor.history.source import Array


@dataclass(frozen=True)
class Course:
    """What was known of the training at each frame; NaN where it was not.

    Attributes:
        steps: ``[S]`` int64, those of the frames.
        wall_times: ``[S]`` float64, seconds since 1970.
        loss: ``[S]`` float64.
        learning_rates: ``[G, S]`` float64, a row for each parameter group.
        epochs: ``[S]`` float64.
    """

    steps: Array
    wall_times: Array
    loss: Array
    learning_rates: Array
    epochs: Array

    def table(self) -> tuple[tuple[str, ...], Array]:
        """Return the names of the rows that are known, and the rows as float32.

        They are ``loss``, ``lr 0``, ``lr 1``, ..., ``epoch``, and ``seconds`` since the first frame.
        """
        began = self.wall_times[0] if len(self.steps) else 0.0
        rows = {
            "loss": self.loss,
            **{f"lr {i}": row for i, row in enumerate(self.learning_rates)},
            "epoch": self.epochs,
            "seconds": self.wall_times - began,
        }
        known = {name: row for name, row in rows.items() if not np.isnan(row).all()}
        with np.errstate(over="ignore"):
            values = np.array(list(known.values())).reshape(len(known), len(self.steps)).astype(np.float32)
        return tuple(known), values

    @property
    def last_loss(self) -> float:
        """The loss at the last frame."""
        return float(self.loss[-1]) if len(self.loss) else math.nan

    @property
    def last_rates(self) -> tuple[float, ...]:
        """The learning rate of each parameter group at the last frame; empty if no group has one."""
        rates = self.learning_rates[:, -1].tolist() if len(self.steps) else []
        return () if all(rate != rate for rate in rates) else tuple(rates)

    @property
    def last_epoch(self) -> int | None:
        """The epoch of the last frame; None if it is unknown."""
        epoch = self.epochs[-1] if len(self.epochs) else math.nan
        return int(epoch) if math.isfinite(epoch) else None


def record(loss: float, learning_rates: Sequence[float], epoch: int | None) -> dict[str, Any]:
    """Return the record of one frame, in plain types that JSON can hold."""
    return {"loss": _plain(loss), "lr": [_plain(rate) for rate in learning_rates], "epoch": epoch}


def course(steps: Array, wall_times: Array, records: Mapping[int, Mapping[str, Any]]) -> Course:
    """Return the course at the steps of the frames.

    Args:
        steps: The steps.
        wall_times: Their times.
        records: By step; damaged parts of a record count as unknown.
    """
    at = [records.get(step, {}) for step in steps.tolist()]
    rates = [each if isinstance(each := one.get("lr"), list) else [] for one in at]
    table = np.full((max(map(len, rates), default=0), len(steps)), np.nan)
    for i, row in enumerate(rates):
        table[: len(row), i] = [_number(rate) for rate in row]
    return Course(
        steps=steps,
        wall_times=wall_times,
        loss=np.array([_number(one.get("loss")) for one in at], np.float64),
        learning_rates=table,
        epochs=_since_the_start(np.array([_number(one.get("epoch")) for one in at], np.float64)),
    )


def _since_the_start(epochs: Array) -> Array:
    """Fill in the epoch before the first one whose end was seen."""
    known = np.flatnonzero(np.isfinite(epochs))
    if len(known):
        epochs[: known[0]] = max(0.0, epochs[known[0]] - 1)
    return epochs


def _plain(value: float) -> float | str | None:
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else str(value)


def _number(value: object) -> float:
    try:
        return float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        return math.nan
