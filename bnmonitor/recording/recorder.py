"""From the model to a window: what is read when, in which order, and what it is judged against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from bnmonitor.context import FactsGatherer, RunFacts
from bnmonitor.distributed import distributed
from bnmonitor.layers import Discovery, LayerTable
from bnmonitor.recording import baseline
from bnmonitor.recording.bufferless import Observer
from bnmonitor.recording.course import Course
from bnmonitor.recording.evaluation import Evaluations
from bnmonitor.recording.held import enter, why_untold
from bnmonitor.recording.moment import Moment, RecorderSettings
from bnmonitor.recording.peers import Peers
from bnmonitor.recording.ring import Ring
from bnmonitor.recording.snapshot import snapshot_window
from bnmonitor.recording.surroundings import Surroundings
from bnmonitor.recording.tape import ResizedError, Tape
from bnmonitor.recording.traces import compilations
from bnmonitor.recording.watched import WatchedLayers
from bnmonitor.recording.window_state import restore_window, save_window
from bnmonitor.sampling import SampleSchedule
from bnmonitor.window import Baseline, Sample, Window, series

_MANY_CHANNELS = 2_000


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
        models = self._models = dict(models)  # one for all parts: a model may be added
        self._settings = settings
        self._watched = WatchedLayers(models, settings.include, settings.exclude)
        self._observer = Observer()
        self._gatherer = FactsGatherer(models)
        self.sampling = SampleSchedule(models, settings.sample_every_n_steps, probe=settings.probe)
        """Takes the activation samples."""
        self.evaluations = Evaluations(models, self.sampling, self._gatherer)
        """Records what happens between the training steps."""
        self.course = Course(max(settings.window, settings.check_every_n_steps))
        """The loss of each step."""
        self.peers = Peers()
        """The other processes that train together with this one."""
        self._surroundings = Surroundings(
            watched=self._watched,
            gatherer=self._gatherer,
            sampling=self.sampling,
            evaluations=self.evaluations,
            peers=self.peers,
            course=self.course,
        )
        self.count = 0
        """Training steps seen."""
        self.number = 0
        """Number of the step after the last, unless it is given one."""
        self._epoch_steps = 0
        self._begun = False
        """Whether there was a step since the layers were found."""
        self._compilations = compilations()
        self._restored: Mapping[str, Any] | None = None
        self._judged_sample: Sample | None = None
        self._baseline: Baseline | None = None
        self._adopt(self._watched.found)

    # -- what is known -------------------------------------------------------------------------------------------------

    @property
    def layers(self) -> LayerTable:
        """The layers, in execution order once a step has been sampled."""
        return self._tape.layers

    @property
    def modules(self) -> Sequence[nn.Module]:
        """The layers themselves, in the same order."""
        return self._tape.modules

    @property
    def left_out(self) -> Mapping[str, str]:
        """Why further layers are not recorded, by name."""
        return self._watched.found.left_out

    @property
    def unwatched(self) -> Mapping[str, str]:
        """What the normalizations are that belong to no watched layer, by the name of their module."""
        return self._surroundings.unwatched

    @property
    def steps(self) -> list[int]:
        """Numbers of the steps in the window."""
        return self._ring.steps

    @property
    def waiting(self) -> bool:
        """Whether there is nothing yet but lazy layers, which have no channels before their first forward."""
        return self._watched.waiting

    @property
    def copies(self) -> bool:
        """Whether the optimizers train copies of the parameters, so that it is unknown which layers they train."""
        return self._gatherer.copies

    def rows(self, statistic: str, layer: str) -> Tensor:
        """Return a statistic of a layer over the window, as :func:`bnmonitor.window.series` does."""
        span = self.layers.span(self.layers.index(layer))
        return series(statistic, self._ring.view(), self.steps, self.sampling.samples, span)

    # -- what the training does ----------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start to watch; layers that were replaced since the last look are found."""
        found, known = self._watched.find(), self._watched.found
        if found.modules != known.modules or found.table != known.table:
            self._adopt(found)
        self._watched.adopt(found)
        self.evaluations.see(found)
        self.sampling.begin()
        self._mark()

    def end(self) -> None:
        """Remove every hook."""
        try:
            self.sampling.end()
        finally:
            try:
                self._observer.detach()
            finally:
                self.evaluations.detach()

    def end_epoch(self) -> None:
        """Note how many training steps the first epoch had."""
        self._epoch_steps = self._epoch_steps or self.count

    def add_model(self, name: str, model: nn.Module) -> None:
        """Record a further model from now on; the window begins again. A name that is taken changes nothing.

        Args:
            name: The first part of its layers' names.
            model: The model.
        """
        if name in self._models:
            return
        self._models[name] = model
        self._renew()

    def renewed(self) -> bool:
        """Find the layers again if one was added, removed, replaced or resized; return whether one was.

        With other layers the window begins again, and so do the baselines of those that are new.
        """
        changed = self._watched.changed
        if changed:
            self._renew()
        return changed

    def step(self, number: int, rate: float, loss: object = None) -> None:
        """Record the training step that has just ended.

        Args:
            number: Its number.
            rate: The learning rate in force.
            loss: Its loss, a number or a tensor with one value; None: unknown.
        """
        self.count += 1
        self.number = number + 1
        self.course.note(number, loss)
        self.peers.stepped()
        self.evaluations.abandon()
        if self._woke() or not len(self.layers):
            return
        self._reorder()
        self.sampling.collect(number, rate, self.count, self.layers, self._tape.modules)
        if not self._begun:
            self._begun = True
            self._tape.send_origin()
        if not self._tape.away:
            self._receive(until=number)
        try:
            self._tape.reader.writes.compiled |= self.sampling.unseen
            self._tape.reader.calls = self.sampling.calls
            seen, witness = self._observer.collect(), self.sampling.witness
            self._tape.step(number, rate, seen, foreign=self.peers.foreign, witness=witness)
        except ResizedError:
            self._renew()
        else:
            self.sampling.place(self._tape.modules, self.count)

    @property
    def full(self) -> bool:
        """Whether the tape must be read before the next step."""
        return self._tape.full

    def pause(self, phase: str) -> None:
        """An evaluation begins: what happens now is not training."""
        self.sampling.pause()
        self._observer.pause()
        self.evaluations.begin(phase, self._tape, self._ring)

    def resume(self) -> None:
        """The evaluation has ended; what it did to the buffers belongs to no step."""
        if not self.evaluations.end(self._tape, self._ring, self.count, self._baseline):
            return
        if not (self._woke() or self.renewed()):
            self._ready()
            self.sampling.resume(self._tape.modules, self.count)

    # -- what is made of it --------------------------------------------------------------------------------------------

    def collect(self, *, wait: bool = True) -> None:
        """Move the recorded steps from the tape into the window, and receive what other processes have sent.

        Args:
            wait: Whether to wait for what is still on its way from the device; see :meth:`Tape.drain`.
        """
        self._tape.reader.writes_doubtful = self._watched.compiled_since
        came, rewritten = self._tape.drain(self._ring, wait=wait)
        self._receive(wait=wait, until=self.steps[-1] if self.steps else -1, begin=came > 0)
        self._fresh += came
        self.course.collect(wait=wait)
        if rewritten is not None and self._baseline is not None:
            self._baseline = replace(self._baseline, initial=self._baseline.initial.where(~rewritten, 0.0))
        if came:
            self.evaluations.ledger.stepped(self.steps, self._ring.view(), came, self.sampling.latest)
        self.listen()

    def listen(self) -> None:
        """Receive what other processes have sent by now."""
        affine = self.peers.listen(self.steps)
        if affine is not None:
            enter(affine, self.steps, self._ring.view())
            if self._baseline is not None:
                start = self._baseline.gamma
                self._baseline = replace(self._baseline, gamma=affine.gamma_start.to(start).where(start.isnan(), start))

    def tell(self, window: Window) -> None:
        """Send the last step of a window to the other processes."""
        held = self._tape.held
        self.peers.offer(window, None if held is None else held.told(window.steps[-1]))

    @property
    def untold(self) -> str:
        """Why gamma and beta are not known of all layers that are split over the processes; empty if they are."""
        return why_untold(self.layers, self._tape.held, self.peers)

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
        moment.run.collect(wait=False)  # sent before the steps, so that it arrives before them
        self.collect(wait=moment.wait)
        moment.run.collect(wait=moment.wait)
        window = self._window(moment)
        if window is not None:
            return window.against(baseline.counted(window))
        if not (moment.end and self.evaluations.has_unjudged and len(self.layers)):
            return None
        # Evaluations were seen, and no training step.
        facts, ledger = self._surroundings.untrained(moment, self._ring), self.evaluations.ledger.ledger(0)
        return snapshot_window(self.layers, self._tape.modules, facts=facts, ledger=ledger)

    def blank(self) -> Window:
        """Return a window in which nothing has happened, for what is known of the model without any step."""
        facts = self._surroundings.untrained(Moment(), self._ring)
        return replace(Window.neutral(self.layers, (0,)), facts=facts)

    def settle(self, window: Window, *, held: Tensor) -> None:
        """Take in that a window has been judged: its steps are no longer new, and the baseline follows them.

        Args:
            window: What :meth:`advance` returned.
            held: ``[L]`` bool, the layers with an open alert, whose baseline stays as it was.
        """
        self.evaluations.settle()
        if window.fresh:
            self._baseline = baseline.followed(window, held)
        self._fresh = 0
        if self.steps:
            self._tape.intake.novelty.judged(self._ring.view(), self._ring.rates)
        self._judged_sample = self.sampling.latest

    @property
    def has_news(self) -> bool:
        """Whether there is something that the rules should judge now: what is new, a sample, or an evaluation."""
        young = len(self.steps) < self._ring.size
        sampled = self.sampling.latest is not self._judged_sample
        return young or sampled or self._tape.intake.novelty.found or self.evaluations.has_unjudged

    @property
    def has_lasting_news(self) -> bool:
        """Whether what is new may be a fault that takes a window to be told."""
        return self._tape.intake.novelty.lasts

    def _window(self, moment: Moment) -> Window | None:
        if self._baseline is None or not self.steps:
            return None
        # To carry sums along is dearer than to read what fits into a processor's cache.
        averages = self._ring.averages() if self.layers.total >= _MANY_CHANNELS else None
        return Window(
            layers=self.layers,
            steps=tuple(self.steps),
            baseline=self._baseline,
            facts=self._surroundings.facts(moment, self._tape, self._ring, epoch_steps=self._epoch_steps),
            sample=self.sampling.latest,
            earlier=tuple(self.sampling.samples[:-1]),
            ledger=self.evaluations.ledger.ledger(self.count),
            fresh=min(self._fresh, len(self.steps)),
            carried=averages,
            **self._ring.view(),
        )

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return counters, baseline and, if it is not too large, the window, as plain types and tensors."""
        if self._begun:
            self._receive(wait=True)
        if self._baseline is None and self._restored is not None:
            return {**self._restored, "count": self.count, "number": self.number}
        self.collect()
        return {
            "count": self.count,
            "number": self.number,
            "layers": list(self.layers.names),
            "channels": list(self.layers.channels),
            "baseline": self._baseline.save() if self._baseline is not None else None,
            "ledger": self.evaluations.ledger.state_dict(),
            "window": save_window(self._ring, self.sampling.samples),
            "fresh": self._fresh,
            "epoch_steps": self._epoch_steps,
            "course": self.course.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        self.count = state["count"]
        self.number = state.get("number", self.count)
        self._epoch_steps = state.get("epoch_steps", 0)
        if "course" in state:
            self.course.restore(state["course"])
        self._adopt(self._watched.find(names=state["layers"]))
        self._restored, self._baseline = state, None
        same = list(self.layers.names) == state["layers"] and list(self.layers.channels) == state["channels"]
        if same and state.get("window") is not None:
            self.sampling.renew(restore_window(state["window"], self._ring))
            self._fresh = state["fresh"]

    def rehearse(self, state: Mapping[str, Any]) -> Window | None:
        """Load a state into another recorder, and return the window that it makes; nothing changes here.

        Whatever loading the state raises, or would raise later in the training, is raised now.
        """
        counters = [state["count"], state.get("number", 0), state.get("epoch_steps", 0), state.get("fresh", 0)]
        if not all(isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in counters):
            raise TypeError("a counter is not an int of at least 0")
        other = Recorder(self._models, self._settings)
        other.load_state_dict(state)
        other._tape.mark()
        other._tape.send_origin()
        origin = other._tape.origin() or ()
        fresh = baseline.begin(other.layers, *origin)
        began = other._baseline = other._first_baseline(origin)
        for name, tensor in fresh.save().items():
            kept = began.save()[name]
            if (kept.dtype, kept.shape) != (tensor.dtype, tensor.shape):
                raise TypeError(f"the baseline's {name} is not as this model needs it")
        other._baseline = baseline.sampled(began, other.sampling.samples)
        window = other.window()
        return None if window is None else window.against(baseline.counted(window))

    def _receive(self, *, wait: bool = False, until: int = -1, begin: bool = False) -> None:
        """Take in what has arrived from the device besides the steps: how the layers began, and samples.

        On a CPU both are there in the step that they belong to. From a device they come with the check that this step
        comes with, as they were sent before it.

        Args:
            wait: Whether to wait for all of it.
            until: The newest step that has arrived: a later sample has to wait for its step.
            begin: Whether a step has arrived, and so how the layers began.
        """
        new = self.sampling.receive(wait=wait, until=until)
        origin = self._tape.origin(wait=wait or begin) if self._baseline is None and self._begun else None
        if origin is not None:
            self._baseline = self._first_baseline(origin)
        if self._baseline is not None and (new or origin is not None):
            self._baseline = baseline.sampled(self._baseline, self.sampling.samples)

    def _first_baseline(self, origin: tuple[Tensor, ...]) -> Baseline:
        fresh = baseline.begin(self.layers, *origin)
        saved, self._restored = self._restored, None
        if saved is None:
            return fresh
        if "ledger" in saved:
            was = {name: i for i, name in enumerate(saved["layers"])}
            same = [was.get(n) for n in self.layers.names]
            self.evaluations.ledger.load(saved["ledger"], same)
        return baseline.restored(fresh, self.layers, saved)

    # -- the layers ----------------------------------------------------------------------------------------------------

    def _adopt(self, found: Discovery) -> None:
        """Make everything that depends on the layers again, and keep what is known of those that stay."""
        if self._begun:
            self._receive(wait=True)
        if self._baseline is not None:
            stay = self._watched.staying(found)
            self._restored = {**self.state_dict(), "layers": [n if n in stay else "" for n in self.layers.names]}
        self._watched.adopt(found)
        self.sampling.renew()
        self._gatherer.renew(zip(found.table.names, found.modules, strict=True))
        self.evaluations.renew(found)
        each, gather = self._settings.check_every_n_steps, self._settings.gather_affine
        self._tape: Tape = Tape(found.table, found.modules, each, gather=gather)
        self._ring = self._empty_ring(found.table)
        self._baseline = self.peers.latest = None
        self._fresh, self._begun = 0, False

    def _empty_ring(self, layers: LayerTable) -> Ring:
        size = max(self._settings.window, self._settings.check_every_n_steps)
        return Ring(layers, size, self._tape.dtype)

    def _renew(self) -> None:
        self._adopt(self._watched.find())
        self._mark()

    def _woke(self) -> bool:
        """Take in the lazy layers that a forward has made real; return whether there were any."""
        woken = self._watched.woken()
        if woken is None:
            return False
        self._adopt(woken)
        self._mark()
        return True

    def _mark(self) -> None:
        """Begin from the state that there is now; the coming step is sampled."""
        self._ready()
        self.sampling.place(self._tape.modules, None)

    def _ready(self) -> None:
        """Note the state that the next step starts from, and place the hooks on layers without running statistics."""
        self._tape.reader.writes_count = not distributed()
        self._tape.reader.compiled = self._watched.compiled
        self._tape.reader.writes.started_at = self._compilations
        self._tape.reader.writes.compiled |= bool(self._watched.compiled)
        self._tape.mark()
        tracking = zip(self._tape.modules, self.layers.tracking, strict=True)
        blocked = self.sampling.blocked
        self._observer.attach([] if blocked else [module for module, tracks in tracking if not tracks])

    def _reorder(self) -> None:
        """Put the layers into the order of their execution, once, before the first step is in the window."""
        order = self.sampling.sampler.order
        if not self._begun and not self.steps and order:
            found = self._watched.find(order)
            if set(found.modules) == set(self._tape.modules):
                self._watched.adopt(found)
                self._tape = self._tape.reordered(found.table, found.modules)
                self.evaluations.reorder(found)
                self._gatherer.renew()
                self._ring = self._empty_ring(found.table)
