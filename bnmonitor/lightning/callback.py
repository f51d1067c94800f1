"""The Lightning callback: each hook makes one or two calls to a Monitor."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bnmonitor._html import block, plain
from bnmonitor.context import RunFacts
from bnmonitor.layers import own_forwards
from bnmonitor.lightning.base import CallbackBase
from bnmonitor.lightning.harmless import harmless
from bnmonitor.lightning.loss import loss_of
from bnmonitor.lightning.mailbox import Mailbox, at_process_end, packed, unpacked
from bnmonitor.lightning.private import (
    averages_without_buffers,
    converts_to_sync_batchnorm,
    launches_processes,
    steps_taken,
)
from bnmonitor.lightning.progress_bar import beside_bar, inside_bar
from bnmonitor.lightning.trainer import TrainerActions
from bnmonitor.limits import FLIGHT_BYTES
from bnmonitor.monitor import Action, AlertError, BatchNormWarning, Monitor, Phase, RefusedError, Settings, warn
from bnmonitor.results import Alert, Incident, RateSuggestion
from bnmonitor.rules import Rule, Thresholds
from bnmonitor.sinks import Console, Loggers, Sink, TensorBoard
from bnmonitor.summary import Summary

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

logger = logging.getLogger("bnmonitor")

_Fit = tuple[Any, Monitor, Any, bool]
"""A fit that waits for another within it to end: its Trainer, monitor and module, and whether this process judges."""


class BatchNormMonitor(CallbackBase):
    """Watches every BatchNorm layer of the model that a Lightning Trainer fits.

    Works with the Trainer of ``lightning.pytorch`` and of ``pytorch_lightning``::

        Trainer(callbacks=[BatchNormMonitor()])

    Args:
        check_every_n_steps: Run the rules every so many steps; once the window is full and while nothing is new, at
            one of five such times. Each run looks at all steps since the last.
        log_every_n_steps: Write a frame to the sinks every so many steps; None: the Trainer's cadence; 0: never.
        sample_every_n_steps: Take activation statistics on the first step and then every so many steps; 0: never.
        window: Steps kept at full resolution.
        probe: Allow rules that need an extra forward on a kept batch at the start of a validation.
        gather_affine: Under FSDP2 (fully_shard), where each process holds a part of gamma and beta, gather them at log
            steps, for the rules and tables that need them whole.
        flight_bytes: Most bytes of the flight record, which keeps every channel of the whole run beside the history;
            0: none is written.
        max_overhead: Part of the training's time that the monitor may take, such as 0.01 for 1 %; beyond that, and ten
            seconds, it checks and samples less often, never less than once a window. None: no limit.
        include: Glob patterns over layer names; a layer is watched if one matches.
        exclude: Glob patterns; a layer is not watched if one matches.
        select: Rules to run: codes, prefixes, names, "default" or "all".
        ignore: Rules to leave out, in the same words.
        rules: Own rules, or thresholds by rule, such as {"small-batch": {"warn_below": 8}}.
        on_alert: "log", "warn", "stop" (ask the Trainer to stop), "raise", "checkpoint" (save one now), "rollback"
            (back to the last calm state, at a lower rate where that is the fix), "save-batch" (the batch at which it
            began, next to the black boxes), "wandb", or a callable that takes the alert, such as
            a bnmonitor.notify.Webhook; a list of these; or a mapping of them by severity. Without a mapping, words
            leave infos to the log. None: "warn" (in the console; without one, a Python warning), or nothing with
            sinks=[].
        sinks: Where alerts and summaries go; None: to the Trainer's loggers and the console; []: nowhere, in silence.

    Raises:
        ValueError: An argument has a value that is not accepted; the message says which values are.
        TypeError: An argument has the wrong type.
    """

    gave_up = False
    """Whether an error in the callback has ended the watch of this fit."""

    def __init__(
        self,
        *,
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
        super().__init__()
        self.settings = Settings.of(locals())
        self._actions = TrainerActions(self.settings)
        self._monitor: Monitor | None = None
        self._own_forwards: dict[str, str] = {}
        self._module: Any = None
        self._state: dict[str, Any] | None = None
        self._judges = True
        self._trainer: Any = None
        self._outer: list[_Fit] = []
        self._known: tuple[Alert, ...] = ()
        self._known_incidents: tuple[Incident, ...] = ()
        self._mailbox = Mailbox()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to the process: the monitor, which holds the model, and the Trainer."""
        here: dict[str, Any] = {
            "_monitor": None,
            "_module": None,
            "_trainer": None,
            "_outer": [],
            "_known": self.alerts,
            "_known_incidents": self.incidents,
        }
        return {**vars(self), **here}

    @property
    def monitor(self) -> Monitor:
        """The monitor behind the callback.

        Raises:
            RuntimeError: Neither a fit nor an evaluation has begun yet.
        """
        self._hear()
        if self._monitor is None:
            raise RuntimeError("BatchNormMonitor.monitor exists after a fit has begun: call trainer.fit(...) first")
        return self._monitor

    @property
    def alerts(self) -> tuple[Alert, ...]:
        """Every alert so far; none before the first fit. A pickled copy keeps them.

        After a fit in spawned processes, as with ``strategy="ddp_spawn"``, these are the alerts of the first of them,
        and :attr:`monitor` holds its record.
        """
        self._hear()
        return self._known if self._monitor is None else self._monitor.alerts

    @property
    def incidents(self) -> tuple[Incident, ...]:
        """Every incident so far; none before the first fit. A pickled copy keeps them, as :attr:`alerts` does."""
        self._hear()
        return self._known_incidents if self._monitor is None else self._monitor.incidents

    def summary(self) -> Summary:
        """Return the state of every layer now, as :meth:`bnmonitor.Monitor.summary` does.

        Raises:
            RuntimeError: Neither a fit nor an evaluation has begun yet.
        """
        return self.monitor.summary()

    def history(self, layer: str, statistic: str) -> Tensor:
        """Return a statistic of a layer over the window, as :meth:`bnmonitor.Monitor.history` does.

        Raises:
            KeyError: The layer or the statistic does not exist.
            RuntimeError: Neither a fit nor an evaluation has begun yet.
        """
        return self.monitor.history(layer, statistic)

    def to_frame(self, layer: str | None = None, statistic: str | None = None) -> pandas.DataFrame:
        """Return a table of the run, as :meth:`bnmonitor.Monitor.to_frame` does."""
        return self.monitor.to_frame(layer, statistic)

    def plot(self, layer: str | None = None, statistic: str | None = None, ax: Axes | None = None) -> Axes:
        """Draw a statistic, and return the axes, as :meth:`bnmonitor.Monitor.plot` does."""
        return self.monitor.plot(layer, statistic, ax)

    def suggest_lr(self) -> RateSuggestion | None:
        """Return a learning rate for the next training, as :meth:`bnmonitor.Monitor.suggest_lr` does."""
        return self.monitor.suggest_lr()

    def __repr__(self) -> str:
        try:  # a Trainer asks its callbacks for it
            said = "no fit yet" if self._monitor is None else self._monitor.described
            return f"<BatchNormMonitor: {said}>"
        except Exception:
            return object.__repr__(self)

    def _repr_html_(self) -> str:
        return block(plain(repr(self))) if self._monitor is None else self._monitor._repr_html_()

    @property
    def state_key(self) -> str:
        """Distinguishes two monitors with different patterns in one Trainer."""
        return self._generate_state_key(include=list(self.settings.include), exclude=list(self.settings.exclude))

    # -- hooks ---------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Note the forwards that a conversion to SyncBatchNorm, which follows this hook, would drop."""
        self.gave_up = False
        self._note_forwards(trainer, pl_module)

    @harmless
    def _note_forwards(self, trainer: Any, pl_module: Any) -> None:
        self._own_forwards = own_forwards(pl_module.named_modules())

    @harmless
    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Find the layers, after the model was built, moved and converted, and start to watch."""
        if self._trainer is not trainer and self._monitor is not None and self._monitor.running:
            # A fit within a fit: the outer one goes on with its own monitor afterwards.
            self._outer.append((self._trainer, self._monitor, self._module, self._judges))
            self._monitor = self._module = None
        self._trainer = trainer
        monitor = self._ready(trainer, pl_module, fresh=self._state is not None)
        monitor.should_stop = False
        monitor.watch_optimizers(trainer.optimizers)
        grouped = torch.distributed.is_available() and torch.distributed.is_initialized()
        # FSDP2 splits parameters for a single process as well, which then holds all of them.
        if trainer.world_size > 1 or (self.settings.gather_affine and grouped):
            monitor.share_ranks(getattr(trainer.model, "will_sync_module_buffers", None))
        monitor.start()

    @harmless
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Read the optimizers, the loaders and the scaler, which are complete when training begins."""
        self.monitor.watch_optimizers(trainer.optimizers)
        self.monitor.learn(scaler=getattr(trainer.precision_plugin, "scaler", None), **_loaders(trainer))
        self.monitor.learn(
            own_forwards=self._own_forwards,
            converts=converts_to_sync_batchnorm(trainer),
            averages_without_buffers=averages_without_buffers(trainer),
        )
        self._actions.publish(trainer, self.monitor)
        self._actions.began(trainer, self.monitor)

    @harmless
    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Read what another callback or a data module has changed between epochs."""
        accumulate = max(1, int(trainer.accumulate_grad_batches))
        self.monitor.learn(accumulate_grad_batches=accumulate, **_loaders(trainer))

    @harmless
    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """Let the monitor read the autograd graph of a sampled step."""
        self.monitor.saw_loss(loss)

    @harmless
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Record the batch that has just ended."""
        self.monitor.saw_batch(batch)
        try:
            self.monitor.step(steps_taken(trainer), loss=loss_of(outputs, trainer))
        finally:
            self._actions.batch_ended(trainer, self.monitor)

    @harmless
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Run the rules on the steps that are left, and pass the state to the sinks."""
        self.monitor.end_epoch(trainer.current_epoch)
        self._actions.act(trainer, self.monitor)
        self._actions.publish(trainer, self.monitor)

    @harmless
    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin a validation in the monitor."""
        monitor = self._evaluating(trainer, pl_module, "validation")
        if trainer.state.fn == "fit":
            self._actions.act(trainer, monitor)
            self._actions.publish(trainer, monitor)

    @harmless
    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin a test in the monitor."""
        self._evaluating(trainer, pl_module, "test")

    @harmless
    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin a prediction in the monitor."""
        self._evaluating(trainer, pl_module, "predict")

    @harmless
    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """End the evaluation in the monitor."""
        if self._monitor is not None:
            self._monitor.end_evaluation()

    on_test_end = on_predict_end = on_validation_end

    @harmless
    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the monitor: pass the summary to the sinks and remove all hooks."""
        self._close()
        self._actions.act(trainer, self.monitor)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Close the monitor after an exception or Ctrl-C, which an ``AlertError`` must not replace."""
        with suppress(AlertError):
            self._end(trainer, wait=False)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Close the monitor if neither of the two hooks before was called."""
        self._end(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Return the monitor's state for the checkpoint, as plain types and tensors."""
        if self._state is not None or self._monitor is None:
            return self._state or {}
        return self._monitor.state_dict()

    def give_up(self, error: Exception) -> None:
        """End the watch of this fit because of an error, and warn once."""
        self.gave_up = True
        if self._monitor is not None:
            self._monitor.give_up(error)
        else:
            warn(f"bnmonitor stopped watching, training goes on: {type(error).__name__}: {error}")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state of a checkpoint until the fit begins; in a fit, load it (a learning rate finder restores)."""
        if self._monitor is not None and self._monitor.running:
            if state_dict:
                self._load(self._monitor, state_dict)
        else:
            self._state = state_dict or None

    # -- the parts -----------------------------------------------------------------------------------------------------

    def _ready(self, trainer: Any, pl_module: Any, *, fresh: bool) -> Monitor:
        """The monitor of this module, with the Trainer's loggers; a new one if the module is new, or if ``fresh``."""
        if self._monitor is None or self._module is not pl_module or fresh:
            self._monitor, self._module = self._make(trainer, pl_module), pl_module
            self._judges = trainer.is_global_zero
            if self._state is not None:
                self._load(self._monitor, self._state)
            if self._mailbox.is_away:
                at_process_end(partial(self._ended, trainer))
        self._state = None
        loggers = [] if trainer.fast_dev_run or not trainer.is_global_zero else list(trainer.loggers)
        where = trainer.log_dir if trainer.loggers else None
        self._monitor.connect(
            loggers=loggers,
            emit=beside_bar(trainer),
            status=inside_bar(trainer),
            log_dir=where if loggers else None,
        )
        return self._monitor

    def _evaluating(self, trainer: Any, pl_module: Any, phase: Phase) -> Monitor:
        """Begin an evaluation and return the monitor; outside a fit the monitor starts here.

        A monitor from a fit before is kept, because it knows more than the checkpoint whose weights are evaluated now.
        """
        monitor = self._monitor
        if monitor is None or not monitor.running:
            with torch.inference_mode(False):  # the Trainer is in inference mode here
                monitor = self._ready(trainer, pl_module, fresh=False).start()
        monitor.begin_evaluation("sanity" if trainer.sanity_checking or trainer.fast_dev_run else phase)
        return monitor

    def _make(self, trainer: Any, pl_module: Any) -> Monitor:
        settings = self.settings
        if settings.log_every_n_steps is None:
            settings = replace(settings, log_every_n_steps=max(0, int(trainer.log_every_n_steps)))
        if not trainer.is_global_zero:
            # The first process runs the rules and writes; the others send it their statistics.
            action: Action = "rollback" if "rollback" in settings.words() else "log"  # which all of them do together
            settings = replace(settings, select=(), rules=None, on_alert=action, sinks=[])
        elif settings.sinks is None:
            settings = replace(settings, sinks=[TensorBoard(), Loggers(), Console()])
        facts = RunFacts(accumulate_grad_batches=max(1, int(trainer.accumulate_grad_batches)))
        words = {"checkpoint": self._actions.checkpoint}
        try:
            return Monitor.from_settings(pl_module, settings, facts=facts, words=words)
        except (ValueError, TypeError) as error:
            raise RefusedError(error) from error

    def _load(self, monitor: Monitor, state: dict[str, Any]) -> None:
        """Continue from a checkpoint; whatever it holds, the fit goes on."""
        try:
            monitor.load_state_dict(self._own(state))
        except BatchNormWarning:
            raise
        except Exception as error:
            message = "the checkpoint's state of bnmonitor is not continued, the record begins anew"
            warn(f"{message}: {type(error).__name__}: {error}")

    def _own(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state for this process: a checkpoint holds the window and the alerts of the first process only."""
        if self._judges or "failure" in state:
            return state
        return {**state, "watch": {**state["watch"], "window": None}, "book": self.monitor.state_dict()["book"]}

    def _end(self, trainer: Any, *, wait: bool = True) -> None:
        """Close the monitor, and go back to the fit that this one was within; an error ends neither of them."""
        try:
            self._close(wait=wait)
        except (AlertError, BatchNormWarning):
            raise
        except Exception as error:
            if not self.gave_up:
                self.give_up(error)
        finally:
            self._report(trainer)
            self._leave(trainer)

    def _leave(self, trainer: Any) -> None:
        if self._outer and trainer is self._trainer:
            self._trainer, self._monitor, self._module, self._judges = self._outer.pop()
            self.gave_up = False

    def _ended(self, trainer: Any) -> None:
        """Close and report at the end of a spawned process: Lightning calls no hook in it after an exception."""
        if self._monitor is not None and self._monitor.running:
            with suppress(AlertError):
                self._close(wait=False)
            self._report(trainer)

    def _report(self, trainer: Any) -> None:
        """Send the record to the process that has spawned this one; without it, the training has ended all the same."""
        try:
            away = trainer.is_global_zero and self._mailbox.is_away and launches_processes(trainer)
            if away and self._monitor is not None:
                self._mailbox.send(packed(self._monitor, self._module))
        except Exception as error:
            logger.warning("bnmonitor cannot report to the process that started this one: %s", error)

    def _hear(self) -> None:
        """Take in the record of a fit that ran in spawned processes."""
        try:
            sent = self._mailbox.receive()
        except Exception as error:
            logger.warning("bnmonitor cannot read what the spawned process has reported: %s", error)
            return
        if sent is not None:
            self._known, record = sent
            self._monitor, self._module = unpacked(record, self.settings), None

    def _close(self, *, wait: bool = True) -> None:
        if self._monitor is not None:
            self._monitor.close(wait=wait)


def _loaders(trainer: Any) -> dict[str, Any]:
    """The facts about the loaders, by name, for :meth:`Monitor.learn`."""
    return {
        "train_loader": trainer.train_dataloader,
        "val_loader": trainer.val_dataloaders,
        "batches": trainer.num_training_batches,
    }
