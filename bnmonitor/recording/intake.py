"""Takes the rows that come from the tape into the ring, and recovers the batch statistics of the steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bnmonitor.layers import LayerTable
from bnmonitor.recording.held import AFFINE, HeldAffine
from bnmonitor.recording.novelty import Novelty
from bnmonitor.recording.recovery import fill_seen, recover_rows
from bnmonitor.recording.ring import Ring
from bnmonitor.recording.row import READ, Row
from bnmonitor.recording.steps import StepReader, positions
from bnmonitor.recording.witnesses import Witnesses, withhold
from bnmonitor.window import Recovery


class Intake:
    """Takes the rows of the tape into a ring, and recovers the batch statistics of the steps.

    Args:
        layers: The table of the layers.
        modules: The modules behind it, in the same order.
        reader: Tells what is known of the steps.
        held: The own part of what is split over the processes; None if nothing is, or nobody wants it.
    """

    def __init__(
        self, layers: LayerTable, modules: Sequence[nn.Module], reader: StepReader, held: HeldAffine | None
    ) -> None:
        self._layers, self._keys = layers, [id(m) for m in modules]
        self._reader, self._held = reader, held
        self._witnesses = Witnesses(layers)
        self.novelty = Novelty(layers)
        """Tells whether new steps are unlike those that the rules have judged."""

    @torch.inference_mode()  # no tensor that is made here leaves this room but in the ring
    def take(self, rows: Sequence[Row], tape: Tensor, counts: Tensor, ring: Ring, trains: Sequence[bool]) -> int:
        """Take the steps among some rows of the tape into a ring.

        Args:
            rows: What goes with the rows; the first belongs to no step.
            tape: The numbers per channel, ``[R, 6, C]``.
            counts: The counters, ``[R, L]``.
            ring: Where the steps go.
            trains: Which gammas and betas require a gradient now.

        Returns:
            The number of steps.
        """
        at = [i for i, row in enumerate(rows) if row.step is not None]
        now, old = positions(at)
        after, before = dict(zip(READ, tape[now].unbind(1), strict=True)), tape[old].unbind(1)
        steps = self._reader.read(rows, at, counts, before, list(after.values()))
        out = ring.room([row.step for row in steps.rows if row.step is not None], [row.rate for row in steps.rows])
        recovered = recover_rows(
            self._layers,
            before=(before[0], before[1]),
            after=(after["running_mean"], after["running_var"]),
            counts=steps.counts,
            counted=steps.counted,
            foreign=steps.foreign,
            momentum=steps.momentum,
            half_ulp=steps.half_ulp,
            out=out,
            momentum_before=steps.momentum_before,
            chained=steps.chained,
        )
        fill_seen(self._layers, out, self._keys, [row.seen for row in steps.rows])
        for name in READ:
            out[name].copy_(after[name])
        if self._held is not None:
            self._held.take(after, ring.steps[-1])
            for name in AFFINE:
                out[name].masked_fill_(self._layers.split_channels, torch.nan)
        impossible = None if recovered.impossible is None else recovered.impossible & self._reader.native
        self._witnesses.judge(out, [row.witness for row in steps.rows], impossible, steps.half_ulp, ring)
        self._witnesses.judge_jumps(ring, len(at))
        out["training"].copy_(steps.training)
        if not self._reader.all_count:
            # Only a counter tells an update from a write of other code, and no update is expected in evaluation mode.
            withhold(out, ~self._reader.counting & ~out["training"], slice(None), self._layers, Recovery.DOUBTFUL)
        self.novelty.note(out, ring.rates[-len(at) :], recovered.extremes, trains)
        return len(at)
