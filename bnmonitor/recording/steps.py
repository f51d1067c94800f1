"""What is known of recorded steps besides their numbers per channel: modes, momenta, updates, and who wrote."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from bnmonitor.layers import LayerTable, writes_pairwise
from bnmonitor.recording.rounding import as_written
from bnmonitor.recording.row import Row
from bnmonitor.recording.traces import ForeignWrites, Traces, TraceTable

T = TypeVar("T")


@dataclass(frozen=True)
class Steps:
    """What is known of some steps, ``[T, L]`` where nothing else is said.

    Attributes:
        rows: What goes with the tape's row of each.
        counts: Number of updates before and after.
        momentum: The momentum; NaN for a cumulative average.
        momentum_before: The same before each step; None: it is the same.
        training: The modes.
        counted: Whether the layer counts its updates; else a change counts as one.
        foreign: Where something else is known to have written to the running statistics.
        half_ulp: Relative rounding of the running statistics.
        chained: Whether each step begins with what the one before it has left.
    """

    rows: Sequence[Row]
    counts: tuple[Tensor, Tensor]
    momentum: Tensor
    momentum_before: Tensor | None
    training: Tensor
    counted: Tensor
    foreign: Tensor
    half_ulp: Tensor
    chained: bool


class StepReader:
    """Turns what goes with the rows of the tape into what is known of the steps.

    Args:
        layers: The table of the layers.
        modules: The modules behind it, in the same order.
        dtype: Of the numbers per channel on the tape.
    """

    def __init__(self, layers: LayerTable, modules: Sequence[nn.Module], dtype: torch.dtype) -> None:
        self._layers, self._modules, self._dtype = layers, tuple(modules), dtype
        self._buffers = [m._buffers for m in self._modules]
        self.native = torch.tensor([writes_pairwise(m) for m in modules], dtype=torch.bool, device="cpu")
        """Which layers run PyTorch's own forward: ``[L]`` bool."""
        self.writes = ForeignWrites(self.native, layers.synced_layers)
        """Finds what other code writes."""
        self.writes_count = True
        """Whether each write to the buffers of an InstanceNorm is one of its forwards; else there is one in a step."""
        self.compiled: set[int] = set()
        """Modules within compiled parts, by ``id(module)``: there, too, the writes do not count the forwards."""
        self.writes_doubtful = False
        """Whether a layer may be compiled and not be among them: several writes may be one forward then."""
        self.calls: Tensor | None = None
        """How often the last sampled step called each layer: ``[L]``; None without a sample."""
        self.counting = layers.which("counts_updates")
        """Which layers are of a kind that counts its updates: ``[L]`` bool."""
        self._cumulative = layers.which("averages_cumulatively")
        self.all_count = bool(self.counting.all())
        """Whether all are."""
        self._converted: dict[str, tuple[object, Tensor]] = {}
        self._counters: tuple[object, Tensor] | None = None

    def take_over(self, other: StepReader, order: Sequence[int]) -> None:
        """Take over what another knew of the same layers before the first step.

        Args:
            other: It had the layers in another order.
            order: The position of each layer in that order.
        """
        self.writes_count, self.writes = other.writes_count, other.writes.reordered(order)
        self.compiled, self.writes_doubtful = other.compiled, other.writes_doubtful
        self.calls = None if other.calls is None else other.calls[list(order)]

    def read(
        self, rows: Sequence[Row], at: Sequence[int], counts: Tensor, before: Sequence[Tensor], after: Sequence[Tensor]
    ) -> Steps:
        """Return what is known of the steps among some rows.

        Args:
            rows: What goes with the rows.
            at: The positions of those after a step; the one before is that before the step.
            counts: The counters of all rows, ``[R, L]``.
            before: Running mean and variance before each step, ``[T, C]`` each.
            after: The same after it.
        """
        for row in rows:
            if row.witness is not None:
                ran = self._layers.segments.any(~row.witness[0].isnan())
                self.writes.ran_eagerly(ran, row.traces.compilations)
        meta = [rows[i] for i in at]
        now, old = positions(at)
        counter = self._counted(meta[-1].traces)
        momentum, momentum_before = self._stacked("momentum", [row.momentum for row in meta], self._in_force), None
        if any(rows[i - 1].momentum is not rows[i].momentum for i in at):
            momentum_before = self._stacked("momentum", [rows[i - 1].momentum for i in at], self._in_force)
        traces = TraceTable([row.traces for row in rows], at)
        # Each forward of a layer that does not count its updates is one write to its buffers, if no other code writes.
        written = traces.versions[:, 0]
        counts = counts if self.all_count else torch.where(self.counting, counts, written)
        updates = counts[now] - counts[old]
        foreign = self.writes.found(traces, updates, self.counting & counter)
        if not traces.unchanged:
            # Nobody knows what other tensors held before the forward wrote to them.
            changed = self._layers.segments.any((before[0] != after[0]) | (before[1] != after[1]))
            foreign |= ~traces.same & (changed | (updates != 0))
        counted = counter
        if not self.all_count:
            eager = [self.writes_count and id(m) not in self.compiled for m in self._modules]
            writes_count = torch.tensor(eager, device="cpu")
            writes_count = writes_count if traces.unchanged else writes_count & traces.same
            counted = torch.where(self.counting, counter, writes_count)
            # Without a counter, only a sample tells whether several writes were several forwards.
            known = None if self.writes_doubtful else self.calls
            calls = torch.ones_like(updates) if known is None else known.clamp(min=1)
            foreign |= ~self.counting & writes_count & (written[now] - written[old] > calls)
        if any(row.foreign for row in meta):
            unsynced = ~self._layers.synced_layers  # the others have the same statistics in all processes
            given = torch.tensor([row.foreign for row in meta], device="cpu")[:, None]
            foreign |= given & unsynced & ((updates != 0) | ~counter)
        half_ulp = self._stacked("dtypes", [row.traces.dtypes for row in meta], self._half_ulp)
        return Steps(
            rows=meta,
            counts=(counts[old], counts[now]),
            momentum=momentum,
            momentum_before=momentum_before,
            training=self._stacked("training", [row.training for row in meta], self._modes),
            counted=counted.expand_as(foreign),
            foreign=foreign,
            half_ulp=as_written(half_ulp, self._layers, (after[0], after[1])),
            chained=isinstance(now, slice),
        )

    def _stacked(self, what: str, values: Sequence[T], convert: Callable[[T], Tensor]) -> Tensor:
        """Convert each value to a row; what is the same object in all rows, and as before, is not converted again."""
        first = values[0]
        if any(value is not first for value in values):
            return _rows_of(values, convert)
        known = self._converted.get(what)
        if known is None or known[0] is not first:
            known = self._converted[what] = first, convert(first)
        return known[1].expand(len(values), -1)

    def _counted(self, traces: Traces) -> Tensor:
        """Which layers have a counter: ``[L]`` bool; they are looked at again if a tensor was replaced."""
        if self._counters is None or self._counters[0] is not traces.tensors:
            found = torch.tensor([b.get("num_batches_tracked") is not None for b in self._buffers], device="cpu")
            self._counters = traces.tensors, found
        return self._counters[1]

    def _half_ulp(self, dtypes: list[torch.dtype]) -> Tensor:
        """Relative rounding of each layer's running statistics: ``[L]``."""
        kept = torch.tensor([torch.finfo(d).eps for d in dtypes], dtype=torch.float64, device="cpu")
        return kept.view(2, -1).amax(0).clamp(min=torch.finfo(self._dtype).eps) / 2

    def _modes(self, training: bytes) -> Tensor:
        """The modes of the layers that have some: ``[L]`` bool."""
        return torch.frombuffer(bytearray(training), dtype=torch.bool) & self._layers.which("has_modes")

    def _in_force(self, momenta: list[float | None]) -> Tensor:
        """The momenta as numbers: ``[L]``.

        A layer without a momentum averages cumulatively if it is of a kind that does, and else not at all.
        """
        numbers = [math.nan if momentum is None else _finite(momentum) for momentum in momenta]
        momentum = torch.tensor(numbers, dtype=torch.float64, device="cpu")
        return momentum.where(self._cumulative | ~momentum.isnan(), 0.0)


def positions(at: Sequence[int]) -> tuple[slice | list[int], slice | list[int]]:
    """Return some positions in the tape and those before each, to index with.

    Nearly always every row but the first is a step: then these are slices, and nothing is copied.
    """
    if list(at) == list(range(at[0], at[0] + len(at))):
        return slice(at[0], at[-1] + 1), slice(at[0] - 1, at[-1])
    return list(at), [i - 1 for i in at]


def _rows_of(values: Sequence[T], convert: Callable[[T], Tensor]) -> Tensor:
    """Convert each value to a row; consecutive rows that share one object are converted once."""
    made: dict[int, Tensor] = {}
    for value in values:
        if id(value) not in made:
            made[id(value)] = convert(value)
    return torch.stack([made[id(value)] for value in values])


def _finite(momentum: float) -> float:
    """A momentum as a number; 0, with which nothing can be recovered, for one that PyTorch cannot average with."""
    try:
        return float(momentum) if math.isfinite(momentum) else 0.0
    except (TypeError, ValueError, RuntimeError):
        return 0.0
