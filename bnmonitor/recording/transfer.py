"""Brings tensors from a device to the CPU, without anybody waiting for the device."""

from __future__ import annotations

from collections import deque
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
        self._device = device
        self._sent: deque[tuple[T, tuple[Tensor, ...], torch.cuda.Event | None]] = deque()

    def send(self, label: T, *tensors: Tensor) -> None:
        """Send tensors, which later work on the device's current stream may overwrite.

        On a CPU they are handed over as they are: receive, and use, them before they are overwritten.
        """
        event = None
        if self._device.type == "cuda":
            # Pinned memory is kept and lent again by PyTorch itself.
            here = tuple(torch.empty(t.shape, dtype=t.dtype, device="cpu", pin_memory=True) for t in tensors)
            for source, target in zip(tensors, here, strict=True):
                target.copy_(source, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(self._device))
        else:
            here = tuple(t.cpu() for t in tensors)
        self._sent.append((label, here, event))

    def receive(self, *, wait: bool) -> list[tuple[T, tuple[Tensor, ...]]]:
        """Return what has arrived, oldest first; with ``wait``, everything that was sent."""
        arrived = []
        while self._sent and (wait or self._there()):
            label, here, event = self._sent.popleft()
            if event is not None:
                event.synchronize()
            arrived.append((label, here))
        return arrived

    def _there(self) -> bool:
        event = self._sent[0][2]
        return event is None or bool(event.query())  # type: ignore[no-untyped-call]
