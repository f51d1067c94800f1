"""Who ran and updated each layer, by phase: what rules on modes and bookkeeping judge by."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

PHASES = ("training", "recompute", "validation", "test", "predict", "sanity")
"""When a layer can run; ``recompute`` is a forward within the backward, as of activation checkpointing."""

EVALUATIONS = slice(PHASES.index("validation"), None)
"""The phases in which nothing is trained."""


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """Who ran and updated each layer since watching began, by phase: a row for each of :data:`PHASES`.

    In the rows of training and recompute only the sampled steps count, where it is known who called; in those of the
    evaluations, everything.

    Attributes:
        steps: Training steps seen.
        seen: ``[P, L]`` int64, updates of the running statistics.
        expected: ``[P, L]`` int64, updates that there should have been; in an evaluation or a recomputation none.
        latest: ``[P, L]`` int64, updates in the latest sampled step, or the latest evaluation of that kind.
        evaluated: ``[P, L]`` bool, whether the layer ran in evaluation mode in an evaluation of that kind.
        called: ``[L]`` bool, whether the layer ran in training, in whatever mode.
        updated: ``[L]`` bool, whether training updated the running statistics.
        initial: ``[L]`` bool, whether the latest evaluation but a sanity check found statistics of 0 and 1, exactly or
            but for a few probe forwards.
        tracks: ``[L]`` bool, whether ``track_running_stats`` is set.
        averaged: ``[L]`` bool, whether the layer belongs to an average of the weights, such as an ``AveragedModel``.
        uses_training_statistics: ``[L]`` bool, whether the latest evaluation ran averaged weights, those of a copy or
            swapped into the layer, with the running statistics of the weights in training.
        cold: ``[L]`` float64, weight that the initial 0 and 1 had in the running statistics that the latest evaluation
            but a sanity check used; 0 for a layer that it did not run, or with statistics that training has not left,
            and below a thousandth.
        times: ``[L]`` int64, how many such evaluations used the running statistics that training has left.
        tested: ``[L]`` bool, whether the latest evaluation that ran the layer was a test or a prediction.
        leaks: ``[P, L]`` int64, how many evaluations of that kind updated the running statistics.
        clean: ``[P, L]`` int64, evaluations of that kind since the last of them.
        gap: ``[P, L]`` int64, such evaluations from the last but one of them to the last; 0 if there was only one.
        drift: ``[2, L]`` how far the last of them moved the statistics of the middle channel: the mean in deviations,
            the deviation as a log.
        missed: ``[P, L]`` bool, whether the latest evaluation of that kind ran no watched layer at all.
        folded: ``[L]`` bool, whether the latest evaluation ran a compiled graph with parameters and statistics that an
            earlier evaluation made constants, and that are others by now.
        swapped: ``[L]`` bool, whether the latest evaluation ran with another gamma or beta than before and after it.
        steps_stale: ``[L]`` int64, training steps for which the statistics of the latest evaluation have not changed,
            while its gamma or beta have.
        distance: ``[2, L]`` distance of these statistics from those of the weights in training, where these are others:
            of the means in deviations, of the deviations as a log; NaN elsewhere.
    """

    steps: int
    seen: Tensor
    expected: Tensor
    latest: Tensor
    evaluated: Tensor
    called: Tensor
    updated: Tensor
    initial: Tensor
    tracks: Tensor
    averaged: Tensor
    uses_training_statistics: Tensor
    cold: Tensor
    times: Tensor
    tested: Tensor
    leaks: Tensor
    clean: Tensor
    gap: Tensor
    drift: Tensor
    missed: Tensor
    folded: Tensor
    swapped: Tensor
    steps_stale: Tensor
    distance: Tensor

    @property
    def unwatched(self) -> tuple[str, ...]:
        """Kinds of evaluation of which the latest ran no watched layer."""
        rows = self.missed[EVALUATIONS].tolist()
        return tuple(phase for phase, row in zip(PHASES[EVALUATIONS], rows, strict=True) if any(row))

    @classmethod
    def blank(cls, layers: int) -> Ledger:
        """Return the ledger of layers of which nothing is known yet."""

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device="cpu")

        return cls(
            steps=0,
            **{name: zeros(len(PHASES), layers) for name in ("seen", "expected", "latest", "leaks", "clean", "gap")},
            evaluated=zeros(len(PHASES), layers, dtype=torch.bool),
            called=zeros(layers, dtype=torch.bool),
            updated=zeros(layers, dtype=torch.bool),
            initial=zeros(layers, dtype=torch.bool),
            tracks=~zeros(layers, dtype=torch.bool),
            averaged=zeros(layers, dtype=torch.bool),
            uses_training_statistics=zeros(layers, dtype=torch.bool),
            cold=zeros(layers, dtype=torch.float64),
            times=zeros(layers),
            tested=zeros(layers, dtype=torch.bool),
            drift=zeros(2, layers, dtype=torch.float64),
            missed=zeros(len(PHASES), layers, dtype=torch.bool),
            folded=zeros(layers, dtype=torch.bool),
            swapped=zeros(layers, dtype=torch.bool),
            steps_stale=zeros(layers),
            distance=zeros(2, layers, dtype=torch.float64) + torch.nan,
        )

    def of(self, name: str, phase: str) -> Tensor:
        """Return one row: ``ledger.of("seen", "validation")``, ``[L]``."""
        row: Tensor = getattr(self, name)[PHASES.index(phase)]
        return row

    def note_updates(self, phase: int, leaking: Tensor, drift: Tensor | None) -> None:
        """Count an evaluation that has ended.

        Args:
            phase: Which, a position in :data:`PHASES`.
            leaking: ``[L]`` bool, the layers whose running statistics it updated.
            drift: ``[2, L]``, how far it moved them; None: unknown.
        """
        leaks, clean, gap = self.leaks[phase], self.clean[phase], self.gap[phase]
        clean.add_(1)
        gap.copy_(clean.where(leaking & (leaks > 0), gap))
        clean.masked_fill_(leaking, 0)
        leaks.add_(leaking)
        if drift is not None:
            self.drift.copy_(drift.where(leaking, self.drift))

    def versions(self) -> list[int] | None:
        """Return how often each tensor was written to in place, so that a change shows; None where that is unknown."""
        tensors = self._tensors().values()
        return None if any(map(Tensor.is_inference, tensors)) else [tensor._version for tensor in tensors]

    def copied(self, *, steps: int) -> Ledger:
        """Return a copy of everything, after so many steps."""
        tensors: dict[str, Any] = {k: v.clone() for k, v in self._tensors().items()}
        return replace(self, steps=steps, **tensors)

    def reordered(self, order: list[int]) -> Ledger:
        """Return the ledger of some of the layers, in an order."""
        tensors: dict[str, Any] = {k: v[..., order] for k, v in self._tensors().items()}
        return replace(self, **tensors)

    def _tensors(self) -> dict[str, Tensor]:
        return {f.name: v for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}
