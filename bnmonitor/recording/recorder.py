"""From the model to a window: what is read when, in which order, and what it is judged against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from bnmonitor.context import FactsGatherer, Recorded, RunFacts
from bnmonitor.distributed import RankExchange, distributed
from bnmonitor.layers import Discovery, LayerTable, channels_of, discover, is_compiled, norms, same_layer
from bnmonitor.recording import baseline
from bnmonitor.recording.bufferless import Observer
from bnmonitor.recording.evaluation import Evaluations
from bnmonitor.recording.moment import Moment, RecorderSettings
from bnmonitor.recording.peers import Peers
from bnmonitor.recording.ring import Ring
from bnmonitor.recording.snapshot import snapshot_window
from bnmonitor.recording.tape import ResizedError, Tape
from bnmonitor.recording.window_state import restore_window, save_window
from bnmonitor.sampling import SampleSchedule
from bnmonitor.window import Baseline, Facts, Sample, Structure, Window, series

_MANY_CHANNELS = 10_000


class Recorder:
    """Records the layers of the models and makes windows of them.

    :meth:`advance` is for the rules: it takes in all that is new, and :meth:`settle` has to follow once they have
    judged it. :meth:`window` is for everybody else: it changes nothing.

    Args:
        models: The models by prefix of their layers' names.
        settings: How to record.

    Raises:
        ValueError: A pattern matches no layer.
    """

    def __init__(self, models: Mapping[str, nn.Module], settings: RecorderSettings) -> None:
        self._models, self._settings = models, settings
        self._sampling = SampleSchedule(models, settings.sample_every_n_steps, probe=settings.probe)
        self._observer = Observer()
        self._gatherer = FactsGatherer(models)
        self._restored: Mapping[str, Any] | None = None
        self.count = 0
        """Training steps seen."""
        self.number = 0
        """Number of the step after the last, unless it is given one."""
        self.epoch_steps = 0
        """Training steps in the first epoch; 0 before its end."""
        self.peers = Peers()
        """The other processes that train together with this one."""
        self._baseline: Baseline | None = None
        self._evaluations = Evaluations(models, self._sampling, self._gatherer)
        self._adopt(discover(models, include=settings.include, exclude=settings.exclude))

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
    def samples(self) -> list[Sample]:
        """The samples kept, the newest last."""
        return self._sampling.samples

    @property
    def waiting(self) -> bool:
        """Whether there is nothing yet but lazy layers, which have no channels before their first forward."""
        return self._found.lazy > 0

    @property
    def copies(self) -> bool:
        """Whether the optimizers train copies of the parameters, so that it is unknown which layers they train."""
        return self._gatherer.copies

    @property
    def unsampled(self) -> str:
        """Why no activation is sampled; empty if it is."""
        return self._sampling.unsampled

    @property
    def unprobed(self) -> str:
        """Why no extra forward can be run, although it is wanted; empty if it can."""
        return self._evaluations.unprobed

    @property
    def structure(self) -> Structure:
        """What the autograd graphs showed so far; for each layer why nothing is known, where it is not."""
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
        return series(statistic, self._ring.view(), self.steps, self.samples, span)

    # -- what the training does ----------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start to watch; layers that were replaced since the last look are found."""
        found = self._find()
        if found.modules != self._tape.modules or found.table != self.layers:
            self._adopt(found)
        self._found = found
        self._evaluations.see(found)
        self._sampling.begin()
        self._mark()

    def end(self) -> None:
        """Remove every hook."""
        self._sampling.end()
        self._observer.detach()
        self._evaluations.detach()

    def end_epoch(self) -> None:
        """Note how many training steps the first epoch had."""
        self.epoch_steps = self.epoch_steps or self.count

    def share_ranks(self, exchange: RankExchange) -> None:
        """Exchange statistics with the other processes from now on."""
        self.peers.join(exchange)

    def renewed(self) -> bool:
        """Find the layers again if one was added, removed, replaced or resized; return whether one was.

        With other layers the window begins again, and so do the baselines of those that are new.
        """
        now, known = norms(self._models.values()), self._norms
        same = len(now) == len(known) and all(a is b for a, b in zip(now, known, strict=True))
        if same and tuple(channels_of(m) for m in self._tape.modules) == self.layers.channels:
            return False
        self._renew()
        return True

    def step(self, number: int, rate: float) -> None:
        """Record the training step that has just ended.

        Args:
            number: Its number.
            rate: The learning rate in force.
        """
        self.count += 1
        self.number = number + 1
        self.peers.stepped()
        self._evaluations.abandon()
        if self._woke():
            self._mark()
            return
        if not len(self.layers):
            return
        self._reorder()
        sample = self._sample
        self._sampling.collect(number, self.count, self.layers, self._tape.modules)
        if self._baseline is None or self._sample is not sample:
            self._baseline = baseline.sampled(self._baseline or self._first_baseline(), self.samples)
        try:
            self._tape.step(number, rate, self._observer.collect(), foreign=self.peers.foreign)
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
        """An evaluation begins: what happens now is not training."""
        self._sampling.pause()
        self._observer.detach()
        self._evaluations.begin(phase, self._tape, self._ring)

    def resume(self) -> None:
        """The evaluation has ended; what it did to the buffers belongs to no step."""
        if not self._evaluations.end(self._tape, self._ring, self.count):
            return
        if self._woke() or self.renewed():
            self._mark()
        else:
            self._ready()
            self._sampling.resume(self._tape.modules, self.count)

    # -- what is made of it --------------------------------------------------------------------------------------------

    @property
    def has_unjudged(self) -> bool:
        """Whether an evaluation has shown something that no rule has judged yet."""
        return self._evaluations.has_unjudged

    def collect(self, *, wait: bool = True) -> None:
        """Move the recorded steps from the tape into the window, and receive what other processes have sent.

        Args:
            wait: Whether to wait for what is still on its way from the device; see :meth:`Tape.drain`.
        """
        came, rewritten = self._tape.drain(self._ring, wait=wait)
        self._fresh += came
        if rewritten is not None and self._baseline is not None:
            self._baseline = replace(self._baseline, initial=self._baseline.initial.where(~rewritten, 0.0))
        if came:
            self._evaluations.ledger.stepped(self.steps, self._ring.view(), came, self._sample)
        self.peers.listen(self.steps)

    def window(self, optimizers: Sequence[Optimizer] = (), run: RunFacts | None = None) -> Window | None:
        """Return the steps collected so far as they are, and change nothing; None before the first step.

        Args:
            optimizers: Those that train the model, as far as they are known.
            run: What the run says of itself.
        """
        return self._window(Moment(optimizers=optimizers, run=run or RunFacts()))

    def advance(self, moment: Moment) -> Window | None:
        """Collect all that is new, and return a window that is ready to be judged; None if there is none.

        The new steps are counted in its baseline. The recorder takes that over when the window is settled: until then
        they stay new.

        Args:
            moment: When that is.
        """
        self.collect(wait=moment.wait)
        window = self._window(moment)
        if window is not None:
            return window.against(baseline.counted(window))
        return self._standing(moment) if moment.end and self.has_unjudged and len(self.layers) else None

    def settle(self, window: Window, *, held: Tensor) -> None:
        """Take in that a window has been judged: its steps are no longer new, and the baseline follows them.

        Args:
            window: What :meth:`advance` returned.
            held: ``[L]`` bool, the layers with an open alert, whose baseline stays as it was.
        """
        self._evaluations.settle()
        if window.fresh:
            self._baseline = baseline.followed(window, held)
        self._fresh = 0

    def _window(self, moment: Moment) -> Window | None:
        if self._baseline is None or not self.steps:
            return None
        # To carry sums along is dearer than to read what fits into a processor's cache.
        averages = self._ring.averages() if self.layers.total >= _MANY_CHANNELS else None
        return Window(
            layers=self.layers,
            steps=tuple(self.steps),
            baseline=self._baseline,
            facts=self._facts(moment),
            sample=self._sample,
            ledger=self._evaluations.ledger.ledger(self.count),
            fresh=min(self._fresh, len(self.steps)),
            carried=averages,
            **self._ring.view(),
        )

    def _standing(self, moment: Moment) -> Window:
        """What can be judged where evaluations were seen and no training step."""
        recorded = replace(self._recorded(), steps=(0,), rates=())
        facts = replace(self._gatherer.facts(recorded, (), moment.run), untrained=True)
        return snapshot_window(self.layers, self._tape.modules, facts=facts, ledger=self._evaluations.ledger.ledger(0))

    def _facts(self, moment: Moment) -> Facts:
        """All that is known besides the statistics; before an evaluation that takes a look at the model."""
        known = self._gatherer.facts(self._recorded(), moment.optimizers, moment.run)
        phase = moment.evaluation
        coming = self._evaluations.coming(phase, self._tape, self._ring) if phase else {}
        return replace(
            known,
            ranks=self.peers.latest,
            epoch_steps=self.epoch_steps,
            # Where hooks are let through, the evaluation itself shows it.
            averages_without_buffers=known.averages_without_buffers and bool(self._sampling.blocked),
            **self._evaluations.facts,
            **coming,
        )

    def _recorded(self) -> Recorded:
        return Recorded(
            layers=self.layers,
            modules=self._tape.modules,
            shards=self._found.shards,
            steps=self.steps,
            rates=self._ring.rates,
            structure=self._sampling.sampler.structure,
            unregistered=self._sampling.unregistered,
        )

    @property
    def _sample(self) -> Sample | None:
        return self.samples[-1] if self.samples else None

    # -- checkpoints ---------------------------------------------------------------------------------------------------

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
            "ledger": self._evaluations.ledger.state_dict(),
            "window": save_window(self._ring, self.samples),
            "fresh": self._fresh,
            "epoch_steps": self.epoch_steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        self.count = state["count"]
        self.number = state.get("number", self.count)
        self.epoch_steps = state.get("epoch_steps", 0)
        self._adopt(self._find(names=state["layers"]))
        self._restored, self._baseline = state, None
        same = list(self.layers.names) == state["layers"] and list(self.layers.channels) == state["channels"]
        if same and state.get("window") is not None:
            self._sampling.renew(restore_window(state["window"], self._ring))
            self._fresh = state["fresh"]

    def _first_baseline(self) -> Baseline:
        fresh = baseline.begin(self.layers, *self._tape.origin())
        saved, self._restored = self._restored, None
        if saved is None:
            return fresh
        if "ledger" in saved:
            was = {name: i for i, name in enumerate(saved["layers"])}
            same = [was.get(n) for n in self.layers.names]
            self._evaluations.ledger.load(saved["ledger"], same)
        return baseline.restored(fresh, self.layers, saved)

    def _known_of(self, found: Discovery) -> dict[str, Any]:
        """The state, for the layers that are the same module or, as SyncBatchNorm, took over its tensors."""
        before = dict(zip(self.layers.names, self._tape.modules, strict=True))
        stay = {
            name for name, m in zip(found.table.names, found.modules, strict=True) if same_layer(before.get(name), m)
        }
        return {**self.state_dict(), "layers": [name if name in stay else "" for name in self.layers.names]}

    # -- the layers ----------------------------------------------------------------------------------------------------

    def _find(self, order: Mapping[int, int] | None = None, names: Sequence[str] | None = None) -> Discovery:
        """Discover again, in an order or in that of names, else of those so far: what was replaced keeps its place."""
        names = self.layers.names if names is None else names
        include, exclude = self._settings.include, self._settings.exclude
        return discover(self._models, include=include, exclude=exclude, order=order, names=names)

    def _adopt(self, found: Discovery) -> None:
        """Make everything that depends on the layers again, and keep what is known of those that stay."""
        if self._baseline is not None:
            self._restored = self._known_of(found)
        self._found = found
        self._norms = norms(self._models.values())
        self._sampling.renew()
        self._gatherer.renew(zip(found.table.names, found.modules, strict=True))
        self._evaluations.renew(found)
        self._tape: Tape = Tape(found.table, found.modules, self._settings.check_every_n_steps)
        self._ring = self._empty_ring(found.table)
        self._baseline = self.peers.latest = None
        self._fresh = 0

    def _empty_ring(self, layers: LayerTable) -> Ring:
        size = max(self._settings.window, self._settings.check_every_n_steps)
        return Ring(layers, size, self._tape.dtype)

    def _renew(self) -> None:
        self._adopt(self._find())
        self._mark()

    def _mark(self) -> None:
        """Begin from the state that there is now; the coming step is sampled."""
        self._ready()
        self._sampling.place(self._tape.modules, None)

    def _ready(self) -> None:
        """Note the state that the next step starts from, and place the hooks on layers without running statistics."""
        compiled = any(is_compiled(model) for model in self._models.values())
        self._tape.writes_count = not compiled and not distributed()
        self._tape.mark()
        tracking = zip(self._tape.modules, self.layers.tracking, strict=True)
        blocked = self._sampling.blocked
        self._observer.attach([] if blocked else [module for module, tracks in tracking if not tracks])

    def _woke(self) -> bool:
        """Take in the lazy layers that a forward has made real; return whether there were any."""
        found = self._find() if self.waiting else None
        if found is None or found.lazy == self._found.lazy:
            return False
        self._adopt(found)
        return True

    def _reorder(self) -> None:
        """Put the layers into the order of their execution, once, before the first step is in the window."""
        order = self._sampling.sampler.order
        if not self.steps and order:
            found = self._find(order)
            if set(found.modules) == set(self._tape.modules):
                self._tape = self._tape.reordered(found.table, found.modules)
                self._evaluations.reorder(found)
                self._gatherer.renew()
                self._ring = self._empty_ring(found.table)
