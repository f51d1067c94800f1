"""Settings of the process that a package may change when it is imported or called, and how to put them back."""

from __future__ import annotations

import gc
import locale
import logging
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

_Read = Callable[[], Any]
_Write = Callable[[Any], object]


def settings() -> list[tuple[_Write, _Read, Any]]:
    """Return every setting as it is now: the function that sets it, the one that reads it, and its value."""
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    pairs = [*_OF_PYTHON, *(() if torch is None else _of_torch(torch))]
    if numpy is not None:
        pairs.append((numpy.geterr, lambda value: numpy.seterr(**value)))
    return [(write, read, read()) for read, write in pairs]


def put_back(before: list[tuple[_Write, _Read, Any]]) -> None:
    """Set what has changed since to what it was; nothing is written where nothing changed."""
    for write, read, value in before:
        if read() != value:
            with suppress(ValueError, OSError, locale.Error):  # another thread than the main one sets no signal handler
                write(value)


def _set_filters(value: list[Any]) -> None:
    # This makes Python show every warning anew, and so only happens after a change, which did so as well.
    with suppress(AttributeError):
        warnings.filters[:] = value  # type: ignore[index]
        getattr(warnings, "_filters_mutated", lambda: None)()


def _handlers() -> dict[int, Any]:
    return {number: handler for number in _SIGNALS if (handler := signal.getsignal(number)) is not None}


def _set_handlers(value: dict[int, Any]) -> None:
    for number, handler in value.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


def _directory() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return ""


def _collection() -> tuple[bool, tuple[int, int, int]]:
    return gc.isenabled(), gc.get_threshold()


def _set_collection(value: tuple[bool, tuple[int, int, int]]) -> None:
    gc.set_threshold(*value[1])
    (gc.enable if value[0] else gc.disable)()


def _logging() -> tuple[Any, ...]:
    root = logging.getLogger()
    return list(root.handlers), root.level, root.manager.disable, logging.getLoggerClass()


def _set_logging(value: tuple[Any, ...]) -> None:
    root = logging.getLogger()
    root.handlers[:], disabled = value[0], value[2]
    root.setLevel(value[1])
    logging.disable(disabled)
    logging.setLoggerClass(value[3])


def _attribute(holder: Any, name: str) -> tuple[_Read, _Write]:
    return lambda: getattr(holder, name), lambda value: setattr(holder, name, value)


_NAMES = (
    "HUP",
    "INT",
    "QUIT",
    "ABRT",
    "TERM",
    "ALRM",
    "CHLD",
    "CONT",
    "PIPE",
    "TSTP",
    "USR1",
    "USR2",
    "WINCH",
    "BREAK",
)

# The real-time signals are left out: to ask for the handlers of all takes 40 µs.
_SIGNALS = tuple(getattr(signal, f"SIG{name}") for name in _NAMES if hasattr(signal, f"SIG{name}"))

_OF_PYTHON: tuple[tuple[_Read, _Write], ...] = (
    (lambda: list(warnings.filters), _set_filters),
    (_handlers, _set_handlers),
    (lambda: locale.setlocale(locale.LC_ALL), lambda value: locale.setlocale(locale.LC_ALL, value)),
    (_directory, lambda value: os.chdir(value) if value else None),
    (_collection, _set_collection),
    (_logging, _set_logging),
    (sys.getrecursionlimit, sys.setrecursionlimit),
    (sys.getswitchinterval, sys.setswitchinterval),
    (socket.getdefaulttimeout, socket.setdefaulttimeout),
    _attribute(warnings, "showwarning"),
    _attribute(threading, "excepthook"),
    *(_attribute(sys, name) for name in ("excepthook", "unraisablehook", "displayhook", "stdout", "stderr")),
)


def _of_torch(torch: Any) -> tuple[tuple[_Read, _Write], ...]:
    algorithms = torch.are_deterministic_algorithms_enabled, torch.is_deterministic_algorithms_warn_only_enabled
    return (
        (torch.get_default_dtype, torch.set_default_dtype),
        (torch.get_num_threads, torch.set_num_threads),
        (torch.is_grad_enabled, torch.set_grad_enabled),
        (torch.is_anomaly_enabled, torch.set_anomaly_enabled),
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        (
            lambda: (algorithms[0](), algorithms[1]()),
            lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1]),
        ),
        _attribute(torch.backends.cudnn, "benchmark"),
        _attribute(torch.backends.cudnn, "deterministic"),
    )
