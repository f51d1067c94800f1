"""What a layer is judged against: how it began, and how it was in calm times."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from bnmonitor.layers import LayerTable


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What each layer and channel was like when it was well, or when watching began.

    Attributes:
        log_var: ``[C]`` robust log of the batch variance after warm-up; NaN before.
        spread: ``[C]`` median absolute deviation of that log from step to step, alike.
        batch_distance: ``[L]`` how far the batches were from the running statistics while the layer was calm, in
            deviations; NaN before warm-up.
        jump: ``[L]`` how far the mean moved from batch to batch in such times, likewise.
        rate: ``[L]`` highest learning rate so far, but for the newest steps; 0 where unknown.
        offset: ``[L]`` robust median of ``abs(mean) / sigma`` after warm-up; NaN before.
        alive: ``[C]`` bool, the batch variance was once well above eps.
        gamma: ``[C]`` gamma at the start.
        mean: ``[C]`` running mean at the start.
        var: ``[C]`` running variance at the start.
        initial: ``[L]`` weight that mean 0 and variance 1 had in the running statistics at the start; 0 once something
            other than training has set them.
        updates: ``[L]`` int64, updates seen since the start.
        forgotten: ``[L]``, minus the log of the weight that the initial statistics still have after these updates.
        sizes: ``[L]`` median number of samples per call over the samples taken; NaN where none was.
        values: ``[L]`` median number of values per channel over the samples taken; NaN where none was.
    """

    log_var: Tensor
    spread: Tensor
    offset: Tensor
    batch_distance: Tensor
    jump: Tensor
    rate: Tensor
    alive: Tensor
    gamma: Tensor
    mean: Tensor
    var: Tensor
    initial: Tensor
    updates: Tensor
    forgotten: Tensor
    sizes: Tensor
    values: Tensor

    @classmethod
    def blank(cls, layers: LayerTable) -> Baseline:
        """Return the baseline of layers of which nothing is known."""

        def unknown(length: int) -> Tensor:
            return torch.full((length,), torch.nan, device="cpu")

        def zeros(length: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(length, dtype=dtype, device="cpu")

        count = len(layers)
        return cls(
            **{name: unknown(layers.total) for name in ("log_var", "spread", "gamma", "mean", "var")},
            **{name: unknown(count) for name in ("offset", "batch_distance", "jump", "sizes", "values")},
            alive=zeros(layers.total, torch.bool),
            rate=zeros(count, torch.float32),
            initial=zeros(count, torch.float64),
            updates=zeros(count, torch.int64),
            forgotten=zeros(count, torch.float64),
        )

    @property
    def initial_weight(self) -> Tensor:
        """Weight that the initial mean 0 and variance 1 still have in the running statistics: ``[L]`` float64."""
        return self.initial.double() * (-self.forgotten.double()).exp()

    def save(self) -> dict[str, Tensor]:
        """Return the baseline as plain tensors by name, for a checkpoint."""
        return {f.name: getattr(self, f.name).clone() for f in fields(self)}
