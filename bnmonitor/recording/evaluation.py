"""What is recorded of an evaluation: who ran, what the layers were given, and what an extra forward shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from bnmonitor.context import FactsGatherer
from bnmonitor.layers import Discovery, is_compiled
from bnmonitor.recording.ring import Ring
from bnmonitor.recording.tape import Tape
from bnmonitor.recording.updates import UpdateLedger
from bnmonitor.sampling import EvaluationProbe, HeldOutSampler, SampleSchedule
from bnmonitor.window import Baseline

_WITH_DATA = ("validation", "test")
"""The phases whose inputs are held-out data."""


class Evaluations:
    """Records evaluations; one that begins within another belongs to it.

    Args:
        models: The models by prefix of their layers' names.
        sampling: Samples the training steps, and keeps a batch for the extra forward.
        gatherer: Finds which layers are auxiliary.
    """

    def __init__(self, models: Mapping[str, nn.Module], sampling: SampleSchedule, gatherer: FactsGatherer) -> None:
        self._models, self._sampling, self._gatherer = models, sampling, gatherer
        self._probe, self._held_out = EvaluationProbe(models, sampling), HeldOutSampler()
        self.ledger: UpdateLedger
        """Who ran and updated each layer, in training as well; made by :meth:`renew`."""
        self._depth = 0

    def renew(self, found: Discovery) -> None:
        """Start with these layers; what was seen of others is gone."""
        self._held_out.detach()
        self._held_out = HeldOutSampler()
        self.ledger = UpdateLedger(found.table, found.modules, self._models.values())
        self.see(found)

    def see(self, found: Discovery) -> None:
        """Note how the same layers were found this time."""
        self._probe.collective_reason = found.collective_reason

    def reorder(self, found: Discovery) -> None:
        """Go on with the same layers in another order."""
        self.ledger = self.ledger.reordered(found.table, found.modules)

    @property
    def has_unjudged(self) -> bool:
        """Whether an evaluation has shown something that no rule has judged yet."""
        return any(part.has_unjudged for part in self._parts)

    @property
    def unprobed(self) -> str:
        """Why no extra forward can be run, although it is wanted; empty if it can."""
        return self._probe.impossible

    @property
    def facts(self) -> dict[str, Any]:
        """What the latest evaluations showed, as fields of :class:`~bnmonitor.window.Facts`."""
        return {"held_out": self._held_out.latest, "averaged_gaps": self._probe.averaged}

    def coming(self, phase: str, tape: Tape, ring: Ring) -> dict[str, Any]:
        """Look at the layers before an evaluation begins, by an extra forward if there may be one.

        Args:
            phase: Which evaluation.
            tape: What is recorded of the layers.
            ring: The steps recorded so far, one at least.

        Returns:
            Fields of :class:`~bnmonitor.window.Facts`.
        """
        trained = ring.view()["training"][-1]
        gaps = self._probe.gaps(phase, ring.steps[-1], tape.modules, trained)
        return {"evaluation": phase, "gaps": gaps, "rewritten": tape.rewritten()}

    def begin(self, phase: str, tape: Tape, ring: Ring) -> None:
        """An evaluation begins.

        Args:
            phase: Which.
            tape: What is recorded of the layers.
            ring: The steps recorded so far.
        """
        self._depth += 1
        if self._depth > 1:
            return
        if phase in _WITH_DATA and not self._sampling.blocked:
            self._held_out.attach(tape.modules, self._wanted())
        if phase in _WITH_DATA and ring.steps:
            trained = ring.view()["training"][-1].tolist()
            self._sampling.trace(ring.steps[-1], tape.layers, tape.modules, trained)
        self.ledger.begin(phase, hooks=not self._sampling.blocked)
        if ring.steps:

            def averaged(inside: Sequence[int]) -> Tensor | None:
                return self.ledger.averaged(inside, ring.view()["training"][-1], self._gatherer.auxiliary)

            self._probe.begin(phase, ring.steps[-1], tape.modules, averaged)

    def end(self, tape: Tape, ring: Ring, count: int, start: Baseline | None = None) -> bool:
        """An evaluation has ended; return whether it was the outermost, so that training goes on.

        Args:
            tape: What is recorded of the layers.
            ring: The steps recorded so far.
            count: Training steps seen.
            start: How the layers began; None: unknown.
        """
        self._depth = max(0, self._depth - 1)
        if self._depth:
            return False
        self._probe.detach()
        if ring.steps:
            self._held_out.collect(ring.steps[-1], tape.layers)
        self.ledger.end(
            trained=count > 0,
            compiled=any(map(is_compiled, self._models.values())),
            rows=ring.view(),
            count=count,
            auxiliary=self._gatherer.auxiliary,
            averaging=self._gatherer.averaging,
            start=start,
        )
        return True

    def abandon(self) -> None:
        """A training step has ended: an evaluation that was never left is over."""
        self._depth = 0
        self.ledger.abandon()

    def settle(self) -> None:
        """Note that rules have judged all that evaluations have shown."""
        for part in self._parts:
            part.has_unjudged = False

    def detach(self) -> None:
        """Take every hook away."""
        self._held_out.detach()
        self._probe.detach()
        self.ledger.abandon()

    @property
    def _parts(self) -> tuple[HeldOutSampler, EvaluationProbe, UpdateLedger]:
        return self._held_out, self._probe, self.ledger

    def _wanted(self) -> list[int]:
        """The layers whose input is looked at in an evaluation: those that see the data or follow dropout."""
        structure = self._sampling.sampler.structure
        places = () if structure is None else structure.places
        return [i for i, place in enumerate(places) if place.root or place.dropouts]
