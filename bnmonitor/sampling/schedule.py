"""Which steps are sampled, and why none is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from bnmonitor.graph import UnregisteredNorms
from bnmonitor.layers import LayerTable, is_compiled
from bnmonitor.sampling.activations import Sampler
from bnmonitor.sampling.probe import Probe
from bnmonitor.window import Sample, Structure

logger = logging.getLogger("bnmonitor")

KEPT = 9
"""Most samples that are kept."""

FIRST = 4
"""Samples that are taken whatever they cost."""

MOST_LEFT_OUT = 4
"""Most samples in a row that are left out to save time."""


class SampleSchedule:
    """Places the hooks for the steps that are due for a sample, and keeps the newest samples.

    Args:
        models: The models; the autograd graph is walked from their outputs.
        every: Steps from one sample to the next; 0: never.
        probe: Whether to keep the inputs of sampled steps for an extra forward.
    """

    def __init__(self, models: Mapping[str, nn.Module], every: int, *, probe: bool = False) -> None:
        self._models, self._every = models, every
        self.unregistered = UnregisteredNorms(models)
        self.probe = Probe(models) if probe else None
        self.sampler = Sampler(self.unregistered, self.probe)
        self._seconds = 0.0
        self.sparing: Callable[[], bool] = lambda: False
        """Returns whether samples that are due are left out, but for one in a few."""
        self._left_out = 0
        self.begin()
        self.renew()

    @property
    def unsampled(self) -> str:
        """Why no step is sampled; empty if steps are."""
        unseen = "needs activation samples, and no hook was called in the sampled steps, as under torch.compile"
        guarded = (
            "needs activation samples, and torch.compile would compile again for each hook beside those of the model"
        )
        return self.blocked or (guarded if self.sampler.refused else unseen if self._unseen else "")

    @property
    def untraced(self) -> str:
        """Why no autograd graph is known; empty if one is."""
        if self.sampler.structure is not None:
            return ""
        unsampled = self.unsampled.replace("activation samples", "the autograd graph of a sampled step")
        if "torch.compile" in unsampled and self.probe is None:
            unsampled += "; with probe=True the uncompiled module of what torch.compile returned shows it"
        return unsampled or "needs the autograd graph of a training step, and none was seen yet"

    @property
    def seconds(self) -> float:
        """Time spent in the hooks so far."""
        return self._seconds + self.sampler.seconds

    @property
    def latest(self) -> Sample | None:
        """The newest sample; None before the first."""
        return self.samples[-1] if self.samples else None

    @property
    def unseen(self) -> bool:
        """Whether hooks were in place and none was called, as the model is compiled."""
        return self._unseen

    @property
    def witness(self) -> Tensor | None:
        """Mean and variance of the batch in the step that has just ended, as :attr:`Sampler.witness`."""
        return self._witness

    def structure(self, names: Sequence[str]) -> Structure:
        """Return what the autograd graphs showed so far; for each layer why nothing is known, where it is not.

        Args:
            names: Names of the layers.
        """
        return self.sampler.structure or Structure.unknown(names, self.untraced)

    def begin(self) -> None:
        """Check again whether samples can be taken."""
        self._unseen, self._failure = False, ""
        self.blocked = self._why_blocked()
        """Why no hook is placed; empty if hooks are."""

    def _why_blocked(self) -> str:
        if not self._every:
            return "needs activation samples, and sample_every_n_steps is 0"
        if self._failure:
            return f"needs activation samples, and taking one raised {self._failure}"
        compiled = any(is_compiled(model) for model in self._models.values())
        return "needs activation samples, which torch.compile does not let through" if compiled else ""

    def renew(self, samples: Sequence[Sample] = ()) -> None:
        """Drop all samples when the layers have changed, or start from those of a checkpoint."""
        self.sampler.detach()
        self._seconds = self.seconds
        self.sampler = Sampler(self.unregistered, self.probe)
        self.samples: list[Sample] = list(samples)
        """The newest samples that have arrived from the device, in their order."""
        self._early: list[Sample] = []
        self._resumed = bool(samples)
        self.calls = self.samples[-1].calls if samples else None
        """How often the last sampled step called each layer, ``[L]``; known before the sample has arrived."""
        self._again = self._paused = False
        self._named: set[int] = set()
        self._witness: Tensor | None = None

    def place(self, modules: Sequence[nn.Module], count: int | None) -> None:
        """Place the hooks if the coming step is due for a sample by its count; without a count it is."""
        if not self._every or not modules or not (count is None or self._again or count % self._every == 0):
            return
        if count is not None and not self._again and self._spares():
            self._left_out += 1
            return
        self._left_out = 0
        self.blocked = self._why_blocked()
        if not self.blocked:
            self.sampler.attach(modules, self._models)
        elif self.probe is not None and self.sampler.structure is None and not self.probe.kept:
            self.probe.attach_compiled(modules)

    def _spares(self) -> bool:
        """Whether a sample that is due is left out: never one of the first, which show what kind of training it is."""
        return len(self.samples) >= FIRST and self._left_out < MOST_LEFT_OUT and self.sparing()

    def trace(self, step: int, layers: LayerTable, modules: Sequence[nn.Module], trained: Sequence[bool]) -> None:
        """Describe the graph of a compiled model by one forward of the uncompiled module, if a batch was kept."""
        probe = self.probe
        if probe is not None and self.blocked and self.sampler.structure is None and probe.kept and not probe.failed:
            probe.trace(self.sampler, step, layers, modules, trained)

    def collect(self, step: int, rate: float, count: int, layers: LayerTable, modules: Sequence[nn.Module]) -> None:
        """Collect the sample of the step that has just ended, the ``count``-th, if it was due for one.

        Args:
            step: The step's number.
            rate: The learning rate in force.
            count: How many steps there have been.
            layers: The table of the layers.
            modules: The layers.
        """
        self._again, self._witness = False, None
        if self.blocked and self.probe is not None:
            self.probe.detach()
        if not self.sampler.attached:
            return
        self._judge(layers, modules)
        self._again = self.sampler.interrupted and not self._failure
        taken = self.sampler.collect(step, layers, modules, rate)
        self._witness = self.sampler.witness
        # The first step of a resumed run is sampled for the graph, which no checkpoint keeps: its numbers are not due.
        if taken and self._resumed and (count - 1) % self._every != 0:
            self.sampler.underway.drop()
        elif taken:
            self.calls = self.sampler.calls
        self._resumed = False
        self._unseen = not self.samples and not (self._early or self.sampler.underway.coming) and not self._again

    def receive(self, *, wait: bool, until: int) -> bool:
        """Keep the samples that have arrived from the device; return whether there is a new one.

        Args:
            wait: Whether to wait for all that were sent, and to keep them.
            until: Else only those of steps up to this one are kept, and later ones left for a later call.
        """
        self._early += self.sampler.underway.receive(wait=wait)
        new = [sample for sample in self._early if wait or sample.step <= until]
        self._early = [sample for sample in self._early if not wait and sample.step > until]
        self.samples = [*self.samples, *new][-KEPT:]
        return bool(new)

    def _judge(self, layers: LayerTable, modules: Sequence[nn.Module]) -> None:
        """End the samples if the graph cannot be followed, or no layer looked at; name the layers that cannot be."""
        failures = self.sampler.failures
        ours = {id(module): name for name, module in zip(layers.names, modules, strict=True)}
        every = failures and failures.keys() >= ours.keys()
        self._failure = self.sampler.failure or (next(iter(failures.values())) if every else "")
        if self._failure:
            self.blocked = self._why_blocked()
            return
        for key in failures.keys() - self._named:
            self._named.add(key)
            logger.warning("bnmonitor takes no samples of %s: %s", ours.get(key, "a layer"), failures[key])

    def saw_loss(self, loss: Any) -> None:
        """Walk the autograd graph behind a loss, if this step is sampled."""
        self.sampler.walk(loss)

    def pause(self) -> None:
        """Remove the hooks for an evaluation."""
        self._paused |= self.sampler.attached
        self.sampler.detach()

    def resume(self, modules: Sequence[nn.Module], count: int) -> None:
        """Place the hooks again if an evaluation removed them, or if the coming step is due."""
        paused, self._paused = self._paused, False
        self.place(modules, None if paused else count)

    def end(self) -> None:
        """Remove every hook."""
        self.sampler.detach()
