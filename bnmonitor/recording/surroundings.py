"""The facts that a window carries besides its statistics, gathered from all that knows one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bnmonitor.context import FactsGatherer, Recorded
from bnmonitor.recording.course import Course
from bnmonitor.recording.evaluation import Evaluations
from bnmonitor.recording.moment import Moment
from bnmonitor.recording.peers import Peers
from bnmonitor.recording.ring import Ring
from bnmonitor.recording.tape import Tape
from bnmonitor.recording.watched import WatchedLayers
from bnmonitor.sampling import SampleSchedule
from bnmonitor.window import Facts


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """All that knows a fact about the layers.

    Attributes:
        watched: The layers.
        gatherer: Reads the modules, the optimizers and the run.
        sampling: The autograd graph of the sampled steps.
        evaluations: What evaluations have shown.
        peers: The other processes.
        course: The losses.
    """

    watched: WatchedLayers
    gatherer: FactsGatherer
    sampling: SampleSchedule
    evaluations: Evaluations
    peers: Peers
    course: Course

    def facts(self, moment: Moment, tape: Tape, ring: Ring, *, epoch_steps: int) -> Facts:
        """Return the facts at a moment of the training; before an evaluation, look at the model for it.

        Args:
            moment: When.
            tape: What is recorded of the layers.
            ring: The steps in the window, one at least.
            epoch_steps: Training steps in the first epoch; 0 before its end.
        """
        known = self.gatherer.facts(self._recorded(ring), moment.optimizers, moment.run)
        phase = moment.evaluation
        coming = self.evaluations.coming(phase, tape, ring) if phase else {}
        return replace(
            known,
            ranks=self.peers.latest,
            epoch_steps=epoch_steps,
            ending=moment.end,
            losses=self.course.losses(ring.steps),
            loss_start=self.course.start,
            loss_best=self.course.best,
            # Where hooks are let through, the evaluation itself shows it.
            averages_without_buffers=known.averages_without_buffers and bool(self.sampling.blocked),
            **self.evaluations.facts,
            **coming,
        )

    @property
    def unwatched(self) -> dict[str, str]:
        """What the normalizations are that belong to no watched layer, by the name of their module."""
        functional = self.sampling.unregistered.functional
        chosen = {name: what for name, what in functional.items() if self.watched.wants(name)}
        return {**chosen, **self.watched.found.unwatched}

    def untrained(self, moment: Moment, ring: Ring) -> Facts:
        """Return the facts where there was no training step."""
        recorded = replace(self._recorded(ring), steps=(0,), rates=())
        return replace(self.gatherer.facts(recorded, (), moment.run), untrained=True)

    def _recorded(self, ring: Ring) -> Recorded:
        found = self.watched.found
        return Recorded(
            layers=found.table,
            modules=found.modules,
            shards=found.shards,
            steps=ring.steps,
            rates=ring.rates,
            structure=self.sampling.sampler.structure,
            unregistered=self.sampling.unregistered,
            unwatched=self.unwatched,
        )
