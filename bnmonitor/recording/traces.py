"""What a write leaves on the tensors of the running statistics: another tensor, another address, another version."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from operator import attrgetter, is_
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

_VERSION, _ANY_NUMBER = attrgetter("_version"), 1 << 32

_MOST_COMPILED = 2
"""Most writes to a running statistic that autograd counts for one run of a compiled graph."""

T = TypeVar("T")


@dataclass(frozen=True)
class Traces:
    """How the tensors of the running statistics were found at a reading, of all layers.

    What a reading has in common with the one before it is the same object, so that they are compared at once.

    Attributes:
        tensors: The running means, then the variances, then the counters; kept, so that no later tensor gets the
            identity of one of them.
        addresses: Where the values of the means and of the variances are.
        dtypes: Of the means and of the variances.
        versions: How often autograd saw each of the tensors written to in place.
        compilations: How many frames ``torch.compile`` had compiled in this process.
    """

    tensors: list[Tensor]
    addresses: list[int]
    dtypes: list[torch.dtype]
    versions: list[int]
    compilations: int

    @classmethod
    def read(cls, means: list[Tensor], variances: list[Tensor], counts: list[Tensor], last: Traces | None) -> Traces:
        """Look at the tensors of all layers.

        Args:
            means: The running means.
            variances: The running variances.
            counts: The counters of updates.
            last: The reading before.
        """
        kept = means + variances
        tensors = kept + counts
        try:
            addresses = list(map(Tensor.data_ptr, kept))
        except RuntimeError:  # a tensor without an address of its own
            addresses = [0] * len(kept)
        try:
            versions = list(map(_VERSION, tensors))
        except RuntimeError:  # tensors made in inference mode do not know
            versions = [0] * len(tensors)
        if last is not None and len(tensors) == len(last.tensors) and all(map(is_, tensors, last.tensors)):
            tensors = last.tensors
        if last is not None and tensors is last.tensors and addresses == last.addresses:
            return cls(tensors, last.addresses, last.dtypes, versions, compilations())
        return cls(tensors, addresses, [t.dtype for t in kept], versions, compilations())

    def same(self, other: Traces) -> Tensor:
        """Which layers have the same tensors at the same addresses: ``[L]`` bool."""
        layers = len(self.versions) // 3
        if self.tensors is other.tensors and self.addresses is other.addresses:
            return torch.ones(layers, dtype=torch.bool, device="cpu")
        kept = [a is b for a, b in zip(self.tensors, other.tensors, strict=True)][: 2 * layers]
        there = [a == b for a, b in zip(self.addresses, other.addresses, strict=True)]
        both = torch.tensor([a and b for a, b in zip(kept, there, strict=True)], dtype=torch.bool, device="cpu")
        return both.view(2, layers).all(0)

    def written_since(self, other: Traces) -> Tensor:
        """Which layers' running statistics autograd saw written to since then: ``[L]`` bool."""
        changed = [a != b for a, b in zip(self.versions, other.versions, strict=True)]
        return torch.tensor(changed, dtype=torch.bool, device="cpu").view(3, -1)[:2].any(0)

    def reordered(self, order: Sequence[int]) -> Traces:
        """Return the same traces with the layers in another order."""

        def moved(values: list[T]) -> list[T]:
            return [values[start + i] for start in range(0, len(values), len(order)) for i in order]

        return replace(
            self,
            tensors=moved(self.tensors),
            addresses=moved(self.addresses),
            dtypes=moved(self.dtypes),
            versions=moved(self.versions),
        )


class ForeignWrites:
    """Finds the steps in which something other than a layer's forward wrote to its running statistics.

    A forward of PyTorch's BatchNorm writes to both statistics in a way that autograd does not count. A compiled graph
    writes once or twice to each of the three tensors, depending on the compiler. Every further counted write is
    another's. How SyncBatchNorm writes differs between devices: there only an unequal number of writes is another's.
    What a forward of another class writes is not known, until one leaves no trace, so that it calls PyTorch's.

    Args:
        native: ``[L]`` bool, which layers run PyTorch's own forward.
        synced: ``[L]`` bool, which of these are SyncBatchNorm.
    """

    def __init__(self, native: Tensor, synced: Tensor) -> None:
        self._native, self._synced = native, synced
        self._eager = torch.zeros_like(native)
        self._traceless = torch.zeros_like(native)
        self._usual = torch.full(native.shape, _MOST_COMPILED, dtype=torch.int64, device="cpu")
        self._compilations = self.started_at = compilations()
        """How many compilations there were in the process before the model can have been compiled."""
        self.compiled = False
        """Whether the model is known to be compiled."""

    def reordered(self, order: Sequence[int]) -> ForeignWrites:
        """Return the same with the layers in another order."""
        other = ForeignWrites(self._native[list(order)], self._synced[list(order)])
        other.started_at, other.compiled = self.started_at, self.compiled
        other._traceless = self._traceless[list(order)]
        return other

    def ran_eagerly(self, layers: Tensor, compiled: int) -> None:
        """Note which layers, ``[L]`` bool, a hook saw run after so many compilations: no compiled graph calls one."""
        self._begin(compiled)
        self._eager |= layers

    def _begin(self, compiled: int) -> None:
        if compiled != self._compilations:
            self._compilations = compiled
            self._eager.zero_()
            self._usual.fill_(_MOST_COMPILED)

    def found(self, rows: TraceTable, updates: Tensor, counted: Tensor) -> Tensor:
        """Return where another has written, ``[T, L]`` bool.

        Args:
            rows: What was read before and after each step.
            updates: ``[T, L]`` int64, how much the counter of each layer has grown.
            counted: ``[L]`` bool, which layers have one.
        """
        means, variances, counters = rows.writes
        judged = self._native if rows.unchanged else self._native & rows.same
        counted = counted if rows.unchanged else counted & rows.same_counters
        updates = updates.clamp(min=0)
        own, eager = _writes_of_a_forward(), None
        self._begin(rows.compilations[1])
        if not (rows.written or own or self.compiled or self._compilations > self.started_at):
            # As nearly always: no forward has left a trace but on its counter, and nothing else has.
            if not self._native.all():
                self._traceless |= (~self._native & counted & (updates > 0)).any(0)
            return counted & (counters > updates) & judged
        if self.compiled or self._compilations > self.started_at:
            if rows.compilations[0] == self._compilations:
                once = judged & (updates > 0)
                self._eager |= (once & (means == 0) & (variances == 0)).any(0)
                rate = (means / updates.clamp(min=1)).ceil().long().where(once & (means > 0), _MOST_COMPILED)
                self._usual = torch.minimum(self._usual, rate.amin(0))
            eager = self._eager
        each: Tensor | int = own if eager is None else torch.where(eager, own, self._usual.clamp(min=own))
        limit = (updates.where(counted, _ANY_NUMBER) * each).masked_fill(self._synced, _ANY_NUMBER)
        more = (means > limit) | (means != variances) | (counted & (counters > torch.maximum(updates, means)))
        if eager is not None:
            # A compiled graph writes to the counter as often as to the statistics.
            more |= counted & ~eager & (means > 0) & (means != counters)
            return more & judged
        updated = ~self._native & counted & (updates > 0)
        clean = (means == own) & (variances == own) if own == 0 else torch.zeros_like(updated)
        self._traceless |= (updated & clean).any(0)
        return (more & judged) | (updated & self._traceless & ~clean)


class TraceTable:
    """The traces of several steps, as tensors.

    Args:
        rows: All readings.
        at: The positions of those after a step; the one before is that before the step.
    """

    def __init__(self, rows: Sequence[Traces], at: Sequence[int]) -> None:
        self._pairs = [(rows[i - 1], rows[i]) for i in at]
        self.compilations = rows[at[0] - 1].compilations, rows[at[-1]].compilations
        """How many compilations there were before and after all."""
        self.unchanged = all(a.tensors is b.tensors and a.addresses is b.addresses for a, b in self._pairs)
        """Whether all layers have the same tensors at the same addresses throughout."""
        numbers = array("q", chain.from_iterable(row.versions for row in rows))
        versions = np.frombuffer(numbers, np.int64).reshape(len(rows), 3, -1)
        self.versions = torch.from_numpy(versions)
        """How often each tensor had been written to at each reading: ``[R, 3, L]``."""
        # Nearly always every row but the first is one of them: then these are views.
        run = len(at) == at[-1] - at[0] + 1
        after, before = (slice(at[0], at[-1] + 1), slice(at[0] - 1, at[-1])) if run else (list(at), [i - 1 for i in at])
        more = versions[after] - versions[before]
        self.writes = torch.from_numpy(more).unbind(1)
        """Counted writes to means, variances and counters in each step: ``[T, L]`` each."""
        self.written = bool(np.count_nonzero(more[:, :2]))
        """Whether there were any to a mean or a variance."""

    @property
    def same(self) -> Tensor:
        """Which layers have the same tensors at the same addresses: ``[T, L]`` bool."""
        return torch.stack([after.same(before) for before, after in self._pairs])

    @property
    def same_counters(self) -> Tensor:
        """Which layers have the same tensors and counters: ``[T, L]`` bool."""
        layers = self.versions.shape[2]
        kept = [
            [a is b for a, b in zip(before.tensors[2 * layers :], after.tensors[2 * layers :], strict=True)]
            for before, after in self._pairs
        ]
        return self.same & torch.tensor(kept, dtype=torch.bool, device="cpu")


def compilations() -> int:
    """How many frames ``torch.compile`` has compiled in this process; 1 where its counter cannot be read.

    The compiler's module is looked up and not imported: an import takes a second.
    """
    module = sys.modules.get("torch._dynamo.utils")
    if module is None:
        return 0
    try:
        count = int(module.counters.get("frames", {}).get("total", 0))
        return count or int(bool(module.compilation_time_metrics))  # the first may be cleared
    except Exception:  # private to PyTorch
        return 1


@cache
def _writes_of_a_forward() -> int:
    """How many writes autograd counts for a running statistic in one forward: none so far."""
    with torch.inference_mode(False), torch.no_grad():
        mean, var = torch.zeros(1, device="cpu"), torch.ones(1, device="cpu")
        F.batch_norm(torch.zeros(2, 1, device="cpu"), mean, var, training=True)
        return int(mean._version)
