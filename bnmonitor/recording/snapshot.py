"""Running statistics, gamma and beta of all layers at this moment, and a window made of them alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bnmonitor.layers import LayerTable, is_split
from bnmonitor.recording import baseline
from bnmonitor.window import Facts, Ledger, Window

_STATISTICS = ("running_mean", "running_var")
_AFFINE = ("weight", "bias")
NAMES = (*_STATISTICS, *_AFFINE)
"""What is read of a layer."""


@dataclass(frozen=True)
class Snapshot:
    """The state of all layers, in double precision: ``[C]`` each.

    Attributes:
        mean: The running mean; NaN for a layer that keeps none.
        var: The running variance, alike.
        gamma: The layer's ``weight``; 1 for a layer without.
        beta: The layer's ``bias``; 0 for a layer without.
    """

    mean: Tensor
    var: Tensor
    gamma: Tensor
    beta: Tensor

    def other_statistics(self, other: Snapshot, layers: LayerTable) -> Tensor:
        """Layers whose running statistics are not the very same, or that keep none: ``[L]`` bool."""
        return layers.segments.any((self.mean != other.mean) | (self.var != other.var))

    def other_affine(self, other: Snapshot, layers: LayerTable) -> Tensor:
        """Layers with another gamma or beta: ``[L]`` bool."""
        return layers.segments.any((self.gamma != other.gamma) | (self.beta != other.beta))

    def where(self, mask: Tensor, other: Snapshot) -> Snapshot:
        """Return the state of some channels, ``[C]`` bool, and another one's of the rest."""
        return Snapshot(*(torch.where(mask, mine, its) for mine, its in zip(self._rows, other._rows, strict=True)))

    def select(self, channels: Tensor) -> Snapshot:
        """Return the state of the channels at some positions."""
        return Snapshot(*(row[channels] for row in self._rows))

    @property
    def _rows(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.mean, self.var, self.gamma, self.beta


def tensors(module: nn.Module) -> dict[str, Tensor | None]:
    """What is read of one layer, None where it is not whole; a frozen look-alike has gamma and beta as buffers."""
    buffers, parameters = module._buffers, module._parameters
    affine = {name: buffers.get(name) if parameters.get(name) is None else parameters[name] for name in _AFFINE}
    affine = {name: None if is_split(tensor) else tensor for name, tensor in affine.items()}
    return {**{name: buffers.get(name) for name in _STATISTICS}, **affine}


@torch.no_grad()
def read(layers: LayerTable, found: Sequence[Mapping[str, Tensor | None]]) -> Snapshot:
    """Lay the layers' tensors end to end, each of them what :func:`tensors` returned."""
    fill = {"running_mean": torch.nan, "running_var": torch.nan, "weight": 1.0, "bias": 0.0}
    return Snapshot(*(_flat(layers, [f[name] for f in found], fill[name]) for name in NAMES))


def _flat(layers: LayerTable, parts: Sequence[Tensor | None], fill: float) -> Tensor:
    fits = [p is not None and p.numel() == c for p, c in zip(parts, layers.channels, strict=True)]
    there = [p.flatten().double() for p, fit in zip(parts, fits, strict=True) if fit and p is not None]
    out = torch.full((layers.total,), fill, dtype=torch.float64, device="cpu")
    if there:
        known = torch.tensor(fits, dtype=torch.bool, device="cpu")[layers.owner]
        # An average may be on a device of its own.
        together = len({p.device for p in there}) == 1
        out[known] = (torch.cat(there) if together else torch.cat([p.cpu() for p in there])).cpu()
    return out


def snapshot_window(
    layers: LayerTable,
    modules: Sequence[nn.Module],
    *,
    facts: Facts,
    ledger: Ledger,
    updates: Tensor | None = None,
) -> Window:
    """Return a window of one step, with nothing in it that only a training step shows.

    Args:
        layers: The table of the layers.
        modules: The modules behind it, in the same order.
        facts: What is known of the run.
        ledger: Who ran and updated the layers.
        updates: ``[L]`` int64, how often the running statistics have been updated; None: unknown.
    """
    now = read(layers, [tensors(m) for m in modules])
    rows = {"running_mean": now.mean, "running_var": now.var, "gamma": now.gamma, "beta": now.beta}
    known: dict[str, Any] = {name: row.float() for name, row in rows.items()}
    none = torch.zeros(len(layers), dtype=torch.int64, device="cpu")
    start = known["gamma"], known["running_mean"], known["running_var"], none if updates is None else updates
    return replace(
        Window.neutral(layers, (0,)),
        baseline=baseline.begin(layers, *start),
        facts=facts,
        ledger=ledger,
        **{name: row[None] for name, row in known.items()},
    )
