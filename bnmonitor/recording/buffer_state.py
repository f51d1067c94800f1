"""Buffers of the layers before and after an evaluation, and the updates that happened in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bnmonitor.layers import LayerTable
from bnmonitor.measures import initial_statistics
from bnmonitor.recording.snapshot import Snapshot, read, tensors
from bnmonitor.transfer import pack
from bnmonitor.window import Baseline

_ROUNDING = 1e-3


@dataclass(frozen=True)
class Moves:
    """How an evaluation has changed the running statistics of each layer.

    Attributes:
        changed: ``[L]`` bool, they have other values; a NaN that stays is none.
        possible: ``[L]`` bool, batches can have made the new values of the old: no variance of a batch is negative.
        drift: ``[2, L]`` how far they moved in the middle channel: the mean in deviations, the deviation as a log.
    """

    changed: Tensor
    possible: Tensor
    drift: Tensor

    @classmethod
    def between(cls, layers: LayerTable, before: Snapshot, after: Snapshot, weight: Tensor) -> Moves:
        """Compare two states.

        Args:
            layers: The table of the layers.
            before: The earlier one.
            after: The later one.
            weight: ``[L]``, what the batches between them weigh in the later one.
        """
        eps, segments = layers.eps_by_channel, layers.segments
        least = before.var * (1 - weight[layers.owner])
        lower = (after.var < least * (1 - _ROUNDING)).where(weight[layers.owner] > 0, False)
        drift = [
            segments.median((after.mean - before.mean).abs() / (before.var + eps).sqrt()),
            segments.median(0.5 * ((after.var + eps) / (before.var + eps)).log().abs()),
        ]
        changed = segments.any(_differ(before.mean, after.mean) | _differ(before.var, after.var))
        return cls(changed & layers.tracked, ~segments.any(lower), torch.stack(drift))


@dataclass(frozen=True)
class BufferState:
    """The buffers of all layers at one moment.

    Attributes:
        counts: Values of the update counters, 0 for a layer without: ``[L]``.
        counters: Identity of each counter.
        writes: How often autograd saw each counter written to in place; None where it does not know.
        mean_writes: The same of each running mean.
        copies: Running mean and variance of the layers without a counter, by position, on the CPU.
    """

    counts: Tensor
    counters: tuple[int, ...]
    writes: tuple[int | None, ...]
    mean_writes: tuple[int | None, ...]
    copies: Mapping[int, tuple[Tensor, Tensor]]

    @classmethod
    @torch.no_grad()
    def read(cls, modules: Sequence[nn.Module], counting: Sequence[bool]) -> BufferState:
        """Return the state of the layers now.

        Args:
            modules: The layers.
            counting: Whether each layer has a counter of its updates.
        """
        counters = [m._buffers.get("num_batches_tracked") for m in modules]
        copied = {i: copy for i, counts in enumerate(counting) if not counts and (copy := _copy(modules[i]))}
        sent, unpack = pack([t for copy in copied.values() for t in copy])  # a single copy waits for the device
        here = iter(unpack([t.cpu() for t in sent]))
        return cls(
            counts=_stacked(counters),
            counters=tuple(map(id, counters)),
            writes=tuple(map(_writes, counters)),
            mean_writes=tuple(_writes(m._buffers.get("running_mean")) for m in modules),
            copies={i: (next(here), next(here)) for i in copied},
        )

    def updates_until(
        self,
        after: BufferState,
        counting: Sequence[bool],
        *,
        compiled: bool,
        ran: Mapping[int, bool],
        moves: Moves | None = None,
    ) -> Tensor:
        """Return how many updates each layer's own forwards have made until a later state: ``[L]`` int64.

        A layer that was seen to run in training mode has updated its statistics if they have other values. Where no
        call was seen, as in a compiled or captured graph, its counter has grown, and a batch can have made the new
        values of the old; autograd counts no write then, or one or two an update. Any other number of writes is other
        code's, which restored, swapped or reset a counter. A layer without a counter has had one update if its
        statistics have changed.

        Args:
            after: The later state.
            counting: Whether each layer has a counter of its updates.
            compiled: Whether the model is compiled, so that several updates may be one write to a counter.
            ran: Of the layers that were seen to run, by position, whether that was in training mode.
            moves: How the values have changed; None: unknown.
        """
        grown: list[int] = (after.counts - self.counts).tolist()
        changed = [True] * len(grown) if moves is None else moves.changed.tolist()
        possible = [True] * len(grown) if moves is None else moves.possible.tolist()
        for i, (count, counts) in enumerate(zip(grown, counting, strict=True)):
            if not counts:
                a, b = self.copies.get(i), after.copies.get(i)
                grown[i] = int(
                    a is not None and b is not None and any(bool(_differ(*t).any()) for t in zip(a, b, strict=True))
                )
                continue
            old, new = self.writes[i], after.writes[i]
            writes = None if old is None or new is None or compiled else new - old
            if count < 0 or self.counters[i] != after.counters[i] or not changed[i]:
                grown[i] = 0
            elif ran.get(i, False):
                # A forward of its own may leave the counter alone.
                grown[i] = max(count, 1) if writes in (None, 0, count) else 0
            elif i in ran:
                # One that counts nothing, and updates in either mode, writes as PyTorch does: unseen by autograd.
                unseen = count == 0 and possible[i] and self.mean_writes[i] == after.mean_writes[i] is not None
                grown[i] = 1 if unseen else count if writes in (None, count) else 0
            elif writes not in (None, 0, count, 2 * count) or not possible[i]:
                grown[i] = 0
        return torch.tensor(grown, dtype=torch.int64, device="cpu")


def _differ(before: Tensor, after: Tensor) -> Tensor:
    return (before != after) & ~(before.isnan() & after.isnan())


@torch.no_grad()
def are_initial(
    layers: LayerTable, modules: Sequence[nn.Module], updated: Tensor, *, start: Baseline | None, trained: bool
) -> Tensor:
    """Return which layers have the initial running statistics, or these after a few probe forwards: ``[L]`` bool.

    Statistics that were set since the layers began, or may have been, are not of probes: a young average of the weights
    is mostly 0 and 1 as well. Nor are those of layers with a gradient: their training step has not been told of yet.

    Args:
        layers: The table of the layers.
        modules: The layers, in the same order.
        updated: ``[L]`` bool, layers whose statistics the training has updated: their forwards were no probes.
        start: How the layers began; None: unknown, if there were training steps.
        trained: Whether there were.
    """
    now = read(layers, [tensors(m) for m in modules])
    counts = _stacked([m._buffers.get("num_batches_tracked") for m in modules])
    momenta = [getattr(m, "momentum", None) for m in modules]
    momentum = torch.tensor([1.0 if m is None else float(m) for m in momenta], dtype=torch.float64, device="cpu")
    left = (1 - momentum).clamp(0, 1).pow(counts).where(counts > 0, 0.0)
    exact, mixed = initial_statistics(layers, now.mean, now.var, left)
    if start is not None:
        mixed &= ~layers.segments.any((now.mean != start.mean) | (now.var != start.var))
    elif trained or any(p is not None and p.grad is not None for m in modules for p in m._parameters.values()):
        return exact
    return exact | (mixed & ~updated)


def _copy(module: nn.Module) -> tuple[Tensor, Tensor] | None:
    mean, var = module._buffers.get("running_mean"), module._buffers.get("running_var")
    return None if mean is None or var is None else (mean.clone(), var.clone())


def _stacked(counters: Sequence[Tensor | None]) -> Tensor:
    """The counters on the CPU, 0 for None: ``[L]`` int64. An average of the weights turns them into floats."""
    found = [c for c in counters if c is not None]
    if not found:
        return torch.zeros(len(counters), dtype=torch.int64, device="cpu")
    device, zero = found[0].device, torch.zeros((), dtype=torch.int64, device="cpu")
    counts = [(zero if c is None else c).to(device, torch.int64) for c in counters]
    return torch.stack(counts).cpu()


def _writes(tensor: Tensor | None) -> int | None:
    """How often autograd saw a tensor written to in place; None where it does not know."""
    try:
        return None if tensor is None else tensor._version
    except RuntimeError:  # made in inference mode
        return None
