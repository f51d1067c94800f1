"""Facts of the training that the user or the Trainer states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bnmonitor.context.loaders import describe
from bnmonitor.transfer import HostTransfer
from bnmonitor.window import Loader

_KEPT = 4096
"""Most readings of the scale that are kept; a window is much shorter."""


class RunFacts:
    """The facts of a run that its modules and optimizers do not show.

    Args:
        train_loader: The training loader; None: unknown.
        val_loader: The validation loader, likewise.
        accumulate_grad_batches: Micro-batches per optimizer step.
        scaler: The gradient scaler of mixed precision in fp16; None: the run has none, or it is unknown.

    Raises:
        ValueError: ``accumulate_grad_batches`` is not a positive integer.
        TypeError: ``scaler`` is not a gradient scaler, or a loader cannot be iterated over.
    """

    def __init__(
        self,
        *,
        train_loader: Any = None,
        val_loader: Any = None,
        accumulate_grad_batches: int = 1,
        scaler: Any = None,
    ) -> None:
        self.train_loader: Loader | None = None
        self.unreadable = False
        """Whether the training loader does not show how it makes its batches."""
        self.val_loader: Loader | None = None
        self.accumulate = 1
        self.converts = self.averages_without_buffers = False
        self.own_forwards: Mapping[str, str] = {}
        self.scaler: Any = None
        self._scales: dict[int, float] = {}
        self._unread: dict[int, Tensor] = {}
        self._transfer: HostTransfer[list[int]] | None = None
        self.update(
            train_loader=train_loader,
            val_loader=val_loader,
            accumulate_grad_batches=accumulate_grad_batches,
            scaler=scaler,
        )

    def update(
        self,
        *,
        train_loader: Any = None,
        val_loader: Any = None,
        accumulate_grad_batches: int | None = None,
        scaler: Any = None,
        batches: float | None = None,
        converts: bool | None = None,
        own_forwards: Mapping[str, str] | None = None,
        averages_without_buffers: bool | None = None,
    ) -> None:
        """Set the facts that have become known since; None leaves a fact as it is.

        Args:
            train_loader: As at construction.
            val_loader: As at construction.
            accumulate_grad_batches: As at construction.
            scaler: As at construction.
            batches: Number of batches that an epoch takes from the training loader; None: all.
            converts: Whether the Trainer will convert the model to SyncBatchNorm.
            own_forwards: What :func:`bnmonitor.layers.own_forwards` returned before such a conversion.
            averages_without_buffers: Whether the run evaluates averaged weights but does not average the buffers.
        """
        self.converts = self.converts if converts is None else converts
        self.own_forwards = self.own_forwards if own_forwards is None else own_forwards
        if averages_without_buffers is not None:
            self.averages_without_buffers = averages_without_buffers
        if accumulate_grad_batches is not None:
            number = accumulate_grad_batches
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(f"accumulate_grad_batches must be an int of at least 1, got {number!r}")
            self.accumulate = number
        if train_loader is not None:
            self.train_loader = describe(train_loader, "train_loader", batches)
            self.unreadable = self.train_loader is None
        if val_loader is not None:
            self.val_loader = describe(val_loader, "val_loader")
        if scaler is not None:
            if not hasattr(scaler, "get_scale"):
                raise TypeError(f"scaler must be a torch.amp.GradScaler, got {type(scaler).__name__}")
            self.scaler = scaler

    def step(self, number: int) -> None:
        """Record the scale after a training step; a scale on a device is copied there and read later."""
        if self.scaler is None:
            return
        if not self._scales and not self._unread and self._transfer is None:
            # The scale before the first update is the one that the scaler was made with.
            self._scales[number - 1] = float(getattr(self.scaler, "_init_scale", "nan"))
        scale = getattr(self.scaler, "_scale", None)
        if isinstance(scale, Tensor):
            self._unread[number] = scale.detach().clone()
        elif not (hasattr(self.scaler, "_scale") and scale is None):
            self._scales[number] = float(self.scaler.get_scale())

    def collect(self, *, wait: bool) -> None:
        """Send the scales that were recorded on their way from the device, and take in those that have arrived.

        Args:
            wait: Whether to wait for all of them.
        """
        if self._unread:
            sent = torch.stack([scale.float() for scale in self._unread.values()])
            if self._transfer is None:
                self._transfer = HostTransfer(sent.device)
            elif self._transfer.device != sent.device:
                self._transfer.follow(sent.device)
            self._transfer.send(list(self._unread), sent)
            self._unread = {}
        for numbers, (values,) in () if self._transfer is None else self._transfer.receive(wait=wait):
            self._scales |= dict(zip(numbers, values.tolist(), strict=True))
            for old in list(self._scales)[:-_KEPT]:
                del self._scales[old]

    def scales(self, steps: Sequence[int]) -> tuple[tuple[float, ...], tuple[bool, ...]]:
        """Return the scale after each of some steps, and whether the scaler skipped the optimizer there.

        The scaler lowers its scale only when it has skipped a step. NaN for a step whose scale has not arrived yet.
        """
        self.collect(wait=False)
        if not self._scales:
            return (), ()
        nan = float("nan")
        order = list(self._scales)
        before = dict(zip(order[1:], (self._scales[n] for n in order), strict=False))
        scales = tuple(self._scales.get(n, nan) for n in steps)
        return scales, tuple(now < before.get(n, nan) for n, now in zip(steps, scales, strict=True))
