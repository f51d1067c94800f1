"""What a callback reports from a spawned process to the process that started it."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import uuid
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from multiprocessing import util
from pathlib import Path
from typing import Any

from torch import nn

from bnmonitor.monitor import Monitor, Settings
from bnmonitor.results import Alert


class Mailbox:
    """A file that a callback in a spawned process writes, and the callback that it is a copy of reads.

    Lightning's launchers return the weights, metrics and the path of the best checkpoint, and nothing of a callback.
    """

    def __init__(self) -> None:
        self._owner = os.getpid()
        # Nobody can guess the name: what is unpickled was written by a copy of the callback.
        self._path = Path(tempfile.gettempdir()) / f"bnmonitor-{uuid.uuid4().hex}"
        weakref.finalize(self, _remove, self._path, self._owner)

    @property
    def is_away(self) -> bool:
        """Whether this is a copy in a process that the owner's process has started."""
        parent = multiprocessing.parent_process()
        return os.getpid() != self._owner and parent is not None and parent.pid == self._owner

    def send(self, content: Any) -> None:
        """Write what the owner will receive, in the place of what was sent before."""
        part = self._path.with_suffix(".part")
        with suppress(FileNotFoundError):
            part.unlink()
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            pickle.dump(content, file)
        part.replace(self._path)

    def receive(self) -> Any:
        """Return what a copy has sent since the last call; None if nothing was sent."""
        if os.getpid() != self._owner or not self._path.exists():
            return None
        content = self._path.read_bytes()
        self._path.unlink()
        return pickle.loads(content)


def at_process_end(call: Callable[[], None]) -> None:
    """Call a function when a process that ``multiprocessing`` has started ends, also after an exception."""
    util.Finalize(None, call, exitpriority=1)


def _remove(path: Path, owner: int) -> None:
    if os.getpid() == owner:
        path.unlink(missing_ok=True)


class _Layers(nn.Module):
    """The layers of a model under their names, without the model."""

    def put(self, name: str, layer: nn.Module) -> None:
        """Take a copy of a layer, on the CPU."""
        *path, last = name.split(".")
        place: nn.Module = self
        for part in path:
            if part not in place._modules:
                place._modules[part] = nn.Module()
            place = place._modules[part]  # type: ignore[assignment]
        copy: nn.Module = pickle.loads(pickle.dumps(layer))
        place._modules[last] = copy.cpu()


def packed(monitor: Monitor, module: nn.Module) -> tuple[tuple[Alert, ...], bytes]:
    """Return the alerts of a monitor, and its layers and its state as bytes, which are empty if it has none."""
    layers = _Layers()
    with suppress(Exception):  # a layer of a class that cannot be pickled, or under another name
        for name in monitor.layers.names:
            layers.put(name, module.get_submodule(name))
        return monitor.alerts, pickle.dumps((layers, monitor.state_dict()))
    return monitor.alerts, b""


def unpacked(content: bytes, settings: Settings) -> Monitor | None:
    """Return a monitor with the record that :func:`packed` read, which watches nothing; None if there is none."""
    with suppress(Exception):
        layers, state = pickle.loads(content)
        silent = replace(settings, include=("*",), exclude=(), sinks=[], on_alert="log")
        monitor = Monitor.from_settings(layers, silent)
        monitor.load_state_dict(state)
        return monitor
    return None
