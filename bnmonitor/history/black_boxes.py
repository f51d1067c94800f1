"""Black boxes as arrays: the window of all layers at the moment an error opened."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from bnmonitor.history.schema import BOXES
from bnmonitor.history.source import Array

NAME = re.compile(r"step\d+-[\w.-]+\.npz")
"""File names of black boxes."""

_DAMAGE = (
    KeyError,
    TypeError,
    ValueError,
    EOFError,
    AttributeError,
    OverflowError,
    RecursionError,
    NotImplementedError,
    MemoryError,
    OSError,
    RuntimeError,
)
"""Errors that the readers of Python and NumPy raise for damaged and hostile files."""

_ABOUT = ("steps", "layers", "channels")


def listing(run: Path) -> list[Path]:
    """Return the black boxes in a run's directory, the oldest first."""
    folder = run / BOXES
    try:
        return sorted(path for path in folder.iterdir() if NAME.fullmatch(path.name) and path.is_file())
    except OSError:
        return []


def about(path: str | Path) -> dict[str, Any]:
    """Return the description in a black box: ``alert``, ``steps``, ``layers``, ``channels``. Reads no statistic.

    Raises:
        ValueError: The file is not a black box.
    """
    return _read(path, ())


def load(path: str | Path, statistics: tuple[str, ...] | None = None) -> dict[str, Any]:
    """Return a black box: the keys of :func:`about`, and each statistic, ``[steps, channels]`` or ``[steps, layers]``.

    Args:
        path: The file.
        statistics: Statistics to read; None: all.

    Raises:
        ValueError: The file is not a black box.
    """
    return _read(path, statistics)


def of_layer(box: dict[str, Any], layer: str, statistic: str) -> Array:
    """Return a statistic of one layer of a loaded box: ``[channels, steps]``.

    Raises:
        ValueError: The box does not have the layer, or does not have the statistic for every channel.
    """
    place = list(box["layers"]).index(layer)
    start = sum(box["channels"][:place])
    values: Array = box[statistic]
    if np.shape(values) != (len(box["steps"]), sum(box["channels"])) or values.dtype.kind != "f":
        raise ValueError(f"{statistic!r} is not a number for every channel")
    found: Array = values[:, start : start + box["channels"][place]].T
    return found


def _read(path: str | Path, statistics: tuple[str, ...] | None) -> dict[str, Any]:
    import zipfile

    try:
        _check(path)
        with np.load(path, allow_pickle=False) as arrays:
            names = [n for n in arrays.files if n not in (*_ABOUT, "alert")] if statistics is None else statistics
            return {
                "alert": json.loads(str(arrays["alert"])),
                **{name: arrays[name].tolist() for name in _ABOUT},
                **{name: arrays[name] for name in names},
            }
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except (*_DAMAGE, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a black box of bnmonitor: {str(error)[:200]}") from None


def _check(path: str | Path) -> None:
    """Refuse a file that would take more memory than it has bytes.

    Raises:
        ValueError: The file is compressed, which a black box never is, or an array claims to be larger than the file.
    """
    import zipfile

    with zipfile.ZipFile(path) as archive:
        for part in archive.infolist():
            if part.compress_type != zipfile.ZIP_STORED:
                raise ValueError("it is compressed")
            with archive.open(part) as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, kind = read(file)
                size = math.prod(shape) * max(1, kind.itemsize)  # even a value of no bytes becomes an object
                if size > part.file_size:
                    raise ValueError(f"{part.filename} claims {size} bytes")
