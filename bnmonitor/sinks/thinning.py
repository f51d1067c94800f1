"""The choice of frames to write in a long run: all at first, then fewer and fewer, except unusual ones."""

from __future__ import annotations

import torch
from torch import Tensor

_FAR = 6.0
"""Usual distances from the usual level that count as a spike."""
_LEAST = 0.7
"""A spike is at least so far, in the logarithm of the variance: a factor of two."""
_DROP = 20.0
"""Points of health that count as a spike."""
_AT_A_STRIDE = 0.75
"""Share of the budget for frames whatever they show."""
_WHOLE = 0.25
"""Share of that for the beginning of the run, of which every frame is written."""
_SHRINK = 0.9
"""Share of the remaining budget that stays for the strides after this one."""
_STAGES = 60
"""Beyond this the stride does not double any more."""
_MEMORY = 0.05
"""Weight of the last frame in what is usual."""


class Thinning:
    """Keeps the frames of a run within a budget, however long it is.

    An event file cannot be thinned once it is written, so the frames to come are. Three quarters of the budget are for
    frames at a stride: a quarter of that for every frame, then 7.5 % for every second one, 6.75 % for every fourth, and
    so on, each a tenth less than the one before, which comes to the whole. The last quarter of the budget is for the
    frames between that show something: a batch variance far from its usual level, a drop in health, a layer that became
    NaN or was one, an alert. For all but alerts it opens up in the same shares.

    Args:
        budget: Bytes of all frames together; None: every frame is written.
    """

    def __init__(self, budget: int | None) -> None:
        self._budget = budget
        self._frames, self._stage = 0, 0
        self._spent = {True: 0, False: 0}
        self._size = {True: 0, False: 0}
        self._spikes = _Spikes()
        self.on_stride = True
        """Whether the frame that was last asked for is at the stride, and not there for what it shows."""

    @property
    def stride(self) -> int:
        """The current stride: one in so many frames is written, whatever it shows."""
        return int(2**self._stage)

    def wants(self, variance: Tensor, health: Tensor, alerted: bool) -> bool:
        """Return whether to write a frame.

        Args:
            variance: ``[L]`` batch variance of each layer.
            health: ``[L]``.
            alerted: Whether an alert has opened, got worse or was cleared since the last frame.
        """
        if self._budget is None:
            return True
        spikes = self._spikes.see(variance, health)
        self.on_stride = self._frames % self.stride == 0 and self._fits(True, self._budget)
        self._frames += 1
        if self.on_stride:
            return True
        return (alerted or spikes) and self._fits(False, self._budget if alerted else self._share())

    def wrote(self, size: int) -> None:
        """Count the bytes of a frame that was written."""
        self._spent[self.on_stride] += size
        self._size[self.on_stride] = size
        while self._budget and self._stage < _STAGES and not self._fits(True, self._share()):
            self._stage += 1

    def _fits(self, on_stride: bool, bytes_: float) -> bool:
        """Return whether one more frame fits into its part of so many bytes."""
        part = _AT_A_STRIDE if on_stride else 1 - _AT_A_STRIDE
        return self._spent[on_stride] + self._size[on_stride] <= part * bytes_

    def _share(self) -> float:
        """Return the bytes that may be written by the end of this stage."""
        return (self._budget or 0) * (1 - (1 - _WHOLE) * _SHRINK**self._stage)


class _Spikes:
    """Recognizes a frame that is unlike those before it, in a time that does not grow with the run."""

    def __init__(self) -> None:
        self._level: Tensor | None = None
        self._usual = self._health = torch.zeros(0, device="cpu")

    def see(self, variance: Tensor, health: Tensor) -> bool:
        """Return whether a layer does something unusual, and take the frame for what is usual from here on."""
        now = variance.log()
        if self._level is None or len(self._level) != len(now):
            self._level, self._usual, self._health = now, torch.full_like(now, _LEAST / _FAR), health
            return True
        away = (now - self._level).abs()
        far = away > (_FAR * self._usual).clamp(min=_LEAST)
        turned = now.isfinite() != self._level.isfinite()
        found = bool((far | turned | (self._health - health >= _DROP)).any())
        # What is far moves the level by as much as what is usual, so that a spike does not become the level.
        step = (now - self._level).clamp(-_FAR * self._usual, _FAR * self._usual)
        known = now.isfinite() & self._level.isfinite()
        self._level = torch.where(known, self._level + 4 * _MEMORY * step, now)
        self._usual = torch.where(known, self._usual + _MEMORY * (step.abs() - self._usual), self._usual)
        self._usual = self._usual.clamp(min=_LEAST / _FAR / 10)
        self._health = health
        return found
