"""From the model to a window: what is read when, in which order, and what it is judged against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from bnmonitor import measures
from bnmonitor.context import FactsGatherer, Recorded, RunFacts
from bnmonitor.distributed import RankExchange, distributed
from bnmonitor.layers import Discovery, LayerTable, channels_of, discover, is_compiled, norms, same_layer
from bnmonitor.recording import baseline
from bnmonitor.recording.bufferless import Observer
from bnmonitor.recording.ring import Ring
from bnmonitor.recording.snapshot import standing
from bnmonitor.recording.tape import ResizedError, Tape
from bnmonitor.recording.updates import UpdateLedger
from bnmonitor.recording.window_state import keep, restore
from bnmonitor.sampling import EvaluationProbe, HeldOutSampler, SampleSchedule
from bnmonitor.window import Baseline, Facts, RankStatistics, Sample, Structure, Window, series

_MANY_CHANNELS = 10_000


class Recorder:
    """Records the layers of the models and hands out windows.

    Args:
        models: The models by prefix of their layers' names.
        include: Glob patterns over layer names.
        exclude: Glob patterns over layer names.
        tape: Steps between two reads of the tape.
        window: Steps kept at full resolution.
        sample_every: Cadence of activation samples; 0: never.
        probe: Whether an extra forward may be run at the start of an evaluation.

    Raises:
        ValueError: A pattern matches no layer.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        *,
        include: Sequence[str],
        exclude: Sequence[str],
        tape: int,
        window: int,
        sample_every: int,
        probe: bool = False,
    ) -> None:
        self._models = models
        self._include, self._exclude = include, exclude
        self._capacity, self._size = tape, max(window, tape)
        self._sampling = SampleSchedule(models, sample_every, probe=probe)
        self._observer = Observer()
        self._held_out = HeldOutSampler()
        self._probing = EvaluationProbe(models, self._sampling)
        self._evaluations = 0
        self._restored: Mapping[str, Any] | None = None
        self.count = 0
        """Training steps seen."""
        self.number = 0
        """Number of the step after the last, unless it is given one."""
        self.exchange: RankExchange | None = None
        """How this process hears of the others, if it does."""
        self.shares = False
        """Whether it did, or does."""
        self.heard: RankStatistics | None = None
        """What it heard last."""
        self.epoch_steps = 0
        """Training steps in the first epoch; 0 before its end."""
        self._gatherer = FactsGatherer(models)
        self._sized: Sample | None = None
        self._shards: Mapping[int, tuple[Tensor, ...]] = {}
        self._baseline: Baseline | None = None
        self._take(discover(models, include=include, exclude=exclude))

    # -- what is known -------------------------------------------------------------------------------------------------

    @property
    def layers(self) -> LayerTable:
        """The layers, in execution order once a step has been sampled."""
        return self._tape.layers

    @property
    def steps(self) -> list[int]:
        """Numbers of the steps in the window."""
        return self._ring.steps

    @property
    def waiting(self) -> bool:
        """Whether there is nothing yet but lazy layers, which have no channels before their first forward."""
        return self._lazy > 0

    @property
    def copies(self) -> bool:
        """Whether the optimizers train copies of the parameters, of which nobody knows whose they are."""
        return self._gatherer.copies

    @property
    def unsampled(self) -> str:
        """Why no activation is sampled; empty if it is."""
        return self._sampling.unsampled

    @property
    def structure(self) -> Structure:
        """What the autograd graphs told so far; of each layer why nothing is known, where it is not."""
        return self._sampling.sampler.structure or Structure.unknown(self.layers.names, self.untraced)

    @property
    def untraced(self) -> str:
        """Why no autograd graph is known; empty if one is."""
        if self._sampling.sampler.structure is not None:
            return ""
        unsampled = self.unsampled.replace("activation samples", "the autograd graph of a sampled step")
        if "torch.compile" in unsampled and self._sampling.probe is None:
            unsampled += "; with probe=True the uncompiled module of what torch.compile returned shows it"
        return unsampled or "needs the autograd graph of a training step, and none was seen yet"

    def rows(self, statistic: str, layer: str) -> Tensor:
        """Return a statistic of a layer over the window, as :func:`bnmonitor.window.series` does."""
        span = self.layers.span(self.layers.index(layer))
        return series(statistic, self._ring.view(), self.steps, self._sampling.samples, span)

    # -- what the training does ----------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start to watch; layers that were replaced since the last look are found anew."""
        found = self._find()
        if found.modules != self._tape.modules or found.table != self.layers:
            self._take(found)
        self._shards, self._probing.collective_reason = found.shards, found.collective_reason
        self._sampling.begin()
        self._mark()

    def renewed(self) -> bool:
        """Find the layers anew if one was added, removed, replaced or resized since; return whether one was.

        With other layers the window begins anew, and so do the baselines of those that are new.
        """
        now, known = norms(self._models.values()), self._norms
        same = len(now) == len(known) and all(a is b for a, b in zip(now, known, strict=True))
        if same and tuple(channels_of(m) for m in self._tape.modules) == self.layers.channels:
            return False
        self._renew()
        return True

    def listen(self) -> None:
        """Take in what the other processes have told by now."""
        came = self.exchange.result() if self.exchange is not None else None
        # What was told before the layers changed is of other channels.
        if came is not None and came.step >= self.steps[0]:
            self.heard = came

    def share_ranks(self, exchange: RankExchange) -> None:
        """Exchange statistics with the other processes from now on."""
        self.exchange, self.shares = exchange, True

    def end_epoch(self) -> None:
        """Note how many training steps the first epoch had."""
        self.epoch_steps = self.epoch_steps or self.count

    def leave_ranks(self, *, wait: bool) -> None:
        """Tell the other processes nothing more, and wait for what they still tell, or not."""
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.close(wait=wait)

    def end(self) -> None:
        """Leave no hook behind."""
        self._sampling.end()
        self._observer.detach()
        self._held_out.detach()
        self._probing.detach()
        self._ledger.abandon()

    def step(self, number: int, rate: float) -> None:
        """Record the training step that has just ended."""
        self.count += 1
        self.number = number + 1
        self._evaluations = 0
        if self.exchange is not None:
            self.exchange.stepped()
        self._ledger.abandon()
        if self._woke():
            self._mark()
            return
        if not len(self.layers):
            return
        self._reorder()
        self._sampling.collect(number, self.count, self.layers, self._tape.modules)
        if self._baseline is None:
            self._baseline = self._first_baseline()
        try:
            foreign = self.exchange is not None and self.exchange.foreign
            self._tape.step(number, rate, self._observer.collect(), foreign=foreign)
        except ResizedError:
            self._renew()
        else:
            self._sampling.place(self._tape.modules, self.count)

    @property
    def full(self) -> bool:
        """Whether the tape must be read before the next step."""
        return self._tape.full

    def saw_loss(self, loss: Any) -> None:
        """Walk the autograd graph behind a loss, if this step is sampled."""
        self._sampling.saw_loss(loss)

    def pause(self, phase: str) -> None:
        """An evaluation begins: what happens now is no training."""
        self._evaluations += 1
        self._sampling.pause()
        self._observer.detach()
        if self._evaluations == 1 and phase in ("validation", "test") and not self._sampling.blocked:
            self._held_out.attach(self._tape.modules, self._wanted())
        if self._evaluations == 1 and self.steps and phase in ("validation", "test"):
            trained = self._ring.view()["training"][-1].tolist()
            self._sampling.trace(self.steps[-1], self.layers, self._tape.modules, trained)
        if self._evaluations == 1:
            self._ledger.begin(phase, hooks=not self._sampling.blocked)
        if self._evaluations == 1 and self.steps:
            self._probing.begin(phase, self.steps[-1], self._tape.modules, self._averaged)

    def resume(self) -> None:
        """The evaluation has ended; what it did to the buffers belongs to no step."""
        self._evaluations = max(0, self._evaluations - 1)
        if self._evaluations:
            return
        self._probing.detach()
        compiled = any(is_compiled(model) for model in self._models.values())
        if self.steps:
            self._held_out.collect(self.steps[-1], self.layers)
        self._ledger.end(
            trained=self.count > 0,
            compiled=compiled,
            rows=self._ring.view(),
            count=self.count,
            auxiliary=self._gatherer.auxiliary,
            averaging=self._gatherer.averaging,
        )
        if self._woke() or self.renewed():
            self._mark()
        else:
            self._ready()
            self._sampling.resume(self._tape.modules, self.count)

    # -- what is made of it --------------------------------------------------------------------------------------------

    def collect(self, *, wait: bool = True) -> None:
        """Move the recorded steps from the tape into the window; see :meth:`Tape.drain`."""
        came, rewritten = self._tape.drain(self._ring, wait=wait)
        self._fresh += came
        if rewritten is not None and self._baseline is not None:
            self._baseline = replace(self._baseline, initial=self._baseline.initial.where(~rewritten, 0.0))
        if came:
            self._ledger.stepped(self._ring.steps, self._ring.view(), came, self._sample)

    def window(
        self,
        optimizers: Sequence[Optimizer],
        run: RunFacts | None = None,
        evaluation: str = "",
        *,
        wait: bool = True,
    ) -> Window | None:
        """Return the window with everything to judge it by; None before the first step.

        Args:
            optimizers: Those that train the model.
            run: What the run tells of itself.
            evaluation: The phase of the evaluation that is about to begin; empty if none is.
            wait: Whether to wait for what is still on its way from the device.
        """
        self.collect(wait=wait)
        if self._baseline is None or not self.steps:
            return None
        if self._sample is not self._sized:
            self._sized, self._baseline = self._sample, baseline.sampled(self._baseline, self._sampling.samples)
        self.listen()
        known = self._facts(optimizers, run or RunFacts(), self.steps, self._ring.rates)
        known = replace(
            known,
            ranks=self.heard,
            epoch_steps=self.epoch_steps,
            held_out=self._held_out.latest,
            evaluation=evaluation,
            averaged_gaps=self._probing.averaged,
            # Where hooks are let through, the evaluation itself shows it.
            averages_without_buffers=known.averages_without_buffers and bool(self._sampling.blocked),
        )
        if evaluation:
            trained = self._ring.view()["training"][-1]
            gaps = self._probing.gaps(evaluation, self.steps[-1], self._tape.modules, trained)
            known = replace(known, gaps=gaps, rewritten=self._tape.rewritten())
        window = Window(
            layers=self.layers,
            steps=tuple(self.steps),
            baseline=self._baseline,
            facts=known,
            sample=self._sample,
            ledger=self._ledger.ledger(self.count),
            fresh=min(self._fresh, len(self.steps)),
            **self._ring.view(),
        )
        # To carry sums along is dearer than to read what fits into a processor's cache.
        averages = self._ring.averages() if self.layers.total >= _MANY_CHANNELS else None
        if averages is not None:
            window.memo[measures.averages.__name__] = averages
        return window

    def standing(self, run: RunFacts) -> Window:
        """Return what an evaluation can be judged by that no training step came before."""
        known = replace(self._facts((), run, (0,), ()), untrained=True)
        return standing(self.layers, self._tape.modules, known, self._ledger.ledger(0))

    def _facts(
        self, optimizers: Sequence[Optimizer], run: RunFacts, steps: Sequence[int], rates: Sequence[float]
    ) -> Facts:
        recorded = Recorded(
            layers=self.layers,
            modules=self._tape.modules,
            shards=self._shards,
            steps=steps,
            rates=rates,
            structure=self._sampling.sampler.structure,
            unregistered=self._sampling.unregistered,
        )
        return self._gatherer.facts(recorded, optimizers, run)

    @property
    def unprobed(self) -> str:
        """Why no extra forward can be run, although it is wanted; empty if it can."""
        return self._probing.impossible

    def _averaged(self, inside: Sequence[int]) -> Tensor | None:
        """Which layers of a model that is about to be evaluated have averaged weights; None if it is no average."""
        return self._ledger.averaged(inside, self._ring.view()["training"][-1], self._gatherer.auxiliary)

    @property
    def news(self) -> bool:
        """Whether an evaluation has shown something that no rule has judged yet."""
        return self._ledger.news or self._held_out.news or self._probing.news

    def _wanted(self) -> list[int]:
        """The layers whose input is looked at in an evaluation: those that see the data or follow dropout."""
        return [i for i, place in enumerate(self.structure.places) if place.root or place.dropouts]

    @property
    def _sample(self) -> Sample | None:
        return self._sampling.samples[-1] if self._sampling.samples else None

    def counted(self, window: Window) -> Window:
        """Count the new steps of a window that is about to be judged."""
        counted = replace(window, baseline=baseline.counted(window))
        # What does not depend on the baseline need not be computed again.
        kept = [each.__name__ for each in (measures.averages, measures.typical_variance, measures.forgetting)]
        counted.memo.update((name, window.memo[name]) for name in kept if name in window.memo)
        return counted

    def judged(self, window: Window, held: Tensor) -> None:
        """Let the baseline follow the new steps of a window that has been judged, but for the layers that are held."""
        self._ledger.news = self._held_out.news = self._probing.news = False
        if window.fresh:
            self._baseline = baseline.followed(window, held)
        self._fresh = 0

    def state_dict(self) -> dict[str, Any]:
        """Return counters, baseline and, if it is not too large, the window, as plain types and tensors."""
        if self._baseline is None and self._restored is not None:
            return {**self._restored, "count": self.count, "number": self.number}
        self.collect()
        return {
            "count": self.count,
            "number": self.number,
            "layers": list(self.layers.names),
            "channels": list(self.layers.channels),
            "baseline": self._baseline.save() if self._baseline is not None else None,
            "ledger": self._ledger.state_dict(),
            "window": keep(self._ring, self._sampling.samples),
            "fresh": self._fresh,
            "epoch_steps": self.epoch_steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        self.count = state["count"]
        self.number = state.get("number", self.count)
        self.epoch_steps = state.get("epoch_steps", 0)
        self._take(self._find(names=state["layers"]))
        self._restored, self._baseline = state, None
        same = list(self.layers.names) == state["layers"] and list(self.layers.channels) == state["channels"]
        if same and state.get("window") is not None:
            self._sampling.renew(restore(state["window"], self._ring))
            self._fresh = state["fresh"]

    # -- the parts -----------------------------------------------------------------------------------------------------

    def _find(self, order: Mapping[int, int] | None = None, names: Sequence[str] | None = None) -> Discovery:
        """Discover again, in an order or in that of names, else of those so far: what was replaced keeps its place."""
        names = self.layers.names if names is None else names
        return discover(self._models, include=self._include, exclude=self._exclude, order=order, names=names)

    def _take(self, found: Discovery) -> None:
        """Make everything that depends on the layers anew, but for what is known of those that stay."""
        if self._baseline is not None:
            self._restored = self._known_of(found)
        self._sampling.renew()
        self._norms = norms(self._models.values())
        self._lazy, self._shards = found.lazy, found.shards
        self._probing.collective_reason = found.collective_reason
        self._gatherer.renew(zip(found.table.names, found.modules, strict=True))
        self._tape = Tape(found.table, found.modules, self._capacity)
        self._held_out.detach()
        self._held_out = HeldOutSampler()
        self._ledger = UpdateLedger(found.table, found.modules, self._models.values())
        self._ring = Ring(found.table, self._size, self._tape.dtype)
        self._baseline = self.heard = self._sized = None
        self._fresh = 0

    def _known_of(self, found: Discovery) -> dict[str, Any]:
        """The state, for the layers that are the same module or, as SyncBatchNorm, took over its tensors."""
        before = dict(zip(self.layers.names, self._tape.modules, strict=True))
        stay = {
            name for name, m in zip(found.table.names, found.modules, strict=True) if same_layer(before.get(name), m)
        }
        return {**self.state_dict(), "layers": [name if name in stay else "" for name in self.layers.names]}

    def _renew(self) -> None:
        self._take(self._find())
        self._mark()

    def _mark(self) -> None:
        """Begin from the state that there is now; the coming step is sampled."""
        self._ready()
        self._sampling.place(self._tape.modules, None)

    def _ready(self) -> None:
        """Note the state that the next step starts from, and let layers without statistics of their own show them."""
        compiled = any(is_compiled(model) for model in self._models.values())
        self._tape.writes_count = not compiled and not distributed()
        self._tape.mark()
        tracking = zip(self._tape.modules, self.layers.tracking, strict=True)
        blocked = self._sampling.blocked
        self._observer.attach([] if blocked else [module for module, tracks in tracking if not tracks])

    def _woke(self) -> bool:
        """Take in the lazy layers that a forward has made real; return whether there were any."""
        found = self._find() if self.waiting else None
        if found is None or found.lazy == self._lazy:
            return False
        self._take(found)
        return True

    def _reorder(self) -> None:
        """Put the layers into the order of their execution, once, before the first step is in the window."""
        order = self._sampling.sampler.order
        if not self.steps and order:
            found = self._find(order)
            if set(found.modules) == set(self._tape.modules):
                self._tape = self._tape.reordered(found.table, found.modules)
                self._ledger = self._ledger.reordered(found.table, found.modules)
                self._gatherer.renew()
                self._ring = Ring(found.table, self._size, self._tape.dtype)

    def _first_baseline(self) -> Baseline:
        fresh = baseline.begin(self.layers, *self._tape.origin())
        saved, self._restored = self._restored, None
        if saved is None:
            return fresh
        if "ledger" in saved:
            was = {name: i for i, name in enumerate(saved["layers"])}
            same = [was.get(n) for n in self.layers.names]
            self._ledger.load(saved["ledger"], same)
        return baseline.restored(fresh, self.layers, saved)
