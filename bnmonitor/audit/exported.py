"""The tensors of a program that ``torch.export`` saved (``.pt2``), and the settings of its layers."""

from __future__ import annotations

import io
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipInfo

import torch
from torch import Tensor

from bnmonitor.audit.norms import Contents
from bnmonitor.audit.plain_archive import DAMAGED, Mapped, NotPlainError
from bnmonitor.audit.unreadable import UnreadableError, first_line

_DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
"""The numbers that the format gives to types."""

_WEIGHTS = "_weights_config.json"
_OLD_WEIGHTS = "serialized_state_dict.pt"
_OLD_GRAPH = "serialized_exported_program.json"


def is_exported(entries: Sequence[ZipInfo]) -> bool:
    """Whether an archive is what ``torch.export.save`` writes."""
    return any(entry.filename.endswith((_WEIGHTS, _OLD_WEIGHTS)) for entry in entries)


def read_exported(path: Path, entries: Sequence[ZipInfo]) -> dict[str, Contents]:
    """Return what each model of the archive holds, by its name; ``""`` for the only one.

    Raises:
        UnreadableError: It is damaged.
    """
    try:
        archive = Mapped(path, entries)
        found = dict(_models(archive))
    except (*DAMAGED, NotPlainError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UnreadableError(f"{path} is a damaged export: {type(error).__name__}: {first_line(error)}") from None
    return {"": next(iter(found.values()))} if len(found) == 1 else found


def _models(archive: Mapped) -> Iterator[tuple[str, Contents]]:
    names = list(archive.entries)
    for config in (n for n in names if n.endswith(_WEIGHTS)):
        model = config.rpartition("/")[2].removesuffix(_WEIGHTS)
        folder = config.rpartition("/")[0]
        weights = json.loads(archive.read(config))["config"]
        tensors = {name: _tensor(archive, f"{folder}/{entry['path_name']}", entry) for name, entry in weights.items()}
        graph = next((n for n in names if n.endswith(f"/models/{model}.json")), None)
        yield model, _contents({name: t for name, t in tensors.items() if t is not None}, archive, graph)
    for old in (n for n in names if n.endswith(_OLD_WEIGHTS)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tensors = torch.load(io.BytesIO(archive.read(old)), map_location="cpu", weights_only=True)
        graph = next((n for n in names if n.endswith(_OLD_GRAPH)), None)
        yield "", _contents({n: t for n, t in tensors.items() if isinstance(t, Tensor)}, archive, graph)


def _tensor(archive: Mapped, name: str, entry: Mapping[str, Any]) -> Tensor | None:
    """Return a tensor as a view of the file; None for one that only a pickle describes, or of an unknown type."""
    meta = entry["tensor_meta"]
    dtype = _DTYPES.get(meta["dtype"])
    if entry.get("use_pickle") or dtype is None:
        return None
    shape, stride = ([_whole(size) for size in meta[key]] for key in ("sizes", "strides"))
    offset, count = _whole(meta["storage_offset"]), archive.entries[name].file_size // dtype.itemsize
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if math.prod(shape) and not 0 <= last < count:
        raise ValueError(f"{name} is not as long as it claims")
    if not math.prod(shape):
        return torch.empty(shape, dtype=dtype)
    return archive.values(name, dtype, count).as_strided(shape, stride, offset)


def _whole(size: Mapping[str, Any]) -> int:
    value = size["as_int"]
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no size")
    return value


def _contents(tensors: Mapping[str, Tensor], archive: Mapped, graph: str | None) -> Contents:
    """Return the tensors with the settings that the calls of ``batch_norm`` in the graph have."""
    eps: dict[str, float] = {}
    momentum: dict[str, float] = {}
    program = json.loads(archive.read(graph))["graph_module"] if graph else {"graph": {"nodes": []}, "signature": {}}
    names: dict[str, str] = {}
    for spec in program["signature"].get("input_specs", ()):
        for kind in ("parameter", "buffer"):
            if kind in spec:
                names[spec[kind]["arg"]["name"]] = spec[kind][f"{kind}_name"]
    for node in program["graph"]["nodes"]:
        if "batch_norm" not in node.get("target", ""):
            continue
        given = {each["name"]: each["arg"] for each in node["inputs"]}
        mean = names.get(given.get("running_mean", {}).get("as_tensor", {}).get("name", ""), "")
        if mean.endswith(".running_mean"):
            layer = mean.removesuffix(".running_mean")
            eps |= {layer: float(given["eps"]["as_float"])} if "as_float" in given.get("eps", {}) else {}
            known = given.get("momentum", {})
            momentum |= {layer: float(known["as_float"])} if "as_float" in known else {}
    return Contents(tensors=tensors, eps=eps, momentum=momentum)
