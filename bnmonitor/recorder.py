"""Reads the buffers of every layer after every step; with the activation hooks, all that touches modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bnmonitor.layers import LayerTable, writes_pairwise
from bnmonitor.recovery import Seen, fill_seen, recover_rows

_READ = ("running_mean", "running_var", "gamma", "beta", "gamma_grad", "beta_grad")


@dataclass(frozen=True)
class _Row:
    """What goes with a row of the tape: a training step, or None for a state that a later step is compared with."""

    step: int | None
    rate: float
    training: tuple[bool, ...]
    momentum: tuple[float | None, ...]
    written: tuple[list[int], ...]
    seen: Mapping[int, Seen] | None


@dataclass(frozen=True)
class Block:
    """The steps since the last read, oldest first, in the shape that a ring takes; good until the next step."""

    steps: list[int]
    rates: list[float]
    rows: dict[str, Tensor]
    rewritten: Tensor
    """``[L]`` bool: between steps, something else has given the running statistics other values."""


class ResizedError(ValueError):
    """A layer no longer has the channels it was found with; its neighbors' would be misread."""


class Recorder:
    """Copies the state of every layer into a tape on its device, and recovers the batch statistics from it.

    A step costs one concatenation per kind of statistic, however many layers there are; nothing is read from the
    device until :meth:`drain`. The buffers are looked up anew at each step, so a tensor that was replaced since (by
    ``.to()``, ``load_state_dict(assign=True)``, weight averaging) is never read stale.

    Args:
        layers: The table of the layers.
        modules: The modules behind it, in the same order.
        length: Steps that the tape holds between two drains.
    """

    def __init__(self, layers: LayerTable, modules: Sequence[nn.Module], length: int) -> None:
        self.layers = layers
        self.modules = tuple(modules)
        self._buffers = [m._buffers for m in self.modules]
        frozen = layers.of_family("frozen").tolist()
        self._parameters = [m._buffers if f else m._parameters for m, f in zip(self.modules, frozen, strict=True)]
        first = next((t for m in self.modules for t in (*m.buffers(False), *m.parameters(False))), None)
        self._device = first.device if first is not None else torch.device("cpu")
        self.dtype = torch.float64 if torch.float64 in self._dtypes() else torch.float32
        self._length = length + 2
        shape = (self._length, len(_READ), layers.total)
        self._tape = torch.empty(shape, dtype=self.dtype, device=self._device)
        self._slots = [list(row.unbind(0)) for row in self._tape.unbind(0)]
        self._counts = torch.zeros(self._length, len(layers), dtype=torch.int64, device=self._device)
        self._fill = {
            value: [torch.full((c,), value, dtype=self.dtype, device=self._device) for c in layers.channels]
            for value in (torch.nan, 0.0, 1.0)
        }
        self._native = torch.tensor([writes_pairwise(m) for m in self.modules], dtype=torch.bool, device="cpu")
        self.writes_count = True
        """Whether each write to the buffers of an InstanceNorm is one of its forwards; else there is one in a step."""
        self._moved = torch.zeros(layers.total, dtype=torch.bool, device=self._device)
        self._no_count = torch.zeros((), dtype=torch.int64, device=self._device)
        self._meta: list[_Row] = []

    def _dtypes(self) -> list[torch.dtype]:
        return [t.dtype for b in self._buffers if (t := b.get("running_mean")) is not None]

    @property
    def full(self) -> bool:
        """Whether the tape has no room for another step."""
        return len(self._meta) >= self._length - 1

    def mark(self) -> None:
        """Note the state that the next step starts from, after anything but a step may have changed it."""
        before = self._tape[len(self._meta) - 1, :2].clone() if self._meta else None
        if self._meta and self._meta[-1].step is None:
            self._meta.pop()
        self._read(None, torch.nan)
        if before is not None:
            self._moved |= (self._tape[len(self._meta) - 1, :2] != before).any(0)

    def step(self, step: int, rate: float = torch.nan, seen: Mapping[int, Seen] | None = None) -> None:
        """Record one training step that has just ended.

        Args:
            step: Its number.
            rate: The learning rate in force.
            seen: Statistics of layers without buffers, by ``id(module)``; None if nothing could be seen.
        """
        self._read(step, rate, seen)

    @torch.no_grad()
    def _read(self, step: int | None, rate: float, seen: Mapping[int, Seen] | None = None) -> None:
        if not self.modules:
            return
        row = len(self._meta)
        buffers, parameters = self._buffers, self._parameters
        nans, zeros, ones = self._fill[torch.nan], self._fill[0.0], self._fill[1.0]
        gammas, betas = [p.get("weight") for p in parameters], [p.get("bias") for p in parameters]
        columns = [
            self._running("running_mean"),
            self._running("running_var"),
            [f if g is None else g for g, f in zip(gammas, ones, strict=True)],
            [f if b is None else b for b, f in zip(betas, zeros, strict=True)],
            [f if g is None or (t := g.grad) is None else t for g, f in zip(gammas, nans, strict=True)],
            [f if b is None or (t := b.grad) is None else t for b, f in zip(betas, nans, strict=True)],
        ]
        counts = [self._no_count if (t := b.get("num_batches_tracked")) is None else t for b in buffers]
        try:
            self._copy(row, columns, counts)
        except (RuntimeError, TypeError):
            # Layers on several devices, or counts that an average of the weights has turned into floats.
            here = [[t.to(self._device) for t in column] for column in columns]
            self._copy(row, here, [c.to(self._device, torch.int64) for c in counts])
        self._meta.append(
            _Row(
                step,
                rate,
                tuple(m.training for m in self.modules),
                tuple(getattr(m, "momentum", None) for m in self.modules),
                _written(columns[0], columns[1]),
                seen,
            )
        )

    def _running(self, name: str) -> list[Tensor]:
        """A running statistic of every layer; NaN for one that keeps none."""
        fill = self._fill[torch.nan]
        return [f if (t := b.get(name)) is None else t for b, f in zip(self._buffers, fill, strict=True)]

    def _resized(self, column: list[Tensor]) -> ResizedError:
        sizes = zip(self.layers.names, self.layers.channels, column, strict=True)
        name, was, now = next((name, c, t.numel()) for name, c, t in sizes if t.numel() != c)
        return ResizedError(f"layer {name!r} had {was} channels and now has {now}")

    def _copy(self, row: int, columns: list[list[Tensor]], counts: list[Tensor]) -> None:
        for slot, column in zip(self._slots[row], columns, strict=True):
            torch.cat(column, out=slot)
            if len(slot) != self.layers.total:
                raise self._resized(column)
        torch.stack(counts, out=self._counts[row])

    def rewritten(self) -> Tensor:
        """Which layers' running statistics have been written since the last state on the tape: ``[L]`` bool.

        By the tensors' identities and versions, so that nothing waits for the device; what autograd does not see, as in
        inference mode, is not noticed.
        """
        means, variances = (self._running(name) for name in ("running_mean", "running_var"))
        return (torch.tensor(self._meta[-1].written) != torch.tensor(_written(means, variances))).any(0)

    def origin(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The oldest state on the tape: gamma, running mean and variance, ``[C]``, and updates so far, ``[L]``."""
        gamma, mean, var = (self._tape[0, _READ.index(n)].cpu() for n in ("gamma", "running_mean", "running_var"))
        return gamma, mean, var, self._counts[0].cpu()

    def reordered(self, layers: LayerTable, modules: Sequence[nn.Module]) -> Recorder:
        """Return a recorder of the same layers in another order, which goes on from the same state."""
        other = Recorder(layers, modules, self._length - 2)
        position = {id(m): i for i, m in enumerate(self.modules)}
        order = [position[id(m)] for m in modules]
        spans = [torch.arange(*self.layers.offsets[i : i + 2], device=self._device) for i in order]
        other.writes_count = self.writes_count
        used = len(self._meta)
        other._tape[:used] = self._tape[:used, :, torch.cat(spans)]
        other._counts[:used] = self._counts[:used, torch.tensor(order, device=self._device)]
        other._meta = [
            replace(
                r,
                training=tuple(r.training[i] for i in order),
                momentum=tuple(r.momentum[i] for i in order),
                written=tuple([column[i] for i in order] for column in r.written),
            )
            for r in self._meta
        ]
        return other

    @torch.no_grad()
    def drain(self) -> Block | None:
        """Hand over the steps since the last call, and keep the newest state to compare the next step with."""
        at = [i for i, row in enumerate(self._meta) if row.step is not None]
        if not at:
            return None
        used = len(self._meta)
        tape, counts = self._tape[:used].cpu(), self._counts[:used].cpu().long()
        meta = [self._meta[i] for i in at]
        # Nearly always every row but the first is a step: then these are views, and nothing is copied.
        run = at == list(range(at[0], at[0] + len(at)))
        now: slice | list[int] = slice(at[0], at[-1] + 1) if run else at
        old: slice | list[int] = slice(at[0] - 1, at[-1]) if run else [i - 1 for i in at]
        after = dict(zip(_READ, tape[now].unbind(1), strict=True))
        before = dict(zip(_READ, tape[old].unbind(1), strict=True))
        instance = self.layers.of_family("instance")
        momenta = [[torch.nan if m is None else m for m in row.momentum] for row in meta]
        momentum = torch.tensor(momenta, dtype=torch.float64, device="cpu")
        written = torch.tensor([row.written for row in self._meta], device="cpu")
        same, writes = (written[now, 0] == written[old, 0]), written[now, 1:] - written[old, 1:]
        # InstanceNorm leaves its counter alone, but each of its forwards is one write to its buffers, if nobody else's.
        counts = torch.where(instance, written[:, 1], counts)
        rows = recover_rows(
            self.layers,
            before=(before["running_mean"], before["running_var"]),
            after=(after["running_mean"], after["running_var"]),
            counts=(counts[old], counts[now]),
            counted=torch.where(instance, same & self.writes_count, self._counted()),
            foreign=self._native & same & (writes[:, 0] != writes[:, 1]),
            momentum=momentum.where(~(instance & momentum.isnan()), 0.0),
            half_ulp=self._half_ulp(),
        )
        fill_seen(self.layers, rows, [id(m) for m in self.modules], [row.seen for row in meta])
        rows |= {name: after[name] for name in _READ}
        training = torch.tensor([row.training for row in meta], dtype=torch.bool, device="cpu")
        rows["training"] = training & ~self.layers.of_family("frozen")
        self._tape[0].copy_(self._tape[used - 1])
        self._counts[0].copy_(self._counts[used - 1])
        self._meta = [replace(self._meta[-1], step=None, seen=None)]
        rewritten = self.layers.segments.any(self._moved.cpu())
        self._moved.zero_()
        return Block([row.step for row in meta if row.step is not None], [row.rate for row in meta], rows, rewritten)

    def _counted(self) -> Tensor:
        """Which layers have a counter: ``[L]`` bool."""
        return torch.tensor([b.get("num_batches_tracked") is not None for b in self._buffers], device="cpu")

    def _half_ulp(self) -> Tensor:
        """Relative rounding of each layer's running statistics: ``[L]``."""
        kept = [b.get("running_mean") for b in self._buffers]
        return torch.tensor(
            [max(torch.finfo(d).eps for d in (self.dtype, self.dtype if t is None else t.dtype)) / 2 for t in kept],
            dtype=torch.float64,
            device="cpu",
        )


def _written(means: list[Tensor], variances: list[Tensor]) -> tuple[list[int], ...]:
    """Which tensors the running means are, and how often autograd saw them and the variances written to in place."""
    try:
        return [*map(id, means)], [t._version for t in means], [t._version for t in variances]
    except RuntimeError:  # tensors made in inference mode do not know
        nothing = [0] * len(means)
        return nothing, nothing, nothing
