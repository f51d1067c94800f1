"""The newest checkpoint of a model in which every number is finite."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bnmonitor._text import CHECKPOINTS, count

_DEEP = 3
"""Mappings within mappings, and names before a parameter's own, such as ``model.module.``."""


class Search(NamedTuple):
    """What a search for a finite checkpoint found.

    Attributes:
        newest: The newest file in which the model is finite; None if there is none.
        not_finite: How many newer files are not finite.
        looked_in: The places that were searched.
    """

    newest: Path | None
    not_finite: int
    looked_in: tuple[Path, ...]

    def sentence(self) -> str:
        """Say which checkpoint to load, or that there is none."""
        newer = f" ({count(self.not_finite, 'newer one')} is not)" if self.not_finite == 1 else ""
        newer = f" ({self.not_finite} newer ones are not)" if self.not_finite > 1 else newer
        if self.newest is not None:
            return f"load {self.newest}, the newest checkpoint that is finite{newer}"
        if not self.looked_in:
            return "go back to a checkpoint from before"
        where = ", ".join(map(str, self.looked_in))
        seen = f"; {count(self.not_finite, 'checkpoint')} there hold what is not finite" if self.not_finite else ""
        return f"no checkpoint in {where} is finite{seen}: start again"


def newest_finite(names: Iterable[str], places: Iterable[Path]) -> Search:
    """Search for the newest checkpoint in which the tensors of a model are finite.

    Only tensors are read: nothing in a file is executed. A file that cannot be read so, or that does not hold the
    model, is passed over.

    Args:
        names: Names in the model's state dict.
        places: Directories and files; what is in directories below is found as well.
    """
    wanted, kept = frozenset(names), tuple(dict.fromkeys(places))
    bad = 0
    for path in _files(kept):
        finite = _is_finite(path, wanted)
        if finite:
            return Search(path, bad, kept)
        bad += finite is False
    return Search(None, bad, kept)


def _files(places: Iterable[Path]) -> list[Path]:
    """Every checkpoint, the newest first."""
    found: set[Path] = set()
    for place in places:
        inside = place.rglob("*") if place.is_dir() else [place]
        found |= {path for path in inside if path.suffix in CHECKPOINTS and path.is_file()}
    return sorted(found, key=lambda path: (path.stat().st_mtime_ns, str(path)), reverse=True)


def _is_finite(path: Path, wanted: frozenset[str]) -> bool | None:
    """Whether a file holds the model and its tensors are finite; None if it does not hold it."""
    held: list[bool] = []
    for tensors in _state_dicts(_read(path)):
        mine = [tensor for name, tensor in tensors.items() if _own(name, wanted)]
        # Half of the names: another model may share a few.
        if 2 * len(mine) >= len(wanted):
            held.append(all(bool(t.isfinite().all()) for t in mine if t.is_floating_point()))
    return all(held) if held else None


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # what the weights-only unpickler raises for a file that is no checkpoint is of any class
        return None


def _state_dicts(value: Any, depth: int = _DEEP) -> Iterator[dict[str, Tensor]]:
    if not isinstance(value, Mapping) or not depth:
        return
    tensors = {str(name): each for name, each in value.items() if isinstance(each, Tensor)}
    if tensors:
        yield tensors
    for inner in value.values():
        yield from _state_dicts(inner, depth - 1)


def _own(name: str, wanted: frozenset[str]) -> bool:
    """Whether a name is one of the model's, behind a few names of wrappers."""
    parts = name.split(".")
    return any(".".join(parts[i:]) in wanted for i in range(min(_DEEP, len(parts) - 1) + 1))
