"""Compares what is recovered with what the forwards of sampled steps showed, and withholds what they contradict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bnmonitor.layers import LayerTable
from bnmonitor.recording.ring import Ring
from bnmonitor.recording.rounding import EXACT, HALF
from bnmonitor.window import Recovery

_HALF_EXACT = 0.15
"""The same as :data:`~bnmonitor.recording.rounding.EXACT` where the running statistics are in half precision."""

_FAR = 20.0
"""A batch mean jumps far if it is so many of the batch's own deviations away from the one before and after."""

_BACK = 0.25
"""It is back if it is off by less than this part of the jump."""

_CALM = 2.0
"""Factor up to which a batch variance is like that of the step before."""


class Witnesses:
    """Keeps for each layer whether the last sampled step, or a value, contradicted what was recovered of it.

    Other code may write to the running statistics where autograd does not see it: through ``.data``, or from NumPy.
    Then the batch that follows from them is not the one that the forward of a sampled step had, or it is none: its
    variance is negative. Nobody knows when that began, or whether it has ended: the steps since the last sample that
    agreed are withheld, and so are all up to the next that agrees.

    Args:
        layers: The table of the layers.
    """

    def __init__(self, layers: LayerTable) -> None:
        self._layers = layers
        self._doubted = torch.zeros(len(layers), dtype=torch.bool, device="cpu")
        self._agreed = torch.full((len(layers),), -1, dtype=torch.int64, device="cpu")

    def judge(
        self,
        rows: Mapping[str, Tensor],
        seen: Sequence[Tensor | None],
        impossible: Tensor | None,
        half_ulp: Tensor,
        ring: Ring,
    ) -> None:
        """Withhold of the newest rows what is contradicted.

        Args:
            rows: The newest rows of the ring, which are changed.
            seen: For each of them mean and variance of the batch in the forward, ``[2, C]``; None where not sampled.
            impossible: ``[T, L]`` bool, where no batch can have made the running statistics; None: nowhere.
            half_ulp: ``[T, L]``, relative rounding of the running statistics.
            ring: Where the rows are.
        """
        nowhere = torch.zeros_like(self._doubted)
        at = [
            t for t, shown in enumerate(seen) if shown is not None or (impossible is not None and impossible[t].any())
        ]
        if not at and not self._doubted.any():
            return
        steps, start = ring.steps[-len(seen) :], 0
        for t in at:
            witness = seen[t]
            agrees, differs = (nowhere, nowhere) if witness is None else self._compare(rows, t, witness, half_ulp[t])
            differs = differs if impossible is None else differs | impossible[t]
            withhold(rows, self._doubted, slice(start, t), self._layers)
            self._withhold_since(ring, differs & ~self._doubted)
            self._doubted = (self._doubted & ~agrees) | differs
            self._agreed[agrees] = steps[t]
            start = t
        withhold(rows, self._doubted, slice(start, None), self._layers)

    def judge_jumps(self, ring: Ring, new: int) -> None:
        """Withhold steps in which the batch mean of a channel alone jumped far away, and was back in the next.

        A batch whose samples are all off by the same amount does that, and so does a single write to the running mean
        that leaves no trace: nobody can say which it was. The newest step is judged with the one after it.

        Args:
            ring: Where the rows are.
            new: How many of its rows are new.
        """
        shift = ring.view()["shift"][-(new + 2) :]
        if len(shift) < 3:
            return
        low, high = shift.aminmax()
        if low >= -_FAR / 2 and high <= _FAR / 2:  # not so where a value is NaN
            return
        rows = {name: values[-(new + 2) :] for name, values in ring.view().items()}
        mean, var = rows["batch_mean"], rows["batch_var"] + self._layers.eps_by_channel.to(shift.dtype)
        (before, now, after), (old, own, new_var) = ((t[:-2], t[1:-1], t[2:]) for t in (mean, var))
        jump = torch.minimum((now - before).abs(), (now - after).abs())
        lone = (jump > _FAR * own.sqrt()) & ((after - before).abs() < _BACK * jump)
        for other in (old, new_var):
            lone &= (own < _CALM * other) & (other < _CALM * own)
        found = self._layers.segments.any(lone)
        if not found.any():
            return
        ring.changing()
        withhold(rows, found, slice(1, -1), self._layers, Recovery.DOUBTFUL)

    def _compare(self, rows: Mapping[str, Tensor], t: int, witness: Tensor, half_ulp: Tensor) -> tuple[Tensor, Tensor]:
        """Which layers' rows agree with the forward, and which differ from it: ``[L]`` bool each."""
        layers, (mean, var) = self._layers, witness.to(rows["batch_mean"].dtype)
        scale = (var + layers.eps_by_channel).to(mean.dtype)
        part = torch.where(half_ulp > HALF, _HALF_EXACT, EXACT)[layers.owner].to(mean.dtype)
        known, wrong = torch.zeros_like(mean, dtype=torch.bool), torch.zeros_like(mean, dtype=torch.bool)
        for name, seen, allowed in (("batch_mean", mean, part * scale.sqrt()), ("batch_var", var, part * scale)):
            away = (rows[name][t] - seen).abs()
            known |= away.isfinite()
            wrong |= away.isfinite() & (away > allowed)
        judged = rows["recovery"][t] == Recovery.EXACT
        differs = judged & layers.segments.any(wrong)
        return judged & layers.segments.any(known) & ~differs, differs

    def _withhold_since(self, ring: Ring, layers: Tensor) -> None:
        """Withhold the steps since the last sample that agreed."""
        if not layers.any():
            return
        rows, steps = ring.changing(), torch.tensor(ring.steps, device="cpu")
        for since in set(self._agreed[layers].tolist()):
            start = int((steps <= since).sum())
            withhold(rows, layers & (self._agreed == since), slice(start, None), self._layers)


def withhold(
    rows: Mapping[str, Tensor], layers: Tensor, at: slice, table: LayerTable, why: Recovery = Recovery.FOREIGN
) -> None:
    """Take back what was recovered of some layers, ``[L]`` or ``[T', L]`` bool, in some rows."""
    mask = layers & (rows["recovery"][at] <= Recovery.AVERAGED)
    if not mask.any():
        return
    channels = mask[:, table.owner]
    for name in ("batch_mean", "batch_var", "shift", "ratio"):
        rows[name][at].masked_fill_(channels, torch.nan)
    rows["variance"][at].masked_fill_(mask, torch.nan)
    rows["recovery"][at].masked_fill_(mask, why)
