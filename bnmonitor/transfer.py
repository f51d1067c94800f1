"""Brings tensors from a device to the CPU, without anybody waiting for the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from math import prod
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class HostTransfer(Generic[T]):
    """Copies tensors from a device, and hands them over in order once they have arrived.

    From CUDA they travel by an asynchronous copy into pinned memory, behind which an event tells of the arrival.
    Other accelerators have no event that all versions of PyTorch know of: the copy from them waits.

    Args:
        device: Where the tensors are.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        """Where they are."""
        self._sent: deque[tuple[T, tuple[Tensor, ...], torch.cuda.Event | None]] = deque()

    def send(self, label: T, *tensors: Tensor) -> None:
        """Send tensors, which later work on the device's current stream may overwrite.

        On a CPU they are handed over as they are: receive, and use, them before they are overwritten.
        """
        event = None
        if self.device.type == "cuda":  # pragma: no cover (needs a GPU: `make gpu`)
            # Pinned memory is kept and lent again by PyTorch itself.
            here = tuple(torch.empty(t.shape, dtype=t.dtype, device="cpu", pin_memory=True) for t in tensors)
            for source, target in zip(tensors, here, strict=True):
                target.copy_(source, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(self.device))
        else:
            here = tuple(t.cpu() for t in tensors)
        self._sent.append((label, here, event))

    def follow(self, device: torch.device) -> None:
        """Take tensors from another device from now on; wait for those that are on their way from this one."""
        for _, _, event in self._sent:
            if event is not None:  # pragma: no cover (needs a GPU: `make gpu`)
                event.synchronize()
        self._sent = deque((label, here, None) for label, here, _ in self._sent)
        self.device = device

    def receive(self, *, wait: bool) -> list[tuple[T, tuple[Tensor, ...]]]:
        """Return what has arrived, oldest first; with ``wait``, everything that was sent."""
        arrived = []
        while self._sent and (wait or self._there()):
            label, here, event = self._sent.popleft()
            if event is not None:  # pragma: no cover (needs a GPU: `make gpu`)
                event.synchronize()
            arrived.append((label, here))
        return arrived

    def _there(self) -> bool:
        event = self._sent[0][2]
        return event is None or bool(event.query())  # type: ignore[no-untyped-call]


Unpack = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""Makes the tensors that were packed of what has arrived."""


def pack(tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], Unpack]:
    """Put many small tensors of a device into one, so that a single copy brings all of them; nothing waits for that.

    Tensors of a CPU are left as they are. Those of several devices are gathered on the first.

    Args:
        tensors: Of any shapes and dtypes.

    Returns:
        What to send, and what makes the tensors of it again, in the same order.
    """
    away = [i for i, t in enumerate(tensors) if t.device.type != "cpu"]
    if not away:
        return tensors, lambda arrived: arrived
    device = tensors[away[0]].device
    # From the widest dtype to the narrowest: then each begins where its values may lie.
    dtypes = sorted({tensors[i].dtype for i in away}, key=lambda dtype: dtype.itemsize, reverse=True)
    groups = [[i for i in away if tensors[i].dtype == dtype] for dtype in dtypes]
    parts = []
    for group in groups:
        flat = [tensors[i].detach().to(device, non_blocking=True).flatten() for i in group]
        parts.append(torch.cat(flat).view(torch.uint8))
    shapes = {i: (tensors[i].dtype, tensors[i].shape) for i in away}
    near = {i: t for i, t in enumerate(tensors) if i not in shapes}

    def unpack(arrived: Sequence[Tensor]) -> Sequence[Tensor]:
        found, at = dict(near), 0
        for i in (i for group in groups for i in group):
            dtype, shape = shapes[i]
            size = prod(shape) * dtype.itemsize
            found[i] = arrived[0][at : at + size].view(dtype).view(shape)
            at += size
        return [found[i] for i in range(len(tensors))]

    return [torch.cat(parts)], unpack
