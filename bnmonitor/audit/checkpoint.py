"""Read the normalization layers out of a checkpoint. Nothing that the file holds is executed."""

from __future__ import annotations

import argparse
import re
import stat
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path, PosixPath
from typing import Any

import torch
from torch import Tensor

from bnmonitor._text import CHECKPOINTS, INDEX
from bnmonitor.audit.exported import is_exported, read_exported
from bnmonitor.audit.names import natural
from bnmonitor.audit.norms import Contents, Norms, has_norms, stand_in, unsound
from bnmonitor.audit.onnx_file import read_onnx
from bnmonitor.audit.plain_archive import DAMAGED, NotPlainError, Scripted, read_plain
from bnmonitor.audit.safetensors_file import read_safetensors
from bnmonitor.audit.sharded import shards
from bnmonitor.audit.torchscript import script_contents
from bnmonitor.audit.unreadable import UnreadableError, first_line

_SLACK = 1 << 20

_GLOBAL = re.compile(r"unsupported (?:global: )?GLOBAL ([\w.]+)", re.IGNORECASE)
_CAUSE = re.compile(r"WeightsUnpickler error:\s*(.+)")


def read_checkpoint(path: str | Path) -> dict[str, Norms]:
    """Return the models of a checkpoint, each reduced to its normalization layers.

    The layers are known by their running statistics, under the names of PyTorch or of Keras. What the file does not
    hold (momentum, eps, the class of the layer) has PyTorch's defaults in what is returned, and the eps of Keras for a
    layer with its names.

    Args:
        path: A ``.safetensors`` file; the index of a checkpoint in several files; an ``.onnx`` file; a program that
            ``torch.export`` saved, or a TorchScript archive; or what ``torch.save`` wrote: a state dict, or a mapping
            that holds some, such as a Lightning checkpoint.

    Returns:
        The models by the key that the checkpoint keeps them under, ``""`` for a plain state dict.

    Raises:
        UnreadableError: The file is missing, damaged, not a checkpoint, would run code when read, or has running
            statistics that no normalization layer can have, and no others.
    """
    path = Path(path)
    found = {key: each for key, each in _contents(path).items() if has_norms(each.tensors)}
    for contents in found.values():
        if fault := unsound(contents.tensors):
            raise UnreadableError(f"{path} is refused: {first_line(ValueError(fault[0]))!r} {fault[1]}")
    models = {key: stand_in(contents) for key, contents in found.items()}
    left_out = [(name, why) for model in models.values() for name, why in model.left_out.items()]
    if left_out and not any(model._modules for model in models.values()):
        name, why = left_out[0]
        raise UnreadableError(
            f"{path} holds no normalization layer that can be judged: {first_line(ValueError(name))!r} {why}"
        )
    return {key: model for key, model in models.items() if model._modules}


def checkpoint_files(directory: Path) -> list[Path]:
    """Return the checkpoints anywhere under a directory, in the natural order of their names.

    Of a checkpoint in several files it is the index.
    """
    there = [p for p in directory.rglob("*") if p.name.endswith((*CHECKPOINTS, INDEX)) and p.is_file()]
    parts: set[Path] = set()
    for index in (p for p in there if p.name.endswith(INDEX)):
        with suppress(UnreadableError):
            parts |= set(shards(index))
    return sorted((p for p in there if p not in parts), key=lambda p: natural(str(p)))


def is_shipped(path: str | Path) -> bool:
    """Whether a file is a model as it is shipped, which usually has its layers folded, and not a checkpoint."""
    path = Path(path)
    if path.suffix in (".onnx", ".pt2"):
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/__torch__" in name for name in archive.namelist())
    except DAMAGED:
        return False


def _contents(path: Path) -> dict[str, Contents]:
    """Return what a file holds of each of its models."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UnreadableError(f"cannot read {path}: it is a pipe, a device or a directory, not a file")
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        raise UnreadableError(f"cannot read {path}: {error.strerror or error}") from None
    if path.name.endswith(INDEX):
        return {"": Contents(tensors=_joined(path))}
    if path.suffix == ".safetensors":
        return {"": Contents(tensors=_ordered(read_safetensors(path)))}
    if path.suffix == ".onnx":
        return {"": read_onnx(path)}
    zipped = head[:2] == b"PK"
    if zipped and is_exported(entries := _checked_entries(path)):
        return read_exported(path, entries)
    value = _unpickled(path, zipped=zipped)
    if isinstance(value, Scripted):
        return {"": script_contents(path, value)}
    return {key: Contents(tensors=tensors) for key, tensors in _state_dicts(value)}


def _joined(index: Path) -> dict[str, Tensor]:
    """Return the tensors of all files that an index names; each file holds what the index says, or more."""
    found: dict[str, Tensor] = {}
    for shard, named in shards(index).items():
        if shard.suffix == ".safetensors":
            held: Any = read_safetensors(shard)
        else:
            with shard.open("rb") as file:
                zipped = file.read(2) == b"PK"
            held = _unpickled(shard, zipped=zipped)
        if not isinstance(held, Mapping) or (absent := [name for name in named if name not in held]):
            what = f"has no {absent[0][:80]!r}" if isinstance(held, Mapping) else "is no state dict"
            raise UnreadableError(f"{index} does not fit its files: {shard.name} {what}")
        found |= {name: held[name] for name in named if isinstance(held[name], Tensor)}
    return _ordered(found)


def _ordered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensors[name] for name in sorted(tensors, key=natural)}


def _unpickled(path: Path, *, zipped: bool) -> Any:
    if zipped:
        entries = _checked_entries(path)
        with suppress(NotPlainError):
            return read_plain(path, entries)
    try:
        with warnings.catch_warnings(), _harmless():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:
        # What the weights-only unpickler raises for a damaged file is of any class.
        if named := _GLOBAL.search(str(error)):
            raise UnreadableError(
                f"{path} is refused: reading it would run code of its own ({named[1]}); save model.state_dict() alone, "
                "or as safetensors"
            ) from None
        cause = _CAUSE.search(str(error))
        why = cause[1].strip() if cause else first_line(error)
        raise UnreadableError(f"{path} is not a checkpoint that torch can read: {why}") from None


def _harmless() -> AbstractContextManager[Any]:
    """Allow the classes that hyperparameters often have; making one runs no code of the checkpoint."""
    # Came with torch 2.5.
    allow = getattr(torch.serialization, "safe_globals", None)
    return nullcontext() if allow is None else allow([argparse.Namespace, PosixPath])


def _checked_entries(path: Path) -> list[zipfile.ZipInfo]:
    """Return what an archive holds. One that unpacks to more than its own size is refused: torch compresses only code.

    The code of a TorchScript archive is read up to a bound, and nothing else that is compressed is read at all.
    """
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except DAMAGED as error:
        raise UnreadableError(f"{path} is a damaged archive: {first_line(error)}") from None
    claimed = sum(entry.file_size for entry in entries if "/code/" not in entry.filename)
    if claimed > size + _SLACK:
        raise UnreadableError(f"{path} is refused: it has {size:,} bytes and claims to unpack to {claimed:,}")
    return entries


def _state_dicts(value: Any, key: str = "", above: tuple[int, ...] = ()) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield every mapping of names to tensors with running statistics, in nested mappings and sequences."""
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping) or len(above) > 3 or id(value) in above:
        return
    named = {str(name): t for name, t in value.items() if isinstance(t, Tensor)}
    if has_norms(named):
        yield key, named
        return
    for name, inner in value.items():
        yield from _state_dicts(inner, f"{key}.{name}" if key else str(name), (*above, id(value)))
