"""Whether the newest steps are unlike those that the rules have judged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from bnmonitor.layers import LayerTable
from bnmonitor.measures import Array

_DISCRETE = ("updates", "recovery", "training", "momentum")

FURTHER = 1.5
"""Factor by which the channels of a batch may be further from the state that was judged than before, on average."""

FURTHER_ALONE = 4.0
"""The same for the furthest channel: among hundreds, one is often much further than another was before."""

DEVIATIONS, DEVIATIONS_ALONE = 0.1, 1.0
"""Deviations by which the mean of a batch may be further away in any case."""

CHANGED = 0.25
"""Part of gamma and beta, and size, by which they may change."""

KEPT = 0.8
"""Part of an extreme that a judgment leaves: one of long ago does not tell what is usual."""


@dataclass
class _Met:
    """What was met in some steps.

    Attributes:
        reach: ``[2, 3, L]``, how far batches were from the running statistics that were judged, on average over the
            channels and in the furthest: the distance of the mean in deviations, the largest variance and the
            reciprocal of the smallest as parts of the running variance.
        unknown: ``[L]``, channels without a batch statistic.
        ranges: Smallest and largest value of what has few values, ``[L]`` each, by its name.
    """

    reach: Array
    unknown: Array
    ranges: dict[str, tuple[Array, Array]] = field(default_factory=dict)

    def joined(self, other: _Met) -> _Met:
        """Return what was met in these steps and in others."""
        ranges = {
            name: (np.fmin(low, other.ranges[name][0]), np.fmax(high, other.ranges[name][1]))
            for name, (low, high) in self.ranges.items()
        }
        return _Met(np.fmax(self.reach, other.reach), np.maximum(self.unknown, other.unknown), ranges)

    def exceeds(self, usual: _Met) -> bool:
        """Whether something here is beyond what is usual."""
        limit = usual.reach * [[[FURTHER]], [[FURTHER_ALONE]]]
        limit[:, 0] += [[DEVIATIONS], [DEVIATIONS_ALONE]]
        return (
            bool((self.reach > limit).any())
            or bool((self.unknown > usual.unknown).any())
            or any(bool((low < usual.ranges[name][0]).any()) for name, (low, _) in self.ranges.items())
            or any(bool((high > usual.ranges[name][1]).any()) for name, (_, high) in self.ranges.items())
        )


@dataclass(frozen=True)
class _State:
    """The state that was judged: ``[C]`` each.

    Attributes:
        mean: The running means.
        deviation: Reciprocal of the running deviations.
        variance: Its square.
        limits: The smallest and the largest value that gamma and beta may have, by their names.
    """

    mean: Array
    deviation: Array
    variance: Array
    limits: dict[str, tuple[Array, Array]]

    @classmethod
    @np.errstate(all="ignore")
    def at_end(cls, rows: Mapping[str, Tensor], eps: Array) -> _State:
        """Return the state at the end of a window."""
        limits = {}
        for name in ("gamma", "beta"):
            was = rows[name][-1].numpy()
            room = CHANGED + CHANGED * np.abs(was)
            limits[name] = was - room, was + room
        variance = 1 / (rows["running_var"][-1].numpy() + eps)
        return cls(rows["running_mean"][-1].numpy().copy(), np.sqrt(variance), variance, limits)

    def left(self, rows: Mapping[str, Tensor]) -> bool:
        """Whether gamma or beta have left their limits."""
        for name, (low, high) in self.limits.items():
            now = rows[name][-1].numpy()
            if (now < low).any() or (now > high).any():
                return True
        return False


class Novelty:
    """Compares new steps with those that the rules judged last, layer by layer, by their extremes.

    It costs a small part of what the rules cost. Steps that are not new to it may still show a fault, which grows
    slowly or was there all the time: the rules have to judge every step at last.

    Args:
        layers: The table of the layers.
    """

    def __init__(self, layers: LayerTable) -> None:
        self._layers = layers
        # How far a batch is from the running statistics is not known of layers that have none.
        self._blind = not bool(layers.tracked.all())
        self._eps = layers.eps_by_channel.numpy()
        self._state: _State | None = None
        self._usual: _Met | None = None
        self._met: _Met | None = None
        self._rates = (math.nan, math.nan)
        self._trains: Sequence[bool] = ()
        self.found = True
        """Whether there was something new since the last judgment, or there was none."""
        self.lasts = False
        """Whether that may be a fault which takes a window to be told; a learning rate that fell is none."""

    @np.errstate(all="ignore")
    def note(
        self, rows: Mapping[str, Tensor], rates: Sequence[float], extremes: Array | None, trains: Sequence[bool]
    ) -> None:
        """Look at new steps.

        Args:
            rows: Their statistics, ``[T, C]`` and ``[T, L]``.
            rates: The learning rates in force.
            extremes: ``[4, C]``, lowest and highest batch mean and variance; None where some are not known.
            trains: Which gammas and betas require a gradient now.
        """
        others, self._trains = self._trains != trains, trains
        if self._blind or self._state is None:
            return
        met = self._look(rows, extremes, self._state)
        self._met = met if self._met is None else self._met.joined(met)
        slowest, fastest = self._rates
        self.lasts = self._usual is not None and (
            self.lasts or others or met.exceeds(self._usual) or max(rates) > FURTHER * fastest or self._state.left(rows)
        )
        self.found = self.found or self._usual is None or self.lasts or min(rates) * FURTHER < slowest

    def _look(self, rows: Mapping[str, Tensor], extremes: Array | None, state: _State) -> _Met:
        if extremes is not None:
            low, high, least, most = extremes
            unknown = np.zeros(len(self._layers), dtype=np.int64)
        else:
            means, variances = rows["batch_mean"].numpy(), rows["batch_var"].numpy()
            (low, least), (high, most) = ([f.reduce(a, 0) for a in (means, variances)] for f in (np.fmin, np.fmax))
            unknown = self._layers.segments.count(~rows["batch_var"].isfinite()).numpy().max(0)
        reach = np.empty((3, len(low)), low.dtype)
        far, large, small = reach
        np.maximum(high - state.mean, state.mean - low, out=far)
        far *= state.deviation
        np.multiply(most, state.variance, out=large)
        np.divide(1 / state.variance, least + self._eps, out=small)
        ranges = {name: _range(rows[name].numpy()) for name in _DISCRETE}
        segments = self._layers.segments
        return _Met(np.stack([segments.mean_of(reach), segments.max_of(reach)]), unknown, ranges)

    def judged(self, rows: Mapping[str, Tensor], rates: Sequence[float]) -> None:
        """The rules have judged all steps: those that come are compared with these.

        Args:
            rows: The window's statistics.
            rates: The learning rates in force in it.
        """
        if self._blind:
            return
        usual, met = self._usual, self._met
        if usual is not None:
            usual.reach *= KEPT
        self._usual = met if usual is None or met is None else met.joined(usual)
        self._state = _State.at_end(rows, self._eps)
        self._rates = min(rates), max(rates)
        self._met, self.found, self.lasts = None, False, False


def _range(rows: Array) -> tuple[Array, Array]:
    """Smallest and largest value of each layer: ``[L]`` each, of rows that are nearly always equal."""
    if (rows == rows[0]).all():
        first = rows[0].copy()  # the window's memory is written over
        return first, first
    return np.fmin.reduce(rows, 0), np.fmax.reduce(rows, 0)
