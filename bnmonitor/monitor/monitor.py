"""The public face of the engine, for plain PyTorch and for adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from bnmonitor import runs
from bnmonitor._text import count, nearest, public
from bnmonitor.context import RunFacts
from bnmonitor.distributed import RankExchange
from bnmonitor.layers import LayerTable, captures
from bnmonitor.limits import FLIGHT_BYTES
from bnmonitor.monitor.actions import AlertError, warn
from bnmonitor.monitor.batches import BatchKeeper
from bnmonitor.monitor.live import Live, recorded
from bnmonitor.monitor.rollback import Rollback
from bnmonitor.monitor.session import Session
from bnmonitor.monitor.settings import Action, Settings, as_folder, as_models, as_optimizers, check_loss
from bnmonitor.monitor.started import Running
from bnmonitor.recording import Recorder
from bnmonitor.results import Alert, Incident, RateSuggestion, worst_of
from bnmonitor.rules import Rule, Thresholds, check_patterns
from bnmonitor.sinks import Console, Run, Sink, TensorBoard, totals
from bnmonitor.summary import Summary
from bnmonitor.window import SERIES, RankStatistics, Sample, Structure, Window

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

Phase = Literal["validation", "test", "predict", "sanity"]
_PHASES = ("validation", "test", "predict", "sanity")


class Monitor:
    """Watches every BatchNorm layer of a model while it trains.

    Use it as a context manager, and call :meth:`step` after each training batch::

        with Monitor(model, optimizer=optimizer) as monitor:
            for batch in loader:
                ...  # forward, backward, optimizer.step()
                monitor.step()
                if monitor.should_stop:
                    break

    Args:
        model: The model, or a mapping of names to models (a GAN's two, a teacher).
        optimizer: The optimizer or optimizers; None: every parameter that requires a gradient counts as trained.
        log_dir: The directory for the history and the black boxes of errors; None: they are not written.
        train_loader: The training loader, for rules about how batches are drawn.
        val_loader: The validation loader, for the same.
        accumulate_grad_batches: Micro-batches per optimizer step.
        scaler: The gradient scaler, for rules about skipped steps.
        check_every_n_steps: Run the rules every so many steps; once the window is full and while nothing is new, at
            one of five such times. Each run looks at all steps since the last.
        log_every_n_steps: Write a frame to the sinks every so many steps; None: 50; 0: never.
        sample_every_n_steps: Take activation statistics on the first step and then every so many steps; 0: never.
        window: Steps kept at full resolution.
        probe: Allow rules that need an extra forward on a kept batch at the start of a validation.
        gather_affine: Under FSDP2 (``fully_shard``), where each process holds a part of gamma and beta, gather them at
            log steps, for the rules and tables that need them whole; the same in every process.
        flight_bytes: Most bytes of the flight record, which keeps every channel of the whole run beside the history;
            0: none is written.
        max_overhead: Part of the training's time that the monitor may take, such as 0.01 for 1 %; beyond that, and ten
            seconds, it checks and samples less often, never less than once a window. None: no limit.
        include: Glob patterns over layer names; a layer is watched if one matches.
        exclude: Glob patterns; a layer is not watched if one matches.
        select: Rules to run: codes, prefixes, names, ``"default"`` or ``"all"``.
        ignore: Rules to leave out, in the same words.
        rules: Own rules, or thresholds by rule: ``{"small-batch": {"warn_below": 8}}``; under ``"layers"`` a rule takes
            other thresholds for some layers: ``{"small-batch": {"layers": {"head.*": {"warn_below": 4}}}}``.
        on_alert: ``"log"``, ``"warn"`` (in the console; without one, a Python warning), ``"stop"``, ``"raise"``,
            ``"rollback"`` (back to the last calm state, at a lower rate where that is the fix), ``"save-batch"`` (the
            batch at which it began, in ``log_dir``), ``"wandb"``, or a callable that takes the
            alert, such as a :class:`bnmonitor.notify.Webhook`; a list of these; or a mapping of them by severity.
            Without a mapping, words leave infos to the log. None: ``"warn"``, or nothing with ``sinks=[]``.
        sinks: Where alerts and summaries go; None: to the console, and to a history if ``log_dir`` is given; []:
            nowhere, in silence.

    Raises:
        ValueError: An argument has a value that is not accepted; the message says which values are.
        TypeError: An argument has the wrong type.
    """

    def __init__(
        self,
        model: nn.Module | Mapping[str, nn.Module],
        *,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        log_dir: str | Path | None = None,
        train_loader: Any = None,
        val_loader: Any = None,
        accumulate_grad_batches: int = 1,
        scaler: Any = None,
        check_every_n_steps: int = 10,
        log_every_n_steps: int | None = None,
        sample_every_n_steps: int = 100,
        window: int = 64,
        probe: bool = False,
        gather_affine: bool = False,
        flight_bytes: int = FLIGHT_BYTES,
        max_overhead: float | None = 0.01,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        select: Sequence[str] = ("default",),
        ignore: Sequence[str] = (),
        rules: Sequence[Rule] | Mapping[str, Thresholds] | None = None,
        on_alert: Action | Mapping[str, Action] | None = None,
        sinks: Sequence[Sink] | None = None,
    ) -> None:
        settings = Settings.of(locals())
        facts = RunFacts(
            train_loader=train_loader,
            val_loader=val_loader,
            accumulate_grad_batches=accumulate_grad_batches,
            scaler=scaler,
        )
        if "rollback" in settings.words() and optimizer is None:
            raise ValueError('on_alert="rollback" needs optimizer=, whose state and learning rate it sets back')
        if "save-batch" in settings.words() and log_dir is None:
            raise ValueError('on_alert="save-batch" needs log_dir=, the directory to save batches in')
        self._assemble(model, settings, facts, log_dir, {})
        if self._keeper is not None:
            self._keeper.loader = train_loader
        self.watch_optimizers(optimizer)

    @classmethod
    def from_settings(
        cls,
        model: nn.Module | Mapping[str, nn.Module],
        settings: Settings,
        *,
        facts: RunFacts | None = None,
        words: Mapping[str, Callable[[Alert], object]] | None = None,
    ) -> Monitor:
        """Return a monitor for an adapter, such as the Lightning callback, that validated its arguments before.

        Args:
            model: The model, or a mapping of names to models.
            settings: How to watch.
            facts: What is known about the training; None: nothing yet.
            words: The functions behind words of ``on_alert`` that the adapter supplies, such as ``"checkpoint"``.

        Raises:
            ValueError: A pattern matches no layer, or ``on_alert`` has a word that the adapter does not supply.
            TypeError: The model has the wrong type.
        """
        monitor = cls.__new__(cls)
        monitor._assemble(model, settings, facts or RunFacts(), None, words or {})
        return monitor

    def _assemble(
        self,
        model: object,
        settings: Settings,
        facts: RunFacts,
        log_dir: object,
        words: Mapping[str, Callable[[Alert], object]],
    ) -> None:
        if "checkpoint" in settings.words() - words.keys():
            raise ValueError(
                'on_alert="checkpoint" needs a Lightning Trainer, which knows what a checkpoint holds: '
                "in plain PyTorch pass a callable that saves"
            )
        self._facts = facts
        self._recorder = Recorder(as_models(model), settings)
        # An incident opens at the check after its fault, on an accelerator at the one after that.
        kept = 2 * settings.check_every_n_steps + 1
        self._keeper: BatchKeeper | None = None
        if "save-batch" in settings.words():
            self._keeper = BatchKeeper(as_models(model).values(), kept, lambda: self.log_dir)
            words = {**words, "save-batch": self._keeper}
        self.rollback: Rollback | None = None
        """What ``on_alert="rollback"`` does; None without it."""
        if "rollback" in settings.words():
            self.rollback = Rollback(as_models(model).values(), settings.window)
            words = {**words, "rollback": self.rollback}
        if not self._recorder.waiting:
            check_patterns(settings.special_rules(), self.layers)
        folder = as_folder(log_dir)
        self.settings = settings if settings.sinks is not None else replace(settings, sinks=_default_sinks(folder))
        run = Run(layers=self.layers, log_dir=folder)
        self._session = Session(self.settings, self._recorder, facts, run, words)
        if self.rollback is not None:
            self.rollback.session = self._session
        if not self._session.watching:
            others = "".join(f"; {name} is {what}" for name, what in list(self._recorder.unwatched.items())[:3])
            warn(
                f"the model has no BatchNorm layer: bnmonitor has nothing to watch, training goes on without it{others}"
            )

    # -- what it knows -------------------------------------------------------------------------------------------------

    @property
    def layers(self) -> LayerTable:
        """The layers under watch, in execution order after a step has been sampled."""
        return self._recorder.layers

    @property
    def modules(self) -> Sequence[nn.Module]:
        """The layers under watch themselves, in the order of :attr:`layers`."""
        return self._recorder.modules

    @property
    def alerts(self) -> tuple[Alert, ...]:
        """Every alert so far, in the order they opened; an index keeps its alert, whose state may change."""
        return self._session.alerts

    @property
    def incidents(self) -> tuple[Incident, ...]:
        """Every incident so far, in the order they opened: each is one root cause with all that follows from it."""
        return self._session.diagnosis.incidents

    @property
    def running(self) -> bool:
        """Whether the monitor was started and not yet closed."""
        return self._session.running

    @property
    def failure(self) -> str:
        """Why bnmonitor has stopped watching, in one sentence; empty if it has not failed."""
        return self._session.failure

    @property
    def should_stop(self) -> bool:
        """Set by ``on_alert="stop"``: the training loop should end."""
        return self._session.actions.should_stop

    @should_stop.setter
    def should_stop(self, value: bool) -> None:
        self._session.actions.request_stop(value)

    @property
    def steps(self) -> tuple[int, ...]:
        """Numbers of the steps that :meth:`history` returns."""
        self._session.collect()
        return tuple(self._recorder.steps[-self.settings.window :])

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The newest activation samples, one for each sampled step that is kept, the newest last.

        Each holds counts per layer, ``[L]`` (``calls``, ``size``, ``values``), the moments of the layers' inputs and
        outputs per channel, ``[C]`` (``input.mean``, ``output.kurtosis``), and more; see
        :class:`bnmonitor.window.Sample`. ``L`` counts the layers, ``C`` the channels of all layers end to end.
        """
        return tuple(self._recorder.sampling.samples)

    @property
    def log_dir(self) -> Path | None:
        """The directory for files of the run; None if none are written."""
        return self._session.log_dir

    @property
    def black_boxes(self) -> tuple[Path, ...]:
        """Files with the whole window when an error opened; see :func:`bnmonitor.sinks.read_black_box`."""
        files = self._session.files
        return () if files is None else tuple(files.black_boxes)

    @property
    def saved_batches(self) -> tuple[Path, ...]:
        """Files with the batches that ``on_alert="save-batch"`` has saved: ``torch.load(path, weights_only=True)``."""
        return () if self._keeper is None else tuple(self._keeper.files)

    @property
    def ranks(self) -> RankStatistics | None:
        """The statistics of all processes at the last step they exchanged; None in a single process."""
        return self._recorder.peers.latest

    @property
    def exchanging(self) -> bool:
        """Whether an exchange of statistics between the processes is in progress."""
        return self._recorder.peers.pending

    @property
    def skipped(self) -> dict[str, str]:
        """Rules whose needs are not met now, by name, each with the reason; they run as soon as the needs are met."""
        return self._session.skipped()

    @property
    def left_out(self) -> dict[str, str]:
        """Layers that bnmonitor cannot record, such as those that TorchScript has compiled, by name with the reason."""
        return dict(self._recorder.left_out)

    def history(self, layer: str, statistic: str) -> Tensor:
        """Return a statistic of a layer over the window.

        Args:
            layer: Name of the layer.
            statistic: ``batch_mean``, ``batch_var``, ``running_mean``, ``running_var``, ``gamma``, ``beta``,
                ``gamma_grad``, ``beta_grad``, ``shift`` or ``ratio``, as described at
                :class:`bnmonitor.window.Window`; ``gamma_update`` or ``beta_update``, the change since the step before;
                or, for sampled steps, a field of :class:`bnmonitor.window.Moments` with the side before it, such as
                ``input_skewness`` or ``output_max``, and ``input_between``.

        Returns:
            ``[steps, channels]`` on the CPU, a copy; NaN where a batch statistic could not be recovered, and on steps
            without a sample.

        Raises:
            KeyError: The layer or the statistic does not exist.
        """
        if statistic not in SERIES:
            known = ", ".join(SERIES)
            raise KeyError(f"no statistic is named {statistic!r}{nearest(statistic, SERIES)}; there are {known}")
        self._session.collect()
        return self._recorder.rows(statistic, layer)[-self.settings.window :]

    def to_frame(self, layer: str | None = None, statistic: str | None = None) -> pandas.DataFrame:
        """Return a table of the run; it needs pandas.

        It is that of :meth:`bnmonitor.runs.Run.to_frame` of the run in :attr:`log_dir`, as far as it was written;
        without one the table of the window, in which the number of a layer is the mean of its channels.

        Args:
            layer: Name of a layer, or a glob pattern of names; None: every layer.
            statistic: Of channels: a row for each step, and a column for each channel of each layer. None: every
                statistic of whole layers: a row for each step and layer.

        Raises:
            ImportError: pandas is not installed.
            KeyError: Nothing has that name; the message names the nearest one.
        """
        return runs.frame(self._recorded(), layer, statistic)

    def plot(self, layer: str | None = None, statistic: str | None = None, ax: Axes | None = None) -> Axes:
        """Draw a statistic, and return the axes; it needs matplotlib.

        The whole run is drawn where :attr:`log_dir` has it, as far as it was written; without one the window.

        Args:
            layer: Name of a layer: its channels as bands of percentiles. None: every layer as a line.
            statistic: With a layer one of ``batch_mean``, ``batch_var``, ``running_mean``, ``running_var``, ``gamma``
                and ``beta``, ``batch_var`` if None; without a layer one of whole layers, ``health`` if None (of the
                window ``batch_var``).
            ax: Axes to draw on; None: those of a new figure.

        Raises:
            ImportError: matplotlib is not installed.
            KeyError: Nothing has that name; the message names the nearest one.
        """
        return runs.plot(self._recorded(), layer, statistic, ax)

    def suggest_lr(self) -> RateSuggestion | None:
        """Return a learning rate for the next training, as :meth:`bnmonitor.runs.Run.suggest_lr` does.

        The whole run is looked at where :attr:`log_dir` has it, as far as it was written; without one the window.
        """
        return self._recorded().suggest_lr()

    def _recorded(self) -> runs.RunData:
        """The run as it is on the disk; the window where nothing is written."""
        run = recorded(self.log_dir)
        if run is not None:
            return run
        steps = self.steps
        losses = self._recorder.course.losses(list(steps))
        window = self.window()
        rates = () if window is None else window.facts.learning_rates[-len(steps) :]
        known = rates if len(rates) == len(steps) else ()
        return Live(self.layers, steps, losses, known, self.incidents, self.alerts, self.history)

    def __dir__(self) -> list[str]:
        return public(self)

    def __repr__(self) -> str:
        return f"<Monitor: {self.described}>"

    @property
    def described(self) -> str:
        """How many layers are watched, and the worst open incident, in a few words; it computes nothing."""
        if self.failure:
            return self.failure
        steps = self._recorder.steps
        at = f", step {steps[-1]}" if steps else ""
        return f"{count(len(self.layers), 'layer')}{at}, {worst_of(self.incidents) or 'no open incident'}"

    def _repr_html_(self) -> str:
        return runs.of_run(self._recorded())

    def window(self) -> Window | None:
        """Return what rules judge by, as it is after the last step.

        This runs no rule and changes nothing: the next check finds the same steps new, ``window.fresh`` of them.

        Returns:
            The statistics of the ``T`` steps that are kept, ``[T, C]`` per channel and ``[T, L]`` per layer on the CPU,
            with the baseline, the facts about the run, the ledger of updates and the latest sample; a copy that later
            steps do not change. ``C`` counts the channels of all layers end to end: those of layer ``i`` are
            ``window.batch_mean[:, window.layers.span(i)]``. None before the first step.
        """
        session = self._session
        window = None if session.failure else session.shielded(session.window, None)
        return None if window is None else window.snapshot()

    def summary(self, epoch: int | None = None) -> Summary:
        """Return the state of every layer now, as the console's table shows it."""
        return self._session.summary(epoch)

    def structure(self) -> Structure:
        """Return where each layer sits in the network, according to the autograd graphs of the sampled steps.

        Printed, the result is a tree with one line a layer: what feeds it and what reads it. For a layer that no graph
        showed, ``places[i].blind`` gives the reason.
        """
        return self._recorder.sampling.structure(self.layers.names)

    # -- what a training loop calls ------------------------------------------------------------------------------------

    def start(self) -> Monitor:
        """Start to watch, or start again; layers that were replaced in between are found."""
        try:
            self._session.begin()
            self._session.guard(running.note, self, idle=True)
            if self._keeper is not None and self.running:
                self._keeper.start()
            self.keep_state()
            return self
        except BaseException:  # Ctrl-C as well: `with` never reaches its end
            self._session.abandon()
            raise

    def step(self, global_step: int | None = None, *, loss: Tensor | float | None = None) -> None:
        """Record the training batch that has just ended.

        Args:
            global_step: The number of the step; None: one more than the last, from 0.
            loss: The loss of the batch, which incidents speak of; kept without waiting for its device.

        Raises:
            RuntimeError: The monitor was not started.
            TypeError: ``global_step`` is not an int, or ``loss`` is not one number.
            AlertError: An alert opened whose action is ``"raise"``.
        """
        if not self.running:
            raise RuntimeError("Monitor.step() was called before start(): write `with monitor:`, or call start() first")
        if global_step is not None:
            if isinstance(global_step, bool) or not hasattr(global_step, "__index__"):
                raise TypeError(f"global_step must be an int, or None to count calls, got {global_step!r}")
            global_step = index(global_step)  # NumPy's integers as well
            if global_step < 0:
                raise ValueError(f"global_step must be at least 0, or None to count calls, got {global_step!r}")
        check_loss(loss)
        if captures():
            self._session.refuse_capture()
            return
        number = self._recorder.number if global_step is None else global_step
        if self._keeper is not None:
            self._keeper.step(number)
        self._session.guard(self._session.step, number, loss)
        if self.rollback is not None:
            self._session.guard(self.rollback.step, number, self._recorder.count)

    @contextmanager
    def evaluation(self, phase: Phase = "validation") -> Iterator[None]:
        """Treat the forwards inside as an evaluation, not as training.

        Args:
            phase: ``"validation"``, ``"test"``, ``"predict"`` or ``"sanity"``.

        Raises:
            ValueError: The phase is not one of these.
        """
        self.begin_evaluation(phase)
        try:
            yield
        finally:
            self.end_evaluation()

    def begin_evaluation(self, phase: Phase = "validation") -> None:
        """Begin an :meth:`evaluation` where a context manager does not fit."""
        if phase not in _PHASES:
            known = ", ".join(map(repr, _PHASES))
            raise ValueError(f"the phase of an evaluation must be {known}, got {phase!r}{nearest(str(phase), _PHASES)}")
        self._session.begin_evaluation(phase)

    def end_evaluation(self) -> None:
        """End the evaluation that :meth:`begin_evaluation` began."""
        self._session.end_evaluation()

    def end_epoch(self, epoch: int | None = None) -> None:
        """Run the rules on the steps that are left, and pass the state to the sinks."""
        self._session.guard(self._session.end_epoch, epoch)

    def close(self, *, wait: bool = True) -> None:
        """Run the rules on the steps that are left, pass the summary to the sinks, and remove all hooks.

        A second call does nothing.

        Args:
            wait: Whether to wait a few seconds for what other processes still send. A process that fails should not
                wait: the others notice the failure only after it has ended.
        """
        try:
            self._session.close(wait=wait)
        finally:
            if self._keeper is not None:
                self._keeper.close()

    def __enter__(self) -> Monitor:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close(wait=kind is None)
        except AlertError:
            if kind is None:
                raise
        finally:
            self._session.recorder.end()  # again, if Ctrl-C came while it was closed

    # -- what an adapter such as the Lightning callback calls ----------------------------------------------------------

    def connect(self, **run: Any) -> None:
        """Set fields of the :class:`bnmonitor.sinks.Run` that the sinks get; call it before :meth:`start`."""
        if "log_dir" in run:
            run["log_dir"] = as_folder(run["log_dir"])
        self._session.connect(**run)

    def watch_optimizers(self, optimizers: Optimizer | Sequence[Optimizer] | None) -> None:
        """Set the optimizers, if they are created later than the monitor."""
        self._session.use_optimizers(as_optimizers(optimizers))

    def watch_model(self, name: str, model: nn.Module) -> None:
        """Watch a further model, such as an average of the weights that was made after the monitor.

        The window begins again with the layers of all models; what is known of those so far is kept. Of a model whose
        name is taken, nothing is done.

        Args:
            name: The first part of its layers' names.
            model: The model.
        """
        self._session.guard(self._session.add_model, name, model, idle=True)

    def learn(self, **facts: Any) -> None:
        """Set facts about the training that were not known at construction, by the names of the arguments.

        A further one is ``batches``: how many batches an epoch takes from ``train_loader``. None changes nothing.
        """
        self._session.guard(partial(self._facts.update, **facts), idle=True)
        if self._keeper is not None and facts.get("train_loader") is not None:
            self._keeper.loader = facts["train_loader"]
            self._keeper.listen()

    def keep_state(self) -> None:
        """Keep the state before the next step for ``on_alert="rollback"``, after it was loaded."""
        if self.rollback is not None:
            self._session.guard(self.rollback.keep, self._recorder.number - 1, 0)

    def share_ranks(self, overwrites: Callable[[], bool] | nn.Module | None = None) -> None:
        """Let the processes that train together exchange their statistics at every logged step.

        Every process has to call this, after ``torch.distributed`` was set up and before the first step; after that no
        process waits for another. The Lightning callback calls it by itself.

        Args:
            overwrites: The ``DistributedDataParallel``, or a module that contains it, as Fabric's does; or a function
                that returns whether the next forward copies the buffers of the first process; None: it never does.
        """
        gather = self.settings.gather_affine
        self._recorder.peers.join(RankExchange(self.layers, overwrites, gather=gather))

    def saw_batch(self, batch: Any) -> None:
        """Take what the training step got, before :meth:`step`, for ``on_alert="save-batch"``.

        Without it, the arguments of the model's own forwards in the step are taken.
        """
        if self._keeper is not None:
            self._keeper.saw(batch)

    def saw_loss(self, loss: Any) -> None:
        """Read the autograd graph of a loss before its backward; needed only if the model's forward is not called."""
        self._session.guard(self._recorder.sampling.saw_loss, loss)

    def give_up(self, error: Exception) -> None:
        """Stop to watch because of an error in the adapter, and warn once; training goes on."""
        self._session.fail(error)

    def totals(self) -> dict[str, float]:
        """Return the numbers that a callback which stops or saves may watch; empty after bnmonitor has failed."""
        found: dict[str, float] = {}
        self._session.guard(lambda: found.update(totals(self.summary())), idle=True)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return counters, baselines and alerts as plain types and tensors; after a failure, its reason alone."""
        found = self._session.state_dict()
        done = {} if self.rollback is None else dict(self.rollback.done)
        return {**found, "rollbacks": done} if done else found

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned.

        A damaged state, one of another version, or one that was saved after a failure is refused with a warning, and
        the record begins anew.

        Raises:
            ValueError: The state is not one of :meth:`state_dict`.
        """
        if not ({"watch", "book"} <= set(state) or {"version", "failure"} <= set(state)):
            raise ValueError(
                f"the state is not one of Monitor.state_dict(), it has {sorted(map(str, state)) or 'nothing'}"
            )
        doubt = self._session.doubt(state)
        if doubt:
            warn(f"the checkpoint's state of bnmonitor is not continued, the record begins anew: {doubt}")
        else:
            self._session.load_state_dict(state)
            if self.rollback is not None:
                self.rollback.resume(state.get("rollbacks"))
                self.keep_state()


running: Running[Monitor] = Running()
"""For what watches a process from outside: it leaves alone what a monitor watches already."""


def _default_sinks(log_dir: Path | None) -> list[Sink]:
    return [Console(), *([TensorBoard(log_dir)] if log_dir is not None else [])]
