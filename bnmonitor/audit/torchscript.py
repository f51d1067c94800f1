"""The tensors of a TorchScript archive, and the settings that the code of its layers states. No code is run."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from bnmonitor.audit.norms import Contents
from bnmonitor.audit.plain_archive import DAMAGED, Scripted

_MOST_CODE = 1 << 22
"""Bytes of a file of code that are read; one class has some thousand."""

_NUMBER = r"([0-9.eE+-]+)"
_EPS = re.compile(rf"^\s+eps : Final\[float\] = {_NUMBER}", re.MULTILINE)
_MOMENTUM = re.compile(rf"^\s+momentum : Final\[float\] = {_NUMBER}", re.MULTILINE)
_CALL = re.compile(rf"batch_norm\([^()]*?, (?:True|False|\w*training\w*), {_NUMBER}, {_NUMBER}, ")


def script_contents(path: Path, root: Scripted) -> Contents:
    """Return what an archive holds.

    Args:
        path: The archive.
        root: The module that was read of it.
    """
    tensors: dict[str, Tensor] = {}
    eps: dict[str, float] = {}
    momentum: dict[str, float] = {}
    with zipfile.ZipFile(path) as archive:
        known: dict[str, tuple[float, float] | None] = {}
        for name, module in _modules(root, "", 0):
            here = f"{name}." if name else ""
            tensors |= {here + part: value for part, value in module.items() if isinstance(value, Tensor)}
            if "running_mean" not in module:
                continue
            if module.kind not in known:
                known[module.kind] = _settings(archive, module.kind)
            if settings := known[module.kind]:
                momentum[name], eps[name] = settings
    return Contents(tensors=tensors, eps=eps, momentum=momentum)


def _modules(module: Scripted, name: str, depth: int) -> Iterator[tuple[str, Scripted]]:
    if depth > 200:
        return
    yield name, module
    for part, value in module.items():
        if isinstance(value, Scripted):
            yield from _modules(value, f"{name}.{part}" if name else part, depth + 1)


def _settings(archive: zipfile.ZipFile, kind: str) -> tuple[float, float] | None:
    """Return momentum and eps of a class, as its code states them; None if it does not."""
    module, _, name = kind.rpartition(".")
    ending = f"/code/{module.replace('.', '/')}.py"
    entry = next((each for each in archive.namelist() if each.endswith(ending)), None)
    if entry is None:
        return None
    try:
        with archive.open(entry) as file:
            code = file.read(_MOST_CODE).decode()
    except DAMAGED:
        return None
    _, found, rest = code.partition(f"class {name}(Module):")
    body = rest.partition("\nclass ")[0] if found else ""
    if (call := _CALL.search(body)) is not None:
        return _numbers(call[1], call[2])
    eps, momentum = _EPS.search(body), _MOMENTUM.search(body)
    return _numbers(momentum[1], eps[1]) if eps and momentum else None


def _numbers(momentum: str, eps: str) -> tuple[float, float] | None:
    try:
        return float(momentum), float(eps)
    except ValueError:
        return None
