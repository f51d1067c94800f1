"""The wiring for plain PyTorch: who judges, and who is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from bnmonitor._text import nearest
from bnmonitor.context import RunFacts
from bnmonitor.distributed import RankExchange
from bnmonitor.layers import LayerTable
from bnmonitor.monitor.actions import AlertError, warn
from bnmonitor.monitor.session import Session
from bnmonitor.monitor.settings import WARN, Action, Settings, as_folder, as_models, as_optimizers
from bnmonitor.recording import Recorder
from bnmonitor.results import Alert
from bnmonitor.rules import Rule, Thresholds, check_patterns
from bnmonitor.sinks import Console, Sink, TensorBoard, checked, totals
from bnmonitor.summary import Summary
from bnmonitor.window import SERIES, RankStatistics, Sample, Structure, Window

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
        optimizer: The optimizer or optimizers; without, every parameter that requires a gradient counts as trained.
        log_dir: Where the history and the black boxes of errors go; None: not written.
        train_loader: The training loader, for rules that look at how batches are drawn.
        val_loader: The validation loader, likewise.
        accumulate_grad_batches: Micro-batches per optimizer step.
        scaler: The gradient scaler, for rules about skipped steps.
        check_every_n_steps: Rules look at the window at this cadence; every step in it is looked at.
        log_every_n_steps: Cadence of frames to the sinks; None: 50; 0: never.
        sample_every_n_steps: Activation statistics on the first step and then at this cadence; 0: never.
        window: Steps kept at full resolution.
        probe: Allow rules that need an extra forward on a kept batch at the start of a validation.
        include: Glob patterns over layer names; a layer is watched if one matches.
        exclude: Glob patterns; a layer is not watched if one matches.
        select: Rules to run: codes, prefixes, names, ``"default"`` or ``"all"``.
        ignore: Rules to leave out, likewise.
        rules: Own rules, or thresholds by rule: ``{"small-batch": {"warn_below": 8}}``; under ``"layers"`` a rule takes
            other thresholds for some layers: ``{"small-batch": {"layers": {"head.*": {"warn_below": 4}}}}``.
        on_alert: ``"log"``, ``"warn"`` (in the console; without one, a Python warning), ``"stop"``, ``"raise"``,
            ``"wandb"``, or a callable that takes the alert, such as a :class:`bnmonitor.notify.Webhook`; a list of
            these; or a mapping of them by severity. Without a mapping, words leave infos to the log.
        sinks: Where findings go; None: the console for alerts, and the history if ``log_dir`` is given; []: nowhere.

    Raises:
        ValueError: An argument has a value it does not accept; the message says which it does.
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
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        select: Sequence[str] = ("default",),
        ignore: Sequence[str] = (),
        rules: Sequence[Rule] | Mapping[str, Thresholds] | None = None,
        on_alert: Action | Mapping[str, Action] = WARN,
        sinks: Sequence[Sink] | None = None,
    ) -> None:
        self.settings = Settings(
            check_every_n_steps=check_every_n_steps,
            log_every_n_steps=log_every_n_steps,
            sample_every_n_steps=sample_every_n_steps,
            window=window,
            probe=probe,
            include=include,
            exclude=exclude,
            select=select,
            ignore=ignore,
            rules=rules,
            on_alert=on_alert,
        )
        if "checkpoint" in self.settings.words():
            raise ValueError(
                'on_alert="checkpoint" needs a Lightning Trainer, which knows what a checkpoint holds: '
                "in plain PyTorch pass a callable that saves"
            )
        self._facts = RunFacts(
            train_loader=train_loader,
            val_loader=val_loader,
            accumulate_grad_batches=accumulate_grad_batches,
            scaler=scaler,
        )
        self._recorder = Recorder(as_models(model), self.settings)
        if not self._recorder.waiting:
            check_patterns(self.settings.special_rules(), self.layers)
        folder = as_folder(log_dir)
        told = _default_sinks(folder) if sinks is None else checked(sinks)
        self._session = Session(self.settings, self._recorder, self._facts, told, folder)
        self._session.optimizers = as_optimizers(optimizer)
        if not self._session.watching:
            warn("the model has no BatchNorm layer: there is nothing to watch, training goes on without bnmonitor")

    # -- what it knows -------------------------------------------------------------------------------------------------

    @property
    def layers(self) -> LayerTable:
        """The layers under watch, in execution order once a step has been sampled."""
        return self._recorder.layers

    @property
    def alerts(self) -> tuple[Alert, ...]:
        """Every alert so far, in the order they opened; an index keeps its alert, whose state may change."""
        return tuple(self._session.book.alerts)

    @property
    def running(self) -> bool:
        """Whether it was started and not yet closed."""
        return self._session.running

    @property
    def should_stop(self) -> bool:
        """Set by ``on_alert="stop"``: the training loop should end."""
        return self._session.responder.should_stop

    @should_stop.setter
    def should_stop(self, value: bool) -> None:
        self._session.responder.should_stop = value

    @property
    def steps(self) -> tuple[int, ...]:
        """Numbers of the steps that :meth:`history` returns."""
        self._recorder.collect()
        return tuple(self._recorder.steps[-self.settings.window :])

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The newest samples of activations, one for each sampled step that is kept, the newest last.

        Each holds, per layer or channel, counts ``[L]`` (``calls``, ``size``, ``values``), the moments ``[C]`` of the
        layers' inputs and outputs (``input.mean``, ``output.kurtosis``), and more; see
        :class:`bnmonitor.window.Sample`. ``L`` counts the layers, ``C`` the channels of all layers end to end.
        """
        return tuple(self._recorder.samples)

    @property
    def black_boxes(self) -> tuple[Path, ...]:
        """Files with the whole window when an error opened; see :func:`bnmonitor.sinks.read_black_box`."""
        box = self._session.black_box
        return () if box is None else tuple(box.files)

    @property
    def ranks(self) -> RankStatistics | None:
        """What all processes had at the last step at which they told each other; None in a single process."""
        return self._recorder.peers.latest

    @property
    def skipped(self) -> dict[str, str]:
        """Rules whose needs are not met now, by name, with the reason; they run as soon as they are."""
        return self._session.skipped()

    def history(self, layer: str, statistic: str) -> Tensor:
        """Return a statistic of a layer over the window.

        Args:
            layer: Name of the layer.
            statistic: ``batch_mean``, ``batch_var``, ``running_mean``, ``running_var``, ``gamma``, ``beta``,
                ``gamma_grad``, ``beta_grad``, ``shift`` or ``ratio``, as described at
                :class:`bnmonitor.window.Window`; ``gamma_update`` or ``beta_update``, the change since the step before;
                or of sampled steps what :class:`bnmonitor.window.Moments` has with the side before it, such as
                ``input_skewness`` or ``output_max``, and ``input_between``.

        Returns:
            ``[steps, channels]`` on the CPU, a copy; NaN where a batch statistic could not be recovered, and on steps
            without a sample.

        Raises:
            KeyError: There is no such layer, or no such statistic.
        """
        if statistic not in SERIES:
            known = ", ".join(SERIES)
            raise KeyError(f"no statistic is named {statistic!r}{nearest(statistic, SERIES)}; there are {known}")
        self._recorder.collect()
        return self._recorder.rows(statistic, layer)[-self.settings.window :]

    def window(self) -> Window | None:
        """Return everything that rules judge by, as it is after the last step.

        This judges nothing and changes nothing: the next check finds the same steps new, ``window.fresh`` of them.

        Returns:
            The statistics, ``[T, C]`` per channel and ``[T, L]`` per layer on the CPU, of the ``T`` steps that are
            kept, with the baseline, the facts of the run, the ledger of updates and the latest sample; a copy that
            later steps do not change. ``C`` counts the channels of all layers end to end: those of layer ``i`` are
            ``window.batch_mean[:, window.layers.span(i)]``. None before the first step.
        """
        window = self._session.window()
        return None if window is None else window.snapshot()

    def summary(self, epoch: int | None = None) -> Summary:
        """Return how every layer is now: what the console's table shows."""
        return self._session.summary(epoch)

    def structure(self) -> Structure:
        """Return where each layer sits in the network, as the autograd graphs of the sampled steps told.

        Printed, it is a tree: a line a layer with what feeds it and what reads it. A layer that no graph showed says
        why in ``places[i].blind``.
        """
        return self._recorder.structure

    # -- what a training loop calls ------------------------------------------------------------------------------------

    def start(self) -> Monitor:
        """Begin to watch, or begin again; layers that were replaced since are found anew."""
        self._session.begin()
        return self

    def step(self, global_step: int | None = None) -> None:
        """Look at the training batch that has just ended.

        Args:
            global_step: The number of the step; None: the one after the last, from 0.

        Raises:
            RuntimeError: The monitor was not started.
            AlertError: An alert opened whose action is ``"raise"``.
        """
        if not self.running:
            raise RuntimeError("Monitor.step() was called before start(): write `with monitor:`, or call start() first")
        if global_step is not None:
            if isinstance(global_step, bool) or not isinstance(global_step, int):
                raise TypeError(f"global_step={global_step!r} must be an int, or None to count calls")
            if global_step < 0:
                raise ValueError(f"global_step={global_step!r} must be 0 or more, or None to count calls")
        self._session.guard(self._session.step, self._recorder.number if global_step is None else global_step)

    @contextmanager
    def evaluation(self, phase: Phase = "validation") -> Iterator[None]:
        """Say that what happens inside is an evaluation, not training.

        Args:
            phase: ``"validation"``, ``"test"``, ``"predict"`` or ``"sanity"``.

        Raises:
            ValueError: There is no such phase.
        """
        self.begin_evaluation(phase)
        try:
            yield
        finally:
            self.end_evaluation()

    def begin_evaluation(self, phase: Phase = "validation") -> None:
        """Enter :meth:`evaluation` where a context manager does not fit."""
        if phase not in _PHASES:
            known = ", ".join(map(repr, _PHASES))
            raise ValueError(f"evaluation phase {phase!r} is not known{nearest(str(phase), _PHASES)}; it takes {known}")
        self._session.begin_evaluation(phase)

    def end_evaluation(self) -> None:
        """Leave what :meth:`begin_evaluation` entered."""
        self._session.end_evaluation()

    def end_epoch(self, epoch: int | None = None) -> None:
        """Check what is still unchecked, and let the sinks show the state."""
        self._session.guard(self._session.end_epoch, epoch)

    def close(self, *, wait: bool = True) -> None:
        """Check what is still unchecked, show the summary, and leave no hook behind. May be called twice.

        Args:
            wait: Whether to wait, for a few seconds, for what other processes still tell. One that fails should not,
                as the others learn of it only when it has ended.
        """
        self._session.close(wait=wait)

    def __enter__(self) -> Monitor:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close(wait=kind is None)
        except AlertError:
            if kind is None:
                raise

    # -- what an adapter such as the Lightning callback calls ----------------------------------------------------------

    def connect(self, **run: Any) -> None:
        """Tell the sinks of the run: fields of :class:`bnmonitor.sinks.Run`, before :meth:`start`."""
        self._session.run |= run

    def watch_optimizers(self, optimizers: Optimizer | Sequence[Optimizer] | None) -> None:
        """Set the optimizers, where they are made later than the monitor."""
        self._session.optimizers = as_optimizers(optimizers)

    def learn(self, **facts: Any) -> None:
        """Take over facts of the run that were not known at construction, by the names of its arguments.

        Besides, ``batches`` is how many batches an epoch takes from ``train_loader``. What is None stays as it is.
        """
        self._session.guard(partial(self._facts.update, **facts), idle=True)

    def share_ranks(self, overwrites: Callable[[], bool] | nn.Module | None = None) -> None:
        """Let the processes that train together tell each other their statistics at every logged step.

        Every process has to call this, after ``torch.distributed`` was set up and before the first step; nobody waits
        for anybody in it later on. The Lightning callback calls it by itself.

        Args:
            overwrites: The ``DistributedDataParallel``, or what contains it, as Fabric's module does; or what says
                whether the coming forward takes over the buffers of the first process; None: it never does.
        """
        self._recorder.share_ranks(RankExchange(self.layers, overwrites))

    def saw_loss(self, loss: Any) -> None:
        """Look at the graph behind a loss, before its backward; of use where the model's own forward is not called."""
        self._session.guard(self._recorder.saw_loss, loss)

    def totals(self) -> dict[str, float]:
        """Return the few numbers that a stopping or saving callback may watch; none once watching has failed."""
        found: dict[str, float] = {}
        self._session.guard(lambda: found.update(totals(self.summary())), idle=True)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return counters, baselines and alerts as plain types and tensors."""
        return {"version": 1, "watch": self._recorder.state_dict(), "book": self._session.book.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned.

        Raises:
            ValueError: It is something else.
        """
        if not {"watch", "book"} <= set(state):
            raise ValueError(
                f"the state is not one of Monitor.state_dict(), it has {sorted(map(str, state)) or 'nothing'}"
            )
        self._recorder.load_state_dict(state["watch"])
        self._session.book.load_state_dict(state["book"])
        self._session.guard(self._recorder.begin)


def _default_sinks(log_dir: Path | None) -> list[Sink]:
    return [Console(), *([TensorBoard(log_dir)] if log_dir is not None else [])]
