"""A device without hardware: its tensors lie in the CPU's memory, its operations are counted, and waits are noted.

PyTorch treats its tensors as those of an accelerator: ``tensor.device`` is ``fake:0``, they mix with no tensor of the
CPU, and what the host wants to know of them takes an operation that is seen here: ``item``, ``tolist``, ``bool``,
``torch.equal``, ``nonzero``, an index that is a mask, a copy. On hardware the host waits there until all that was
queued before is done.

The device can be made once in a process, before PyTorch has run a backward in it: it needs a process of its own.
"""

from __future__ import annotations

import ctypes
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.library import Library
from torch.utils._pytree import tree_map, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "fake"
"""The type of the device."""

_CPU, _EXTENSION = 1, 12
"""Types of devices in DLPack."""

_KEY = "PrivateUse1"
"""What PyTorch calls a device that it does not know."""

_WAITS = {
    *("_local_scalar_dense", "equal", "nonzero", "masked_select", "allclose", "bincount"),
    *("_unique2", "unique_dim", "unique_consecutive", "repeat_interleave"),
}
"""Operations of whose result the host must know the value, or the size; those of ``torch.linalg`` that factorize, too,
whose success it asks for."""

_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
"""Operations that take positions of the CPU as well."""

_VIEWS = {"as_strided", "view", "_reshape_alias", "unfold", "empty", "empty_strided", "set_"}
"""Operations that launch no kernel."""


class Launches:
    """What was asked of the device.

    Attributes:
        names: How often each operation was started, by name.
        waits: Each operation that the host would wait for, with the line of bnmonitor or of the test that called it.
        copies: How often something was sent to the CPU by a copy that the host does not wait for.
    """

    def __init__(self) -> None:
        self.names: Counter[str] = Counter()
        self.waits: list[str] = []
        self.copies = 0

    @property
    def total(self) -> int:
        """How many operations were started."""
        return self.names.total()

    def wait(self, name: str) -> None:
        """Note that the host would wait."""
        frames = [f for f in traceback.extract_stack() if "/torch/" not in f.filename and f.filename != __file__]
        at = next((f for f in reversed(frames) if "/bnmonitor/" in f.filename), frames[-1])
        self.waits.append(f"{name} in {at.filename.rpartition('/')[2]}:{at.lineno} ({at.line})")


_open: list[Launches] = []
_sending = 0


@contextmanager
def launches() -> Iterator[Launches]:
    """Note what is asked of the device within."""
    found = Launches()
    _open.append(found)
    try:
        yield found
    finally:
        _open.remove(found)


@contextmanager
def asynchronous() -> Iterator[None]:
    """Take copies to the CPU within for such that the host does not wait for, as into pinned memory behind an event."""
    global _sending
    _sending += 1
    try:
        yield
    finally:
        _sending -= 1


def waited(name: str) -> None:
    """Note that the host waits for the device otherwise than by an operation."""
    for found in _open:
        found.wait(name)


class _Head(ctypes.Structure):
    """The beginning of a tensor in DLPack."""

    _fields_ = (("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32))


_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)


def _alias(tensor: Tensor, kind: int) -> Tensor:
    """The same memory as a tensor of another device."""
    capsule: Any = torch._C._to_dlpack(tensor)  # type: ignore[attr-defined]
    head = _Head.from_address(_pointer(capsule, b"dltensor"))
    head.device_type, head.device_id = kind, 0
    with torch.inference_mode(False):  # which DLPack cannot make a tensor in
        alias: Tensor = torch._C._from_dlpack(capsule)  # type: ignore[attr-defined]
    return alias


def _run(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Run an operation of the device on the CPU."""
    name = op.overloadpacket.__name__
    for found in _open:
        found.names[name] += name not in _VIEWS
        indices = args[1] if name in _INDEXING else ()
        # A mask becomes positions, whose number the host must know; indices of the CPU are copied to the device.
        slow = any(isinstance(i, Tensor) and (i.dtype == torch.bool or i.device.type == "cpu") for i in indices)
        if name in _WAITS or slow or (name.lstrip("_").startswith("linalg_") and name != "linalg_vector_norm"):
            found.wait(name)
    originals: dict[int, Tensor] = {}
    kept: list[tuple[Tensor, Tensor]] = []

    def here(value: Any) -> Any:
        if isinstance(value, torch.device):
            return torch.device("cpu") if value.type == NAME else value
        if not isinstance(value, Tensor):
            return value
        if value.device.type != NAME:
            if value.dim() and name not in _INDEXING:
                raise RuntimeError(
                    f"Expected all tensors to be on the same device, but {name} got some of {value.device}"
                )
            return value
        # What is made empty may be resized to hold a result; memory that belongs to another tensor cannot be.
        alias = _alias(value, _CPU) if value.numel() else torch.empty_like(value, device="cpu")
        originals[id(alias)] = value
        kept.append((alias, value))
        return alias

    given, named = tree_map(here, args), tree_map(here, kwargs)
    try:
        out = op(*given, **named)
    except RuntimeError as error:
        if "Expected a value of type 'Tensor'" not in str(error):
            raise
        out = op.overloadpacket(*given, **named)  # a number that PyTorch had made a tensor is a number again
    for alias, value in kept:
        if alias.shape != value.shape:
            value.data = _alias(alias, _EXTENSION)

    def there(value: Tensor) -> Tensor:
        return originals[id(value)] if id(value) in originals else _alias(value, _EXTENSION)

    return tree_map_only(Tensor, there, out)


def _copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """Copy within the device, to it or from it."""
    across = target.device != source.device
    for found in _open:
        found.names["copy_"] += 1
        if across and target.device.type == "cpu" and _sending:
            found.copies += 1
        elif across and not (non_blocking and source.device.type == "cpu"):
            found.wait(f"copy_ from {source.device} to {target.device}")
    here, there = (_alias(t, _CPU) if t.device.type == NAME else t for t in (target, source))
    here.copy_(there)
    return target


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any) -> Tensor:
    made: Tensor = _run(torch.ops.aten.convolution.default, x, weight, bias, *settings)
    return made


def _convolution_backward(out: Tensor, x: Tensor, weight: Tensor, *settings: Any) -> Any:
    *geometry, mask = settings
    return _run(torch.ops.aten.convolution_backward.default, out, x, weight, [weight.shape[0]], *geometry, mask)


def make() -> torch.device:
    """Make the device; once in a process."""
    _setup_privateuseone_for_python_backend(NAME)
    every = Library("_", "IMPL")
    every.fallback(_run, _KEY)
    aten = Library("aten", "IMPL")
    aten.impl("copy_", _copy, _KEY)
    aten.impl("convolution_overrideable", _convolution, _KEY)
    aten.impl("convolution_backward_overrideable", _convolution_backward, _KEY)
    _kept.extend((every, aten))
    return torch.device(NAME, 0)


_kept: list[Library] = []
"""What would take the device back if it were freed."""
