"""The names that a file gives to the tensors of a normalization layer, and PyTorch's names for them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor

PARTS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
"""What PyTorch calls the tensors of a layer."""

KERAS_EPS = 1e-3
"""What Keras adds to a variance unless it is told otherwise."""

_KERAS = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
_KERAS_NAME = re.compile(r"(?:(?P<owner>.*)[./])?(?P<part>gamma|beta|moving_mean|moving_variance)(?::0)?", re.DOTALL)
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")


def norm_names(names: Collection[str]) -> list[str]:
    """Return all names, of PyTorch's, that belong to a layer with both running statistics."""
    there = set(names)
    owners = {name[: -len("running_mean")] for name in there if name.endswith("running_mean")}
    owners = {owner for owner in owners if owner + "running_var" in there and (not owner or owner.endswith("."))}
    kept = {owner + part for owner in owners for part in PARTS}
    return [name for name in names if name in kept]


def half_norms(names: Collection[str]) -> dict[str, str]:
    """Return by layer which of the two running statistics it has alone, and misses, as in a file that lost some."""
    there = set(names)
    pairs = (("running_mean", "running_var"), ("running_var", "running_mean"))
    return {
        name.removesuffix(one): f"has a {one} and no {other}"
        for name in names
        for one, other in pairs
        if name.endswith(f".{one}") and name.removesuffix(one) + other not in there
    }


def as_pytorch(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], frozenset[str]]:
    """Return the tensors under PyTorch's names, and the layers that had those of Keras.

    ``weight_orig`` and ``weight_mask``, which pruning leaves, are multiplied.
    """
    found = dict(tensors)
    keras = _of_keras(found) if any("moving_mean" in name for name in found) else {}
    for name, (owner, part) in keras.items():
        found[f"{owner}.{part}" if owner else part] = found.pop(name)
    for name in [n for n in found if n.endswith(("weight_orig", "bias_orig"))]:
        plain, mask = name.removesuffix("_orig"), f"{name.removesuffix('_orig')}_mask"
        pair = found[name], found.get(mask)
        if plain not in found and pair[1] is not None and pair[1].shape == pair[0].shape and all(map(_plain, pair)):
            found[plain] = pair[0] * pair[1]
    return found, frozenset(owner for owner, _ in keras.values())


def _plain(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_quantized


def _of_keras(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return layer and PyTorch's part of every name of a layer with both moving statistics."""
    matches = {name: match for name in names if (match := _KERAS_NAME.fullmatch(name))}
    parts: dict[str, set[str]] = {}
    for match in matches.values():
        parts.setdefault(match["owner"] or "", set()).add(match["part"])
    return {
        name: ((match["owner"] or "").replace("/", "."), _KERAS[match["part"]])
        for name, match in matches.items()
        if {"moving_mean", "moving_variance"} <= parts[match["owner"] or ""]
    }


def unwrapped(name: str) -> str:
    """Return a name without what torch.compile, FSDP and activation checkpointing put into it."""
    return _WRAPPERS.sub("", name)


def natural(text: str) -> list[tuple[int, str]]:
    """Return a key that sorts layer2 before layer10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]
