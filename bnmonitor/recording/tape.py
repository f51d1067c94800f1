"""Reads the buffers of every layer after every step; with the activation hooks, all that touches modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, cycle, repeat
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from bnmonitor.layers import LayerTable, is_split
from bnmonitor.recording.concatenation import Concatenation
from bnmonitor.recording.held import HeldAffine
from bnmonitor.recording.intake import Intake
from bnmonitor.recording.recovery import Seen
from bnmonitor.recording.ring import Ring
from bnmonitor.recording.row import READ, Row, Sent
from bnmonitor.recording.steps import StepReader
from bnmonitor.recording.traces import Traces
from bnmonitor.transfer import HostTransfer, pack

_DTYPE, _GRAD = attrgetter("dtype"), attrgetter("grad")


class ResizedError(ValueError):
    """A layer no longer has the tensors it was found with; its neighbors' would be misread."""


class Tape:
    """Copies the state of every layer into a tape on its device, from which the batch statistics are recovered.

    A step costs one concatenation of everything and one of the counters, however many layers there are (on CUDA a
    kernel for each 128 tensors), and nothing waits for the device. The buffers are looked up anew at each step, so a
    tensor that was replaced since (by ``.to()``, ``load_state_dict(assign=True)``, weight averaging) is never read
    stale.

    Args:
        layers: The table of the layers.
        modules: The modules behind it, in the same order.
        length: Steps that the tape holds between two drains.
        transfer: Makes what brings the tape from its device to the CPU.
        gather: Whether to keep the own part of what is split over the processes, for the exchange between them.
    """

    def __init__(
        self,
        layers: LayerTable,
        modules: Sequence[nn.Module],
        length: int,
        transfer: Callable[[torch.device], HostTransfer[Any]] = HostTransfer,
        *,
        gather: bool = False,
    ) -> None:
        self.layers = layers
        self.modules = tuple(modules)
        self._attributes = [vars(m) for m in self.modules]
        self._buffers = [m._buffers for m in self.modules]
        in_buffers = layers.which("affine_in_buffers").tolist()
        self._parameters: list[dict[str, Any]] = [
            m._buffers if there else m._parameters for m, there in zip(self.modules, in_buffers, strict=True)
        ]
        self._device = next(iter(self._devices()), torch.device("cpu"))
        self.dtype = torch.float64 if torch.float64 in self._dtypes() else torch.float32
        self._length = length + 2
        shape = (self._length, len(READ), layers.total)
        self._hold(
            torch.empty(shape, dtype=self.dtype, device=self._device),
            torch.zeros(self._length, len(layers), dtype=torch.int64, device=self._device),
        )
        self.held = HeldAffine(layers, self.modules) if gather and layers.split else None
        """The own part of what is split over the processes; None if nothing is, or nobody wants it."""
        self._sizes = [*layers.channels, *layers.channels]
        self.reader = StepReader(layers, self.modules, self.dtype)
        """Tells what is known of the steps."""
        self.intake = Intake(layers, self.modules, self.reader, self.held)
        """Takes the steps into the ring."""
        self._moved: Tensor | None = None
        self._concatenation = Concatenation()
        self._meta: list[Row] = []
        self._transfer: HostTransfer[Sent] = transfer(self._device)
        self._origin_transfer: HostTransfer[None] = transfer(self._device)
        self._origin: tuple[Tensor, ...] | None = None

    def _hold(self, tape: Tensor, counts: Tensor) -> None:
        """Take these as the tape, and make on its device what stands for the tensors that a layer does not have."""
        self._tape, self._counts = tape, counts
        self._slots = list(tape.view(self._length, -1).unbind(0))
        layers, device = self.layers, tape.device
        self._fill = {
            value: [torch.full((c,), value, dtype=self.dtype, device=device) for c in layers.channels]
            for value in (torch.nan, 0.0, 1.0)
        }
        unknown = self._fill[torch.nan]
        for i in layers.split:
            self._parameters[i] = {"weight": unknown[i], "bias": unknown[i]}
        # A gamma that pruning or a parametrization computes is no parameter, and not known.
        which = zip(layers.affine, unknown, self._fill[1.0], strict=True)
        self._no_gamma = [unknown if affine else one for affine, unknown, one in which]
        self._no_count = [torch.zeros((), dtype=torch.int64, device=device)] * len(layers)

    def _devices(self) -> list[torch.device]:
        """Where the layers' own tensors are: each device once, in the order of the layers."""
        return list(dict.fromkeys(t.device for m in self.modules for t in (*m.buffers(False), *m.parameters(False))))

    def _followed(self) -> bool:
        """Move the tape to where all layers are now, such as after ``.cuda()``; return whether they had moved."""
        devices = self._devices()
        if len(devices) != 1 or devices[0] == self._device:
            return False
        [self._device] = devices
        # A copy to a device is staged by PyTorch; one from a device must be complete before it is read.
        tape, counts = (t.to(self._device, non_blocking=self.away) for t in (self._tape, self._counts))
        self._hold(tape, counts)
        self._moved = None if self._moved is None else self._moved.to(self._device)
        for transfer in (self._transfer, self._origin_transfer):
            transfer.follow(self._device)
        return True

    def _dtypes(self) -> list[torch.dtype]:
        return [t.dtype for b in self._buffers if (t := b.get("running_mean")) is not None]

    @property
    def away(self) -> bool:
        """Whether the layers are on another device than a CPU, from which everything arrives later."""
        return self._device.type != "cpu"

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
            moved = (self._tape[len(self._meta) - 1, :2] != before.to(self._device)).any(0)
            self._moved = moved if self._moved is None else self._moved | moved

    def step(
        self,
        step: int,
        rate: float = torch.nan,
        seen: Mapping[int, Seen] | None = None,
        *,
        foreign: bool = False,
        witness: Tensor | None = None,
    ) -> None:
        """Record one training step that has just ended.

        Args:
            step: Its number.
            rate: The learning rate in force.
            seen: Statistics of layers without buffers, by ``id(module)``; None if nothing could be seen.
            foreign: Whether it began with the buffers of another process, which are not on the tape.
            witness: Mean and variance of the batch in the forward of a sampled step, ``[2, C]``.
        """
        self._read(step, rate, seen)
        if foreign or witness is not None:
            self._meta[-1] = replace(self._meta[-1], foreign=foreign, witness=witness)

    def _read(self, step: int | None, rate: float, seen: Mapping[int, Seen] | None = None) -> None:
        if not self.modules:
            return
        means, variances = self._running("running_mean"), self._running("running_var")
        gammas = _column(self._parameters, "weight", self._no_gamma)
        betas = _column(self._parameters, "bias", self._fill[0.0])
        grads = [_filled(list(map(_GRAD, column)), self._fill[torch.nan]) for column in (gammas, betas)]
        columns = [means, variances, gammas, betas, *grads]
        source = list(chain.from_iterable(columns))
        if self.held is not None:
            with torch.no_grad():
                source = self.held.fill(source, self._fill[torch.nan])
        counts = _column(self._buffers, "num_batches_tracked", self._no_count)
        last = self._meta[-1] if self._meta else None
        traces = Traces.read(means, variances, counts, last.traces if last is not None else None)
        self._compare_sizes([gammas, betas])
        if last is None or traces.addresses is not last.traces.addresses:
            self._compare_sizes([means, variances])
            self._refuse_integers(traces)
        try:
            self._copy(source, counts)
        except (RuntimeError, TypeError):
            if any(map(is_split, (*gammas, *betas))):
                raise ResizedError("gamma and beta have been split over the processes") from None
            if self._followed():
                self._read(step, rate, seen)
                return
            # Layers on several devices, or counts that an average of the weights has turned into floats.
            try:
                here = [t.detach().to(self._device) for t in source]
                self._copy(here, [c.to(self._device, torch.int64) for c in counts])
            except (RuntimeError, TypeError) as error:
                raise ResizedError(f"a layer has other tensors than it had: {error}") from error
        training, momentum = self._training(), self._momenta()
        if last is not None and (last.training, last.momentum) == (training, momentum):
            training, momentum = last.training, last.momentum
        self._meta.append(Row(step, rate, training, momentum, traces, seen))

    def _training(self) -> bytes:
        found = map(dict.get, self._attributes, repeat("training"))
        try:
            return bytes(found)  # type: ignore[arg-type]
        except TypeError:  # code that is not PyTorch's has set it, for example to a bool of NumPy's
            return bytes(bool(mode) for mode in map(dict.get, self._attributes, repeat("training")))

    def _momenta(self) -> list[float | None]:
        try:
            return [a["momentum"] for a in self._attributes]
        except KeyError:  # a frozen look-alike has none; another class may keep it elsewhere
            return [getattr(m, "momentum", None) for m in self.modules]

    def _running(self, name: str) -> list[Tensor]:
        """A running statistic of every layer; NaN for one that keeps none."""
        return _column(self._buffers, name, self._fill[torch.nan])

    def _compare_sizes(self, pair: list[list[Tensor]]) -> None:
        """Raise an error if a layer has another size than it had: PyTorch would warn the user of a resized output."""
        sizes = list(map(Tensor.numel, chain.from_iterable(pair)))
        if sizes != self._sizes:
            found = zip(cycle(self.layers.names), self._sizes, sizes, strict=False)
            name, was, now = next(each for each in found if each[1] != each[2])
            raise ResizedError(f"layer {name!r} had {was} channels and now has {now}")

    def _refuse_integers(self, traces: Traces) -> None:
        for name, dtype in zip(cycle(self.layers.names), traces.dtypes, strict=False):
            if not dtype.is_floating_point:
                raise ResizedError(f"layer {name!r} now has running statistics of the type {dtype}")

    def _copy(self, source: list[Tensor], counts: list[Tensor]) -> None:
        row = len(self._meta)
        slot = self._slots[row]
        with torch.inference_mode():  # what autograd would look up of each tensor is a quarter of the cost
            if self.away and set(map(_DTYPE, source)) != {self.dtype}:
                self._concatenation.into(slot, source)
            else:
                torch.cat(source, out=slot)
            torch.stack(counts, out=self._counts[row])

    def rewritten(self) -> Tensor:
        """Which layers' running statistics have been written since the last state on the tape: ``[L]`` bool.

        By the tensors' identities and versions, so that nothing waits for the device; what autograd does not see, as in
        inference mode, is not noticed.
        """
        means, variances = (self._running(name) for name in ("running_mean", "running_var"))
        last = self._meta[-1].traces
        now = Traces.read(means, variances, last.tensors[2 * len(means) :], last)
        return ~now.same(last) | now.written_since(last)

    def send_origin(self) -> None:
        """Send the oldest state on the tape on its way from the device."""
        rows = [self._tape[0, READ.index(name)] for name in ("gamma", "running_mean", "running_var")]
        self._origin = None
        self._origin_transfer.send(None, *rows, self._counts[0])

    def origin(self, *, wait: bool = True) -> tuple[Tensor, ...] | None:
        """The state that was sent: gamma, running mean and variance, ``[C]``, and updates so far, ``[L]``.

        Args:
            wait: Whether to wait for it; else None as long as it is on its way, or was not sent.
        """
        for _, state in self._origin_transfer.receive(wait=wait):
            self._origin = state
        return self._origin

    def reordered(self, layers: LayerTable, modules: Sequence[nn.Module]) -> Tape:
        """Return a recorder of the same layers in another order, which goes on from the same state.

        Before the first step only: what was sent and has not arrived is lost.
        """
        self._followed()
        other = Tape(layers, modules, self._length - 2, gather=self.held is not None)
        position = {id(m): i for i, m in enumerate(self.modules)}
        order = [position[id(m)] for m in modules]
        spans = [slice(*self.layers.offsets[i : i + 2]) for i in order]
        other._transfer = self._transfer
        other.reader.take_over(self.reader, order)
        used = len(self._meta)
        # Positions in a list would be copied to the device, which waits for it.
        torch.cat([self._tape[:used, :, span] for span in spans], 2, out=other._tape[:used])
        torch.cat([self._counts[:used, i : i + 1] for i in order], 1, out=other._counts[:used])
        other._meta = [
            replace(
                r,
                training=bytes(r.training[i] for i in order),
                momentum=[r.momentum[i] for i in order],
                traces=r.traces.reordered(order),
            )
            for r in self._meta
        ]
        return other

    @torch.no_grad()
    def drain(self, ring: Ring, *, wait: bool = True) -> tuple[int, Tensor | None]:
        """Move the steps since the last call into a ring, and keep the newest state to compare the next step with.

        Args:
            ring: Where they go.
            wait: Whether to wait for what is still on its way from the device; else it comes with a later call.

        Returns:
            The number of steps that came, and which layers' running statistics something else has given other values
            between steps: ``[L]`` bool, or None if none can have been.
        """
        came, rewritten = 0, None
        used = len(self._meta)
        steps = any(row.step is not None for row in self._meta)
        if steps:
            loose, unpack = pack([t for row in self._meta for t in row.loose])
            moved = [] if self._moved is None else [self._moved]
            label = Sent(self._meta, self._moved is not None, unpack)
            self._transfer.send(label, self._tape[:used], self._counts[:used], *moved, *loose)
            self._moved = None
        for sent, (tape, counts, *more) in self._transfer.receive(wait=wait):
            packed = iter(sent.unpack(more[sent.moved :]))
            rows = [row.arrived(packed) if row.loose else row for row in sent.rows]
            came += self.intake.take(rows, tape, counts, ring, self._trains())
            for mask in map(self.layers.segments.any, more[: sent.moved]):
                rewritten = mask if rewritten is None else rewritten | mask
        if steps:
            self._tape[0].copy_(self._tape[used - 1])
            self._counts[0].copy_(self._counts[used - 1])
            self._meta = [replace(self._meta[-1], step=None, seen=None, witness=None)]
        return came, rewritten

    def _trains(self) -> list[bool]:
        """Which gammas and betas require a gradient now."""
        affine = (parameters.get(name) for parameters in self._parameters for name in ("weight", "bias"))
        return [parameter is not None and parameter.requires_grad for parameter in affine]


def _column(dicts: Sequence[dict[str, Any]], key: str, fill: list[Tensor]) -> list[Tensor]:
    """One tensor of each layer, without a loop in Python: a thousand layers are looked up at every step."""
    return _filled(list(map(dict.get, dicts, repeat(key))), fill)


def _filled(found: list[Any], fill: list[Tensor]) -> list[Tensor]:
    if type(None) not in set(map(type, found)):
        return found
    return [f if t is None else t for t, f in zip(found, fill, strict=True)]
