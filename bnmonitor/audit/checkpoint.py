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
from torch import Tensor, nn

from bnmonitor._text import CHECKPOINTS
from bnmonitor.audit.plain_archive import NotPlainError, read_plain

_PARTS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
_SLACK = 1 << 20
_DEEPEST = 200
"""Levels of modules within modules; networks have a tenth of it, and Python recurses into no more than a thousand."""

_GLOBAL = re.compile(r"unsupported (?:global: )?GLOBAL ([\w.]+)", re.IGNORECASE)
_CAUSE = re.compile(r"WeightsUnpickler error:\s*(.+)")


class UnreadableError(ValueError):
    """A checkpoint cannot be read; the message is one sentence that says why."""


class Norms(nn.Module):
    """A model of nothing but normalization layers.

    Attributes:
        left_out: Why a layer of the checkpoint is not among them, by its name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.left_out: dict[str, str] = {}


def read_checkpoint(path: str | Path) -> dict[str, Norms]:
    """Return the models of a checkpoint, each reduced to its normalization layers.

    The layers are known by their running statistics; what a checkpoint does not hold (momentum, eps, the class of
    the layer) has PyTorch's defaults in what is returned.

    Args:
        path: A ``.safetensors`` file, or what ``torch.save`` wrote: a state dict, or a mapping that holds some, such
            as a Lightning checkpoint.

    Returns:
        The models by the key that the checkpoint keeps them under, ``""`` for a plain state dict.

    Raises:
        UnreadableError: The file is missing, damaged, not a checkpoint, would run code when read, or has running
            statistics that no normalization layer can have, and no others.
    """
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UnreadableError(f"cannot read {path}: it is a pipe, a device or a directory, not a file")
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        raise UnreadableError(f"cannot read {path}: {error.strerror or error}") from None
    if path.suffix == ".safetensors":
        found = {"": _safetensors(path)}
    else:
        found = dict(_state_dicts(_unpickled(path, zipped=head[:2] == b"PK")))
    for tensors in found.values():
        for name, tensor in tensors.items():
            if why := _unsound(name, tensor):
                raise UnreadableError(f"{path} is refused: {_line(ValueError(name))!r} {why}")
    models = {key: _stand_in(tensors) for key, tensors in found.items()}
    left_out = [(name, why) for model in models.values() for name, why in model.left_out.items()]
    if left_out and not any(model._modules for model in models.values()):
        name, why = left_out[0]
        raise UnreadableError(
            f"{path} holds no normalization layer that can be judged: {_line(ValueError(name))!r} {why}"
        )
    return {key: model for key, model in models.items() if model._modules}


def checkpoint_files(directory: Path) -> list[Path]:
    """Return the checkpoints anywhere under a directory, in the natural order of their names."""
    there = (p for p in directory.rglob("*") if p.suffix in CHECKPOINTS and p.is_file())
    return sorted(there, key=lambda p: _natural(str(p)))


def _safetensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of normalization layers only; the rest of the file is not touched."""
    try:
        from safetensors import SafetensorError, safe_open
    except ModuleNotFoundError:
        raise UnreadableError(
            f"reading {path.name} needs the safetensors package: pip install 'bnmonitor[audit]'"
        ) from None
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = _norm_names(list(file.keys()))
            return {name: file.get_tensor(name) for name in sorted(names, key=_natural)}
    except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError) as error:
        raise UnreadableError(f"{path} is not a valid safetensors file: {_line(error)}") from None


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
        why = cause[1].strip() if cause else _line(error)
        raise UnreadableError(f"{path} is not a checkpoint that torch can read: {why}") from None


def _harmless() -> AbstractContextManager[Any]:
    """Allow the classes that hyperparameters often have; making one runs no code of the checkpoint."""
    # Came with torch 2.5.
    allow = getattr(torch.serialization, "safe_globals", None)
    return nullcontext() if allow is None else allow([argparse.Namespace, PosixPath])


def _checked_entries(path: Path) -> list[zipfile.ZipInfo]:
    """Return what an archive holds. One that unpacks to more than its own size is refused: torch does not compress."""
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise UnreadableError(f"{path} is a damaged archive: {_line(error)}") from None
    claimed = sum(entry.file_size for entry in entries)
    if claimed > size + _SLACK:
        raise UnreadableError(f"{path} is refused: it has {size:,} bytes and claims to unpack to {claimed:,}")
    return entries


def _unsound(name: str, tensor: Tensor) -> str:
    """Return why a tensor cannot belong to a layer; empty if it can."""
    if name.count(".") > _DEEPEST:
        return f"lies {name.count('.')} modules deep"
    if _unfit(tensor):
        return ""
    size = tensor.numel() * tensor.element_size()
    if size > tensor.untyped_storage().nbytes():
        return f"claims {size:,} bytes and holds {tensor.untyped_storage().nbytes():,}"
    return ""


def _state_dicts(value: Any, key: str = "", above: tuple[int, ...] = ()) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield every mapping of names to tensors with running statistics, in nested mappings and sequences."""
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping) or len(above) > 3 or id(value) in above:
        return
    named = {str(name): t for name, t in value.items() if isinstance(t, Tensor)}
    norms = _norm_names(named)
    if norms:
        yield key, {name: named[name] for name in norms}
        return
    for name, inner in value.items():
        yield from _state_dicts(inner, f"{key}.{name}" if key else str(name), (*above, id(value)))


def _unfit(tensor: Tensor) -> str:
    """Return why the values of a tensor cannot be read; empty if they can."""
    if tensor.layout != torch.strided:
        return "sparse"
    if tensor.is_complex():
        return "complex"
    if tensor.is_meta:
        return "without values"
    return "quantized" if tensor.is_quantized else ""


def _norm_names(names: Mapping[str, Any] | list[str]) -> list[str]:
    """Return all names that belong to a layer with both running statistics."""
    there = set(names)
    owners = {name[: -len("running_mean")] for name in there if name.endswith("running_mean")}
    owners = {owner for owner in owners if owner + "running_var" in there and (not owner or owner.endswith("."))}
    kept = {owner + part for owner in owners for part in _PARTS}
    return [name for name in names if name in kept]


def _stand_in(tensors: Mapping[str, Tensor]) -> Norms:
    """Make a model of the layers, under their names, that holds the tensors as they are."""
    root = Norms()
    owners = [name[: -len("running_mean")] for name in tensors if name.endswith("running_mean")]
    paths = {owner: _WRAPPERS.sub("", owner).rstrip(".").split(".") for owner in owners}
    # What DistributedDataParallel and AveragedModel put before every name.
    blank = nn.BatchNorm1d(1, affine=False, device="meta").eval()
    wrapped = all(len(path) > 1 and path[0] == "module" for path in paths.values())
    for owner, path in paths.items():
        parts = {part: tensors[owner + part] for part in _PARTS if owner + part in tensors}
        if why := _misfit(parts):
            root.left_out[".".join(path[wrapped:]) or "norm"] = why
            continue
        layer = _like(blank)
        layer.num_features = parts["running_mean"].numel()
        for part, tensor in parts.items():
            if part in ("weight", "bias"):
                layer._parameters[part] = nn.Parameter(tensor, requires_grad=False)
            else:
                layer._buffers[part] = tensor
        if "num_batches_tracked" not in parts:
            layer._buffers["num_batches_tracked"] = None
        _put(root, path[wrapped:], layer)
    return root


def _like(blank: nn.BatchNorm1d) -> nn.BatchNorm1d:
    """Return another layer of the same settings, which nobody hooks; its constructor takes twenty times as long."""
    layer = nn.BatchNorm1d.__new__(nn.BatchNorm1d)
    vars(layer).update(vars(blank), _parameters=dict(blank._parameters), _buffers=dict(blank._buffers))
    return layer


def _misfit(parts: Mapping[str, Tensor]) -> str:
    """Return why tensors cannot be those of one layer (a number per channel each, and one count); empty if they can."""
    for name, tensor in parts.items():
        if kind := _unfit(tensor):
            return f"has a {name} that is {kind}"
    mean = parts["running_mean"]
    if mean.dim() != 1 or not mean.numel():
        return f"has a running_mean of shape {list(mean.shape)}, which is not a number per channel"
    for name, tensor in parts.items():
        if tensor.numel() != 1 if name == "num_batches_tracked" else tensor.shape != mean.shape:
            return f"has a {name} of shape {list(tensor.shape)} next to a running_mean of shape {list(mean.shape)}"
    return ""


def _put(root: nn.Module, path: list[str], layer: nn.Module) -> None:
    for part in path[:-1]:
        if part not in root._modules:
            root._modules[part] = nn.Module()  # whatever it is called
        root = root._modules[part]  # type: ignore[assignment]
    root._modules[path[-1] or "norm"] = layer


def _natural(text: str) -> list[tuple[int, str]]:
    """Return a key that sorts layer2 before layer10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]


def _line(error: BaseException) -> str:
    """Return the first line of an error's message, at most 200 characters."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return first if len(first) <= 200 else first[:199] + "…"
