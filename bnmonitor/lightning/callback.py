"""The Lightning callback: each hook is a call or two on a Monitor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch

from bnmonitor.layers import own_forwards
from bnmonitor.lightning.base import CallbackBase
from bnmonitor.lightning.progress_bar import beside_bar, inside_bar
from bnmonitor.lightning.trainer import TrainerActions, step_number
from bnmonitor.monitor import Action, AlertError, Monitor, Phase, Settings
from bnmonitor.results import Alert
from bnmonitor.rules import Rule, Thresholds
from bnmonitor.sinks import Console, Loggers, Sink, TensorBoard, checked


class BatchNormMonitor(CallbackBase):
    """Watches every BatchNorm layer of the model that a Lightning Trainer fits.

    Works with the Trainer of ``lightning.pytorch`` and of ``pytorch_lightning``::

        Trainer(callbacks=[BatchNormMonitor()])

    Args:
        check_every_n_steps: Rules look at the window at this cadence; every step in it is looked at.
        log_every_n_steps: Cadence of frames to the sinks; None: the Trainer's; 0: never.
        sample_every_n_steps: Activation statistics on the first step and then at this cadence; 0: never.
        window: Steps kept at full resolution.
        probe: Allow rules that need an extra forward on a kept batch at the start of a validation.
        include: Glob patterns over layer names; a layer is watched if one matches.
        exclude: Glob patterns; a layer is not watched if one matches.
        select: Rules to run: codes, prefixes, names, "default" or "all".
        ignore: Rules to leave out, likewise.
        rules: Own rules, or thresholds by rule, such as {"small-batch": {"warn_below": 8}}.
        on_alert: "log", "warn", "stop" (ask the Trainer to stop), "raise", "checkpoint" (save one now), "wandb", or a
            callable that takes the alert, such as a bnmonitor.notify.Webhook; a list of these; or a mapping of them by
            severity. Without a mapping, words leave infos to the log.
        sinks: Where findings go; None: the Trainer's loggers and the console; []: nowhere.

    Raises:
        ValueError: An argument has a value it does not accept; the message says which it does.
        TypeError: An argument has the wrong type.
    """

    def __init__(
        self,
        *,
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
        on_alert: Action | Mapping[str, Action] = "warn",
        sinks: Sequence[Sink] | None = None,
    ) -> None:
        super().__init__()
        self._settings: dict[str, Any] = {
            "check_every_n_steps": check_every_n_steps,
            "log_every_n_steps": log_every_n_steps,
            "sample_every_n_steps": sample_every_n_steps,
            "window": window,
            "probe": probe,
            "include": include,
            "exclude": exclude,
            "select": select,
            "ignore": ignore,
            "rules": rules,
            "on_alert": on_alert,
        }
        self._answers = TrainerActions(Settings(**self._settings).actions(), check_every_n_steps)
        self._patterns = (list(include), list(exclude))
        self._sinks = None if sinks is None else checked(sinks)
        self._monitor: Monitor | None = None
        self._own_forwards: dict[str, str] = {}
        self._module: Any = None
        self._state: dict[str, Any] | None = None
        self._judges = True

    @property
    def monitor(self) -> Monitor:
        """The monitor behind the callback.

        Raises:
            RuntimeError: Neither a fit nor an evaluation has begun yet.
        """
        if self._monitor is None:
            raise RuntimeError("BatchNormMonitor.monitor is there once a fit has begun: call trainer.fit(...) first")
        return self._monitor

    @property
    def alerts(self) -> tuple[Alert, ...]:
        """Every alert so far; none before the first fit."""
        return () if self._monitor is None else self._monitor.alerts

    @property
    def state_key(self) -> str:
        """Lets two monitors with different patterns live in one Trainer."""
        return self._generate_state_key(include=self._patterns[0], exclude=self._patterns[1])

    # -- hooks ---------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Note what a conversion to SyncBatchNorm, which comes after this, would lose."""
        self._own_forwards = own_forwards(pl_module.named_modules())

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Find the layers, now that the model is built, moved and converted, and begin to watch."""
        monitor = self._ready(trainer, pl_module, fresh=self._state is not None)
        monitor.should_stop = False
        monitor.watch_optimizers(trainer.optimizers)
        if trainer.world_size > 1:
            monitor.share_ranks(getattr(trainer.model, "will_sync_module_buffers", None))
        monitor.start()
        if self._sinks is None and not trainer.loggers and trainer.is_global_zero:
            beside_bar(trainer)("BatchNorm: the Trainer has no logger, so findings go to the console only")

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Take the optimizers, the loaders and the scaler as they are once training begins."""
        self.monitor.watch_optimizers(trainer.optimizers)
        self.monitor.learn(scaler=getattr(trainer.precision_plugin, "scaler", None), **_loaders(trainer))
        self.monitor.learn(own_forwards=self._own_forwards, **_conversions(trainer))
        self._answers.publish(trainer, self.monitor)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Take what another callback or a data module has changed between epochs."""
        accumulate = max(1, int(trainer.accumulate_grad_batches))
        self.monitor.learn(accumulate_grad_batches=accumulate, **_loaders(trainer))

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """Let the monitor see the graph of a sampled step."""
        self.monitor.saw_loss(loss)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Look at the batch that has just ended."""
        try:
            self.monitor.step(step_number(trainer))
        finally:
            self._answers.batch_ended(trainer, self.monitor)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Show the state."""
        self.monitor.end_epoch(trainer.current_epoch)
        self._answers.act(trainer, self.monitor)
        self._answers.publish(trainer, self.monitor)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """What comes now is no training."""
        monitor = self._evaluating(trainer, pl_module, "validation")
        if trainer.state.fn == "fit":
            self._answers.act(trainer, monitor)
            self._answers.publish(trainer, monitor)

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        """Nor is this."""
        self._evaluating(trainer, pl_module, "test")

    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        """Nor is this."""
        self._evaluating(trainer, pl_module, "predict")

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """The evaluation is over."""
        if self._monitor is not None:
            self._monitor.end_evaluation()

    on_test_end = on_predict_end = on_validation_end

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Show the summary and leave no hook behind."""
        self._close()
        self._answers.act(trainer, self.monitor)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Do the same when the fit ends by an exception or Ctrl-C, which no alert may take the place of."""
        with suppress(AlertError):
            self._close(wait=False)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Do the same, should neither have been called."""
        self._close()

    def state_dict(self) -> dict[str, Any]:
        """Return the monitor's state for the checkpoint, as plain types and tensors."""
        if self._state is not None or self._monitor is None:
            return self._state or {}
        return self._monitor.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state from a checkpoint until the fit begins; in a fit, take it over (a finder restores there)."""
        if self._monitor is not None and self._monitor.running:
            if state_dict:
                self._monitor.load_state_dict(self._own(state_dict))
        else:
            self._state = state_dict or None

    # -- the parts -----------------------------------------------------------------------------------------------------

    def _ready(self, trainer: Any, pl_module: Any, *, fresh: bool) -> Monitor:
        """The monitor of this module, made anew if it is another one's or ``fresh``, and told where to write."""
        if self._monitor is None or self._module is not pl_module or fresh:
            self._monitor, self._module = self._make(trainer, pl_module), pl_module
            self._judges = trainer.is_global_zero
            if self._state is not None:
                self._monitor.load_state_dict(self._own(self._state))
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
        """The monitor, to which an evaluation begins; outside a fit it begins to watch.

        What it knows of the fit before is more than a checkpoint, whose weights are evaluated now, can tell.
        """
        monitor = self._monitor
        if monitor is None or not monitor.running:
            with torch.inference_mode(False):  # in which the Trainer is by now
                monitor = self._ready(trainer, pl_module, fresh=False).start()
        monitor.begin_evaluation("sanity" if trainer.sanity_checking or trainer.fast_dev_run else phase)
        return monitor

    def _make(self, trainer: Any, pl_module: Any) -> Monitor:
        settings = dict(self._settings)
        if settings["log_every_n_steps"] is None:
            settings["log_every_n_steps"] = max(0, int(trainer.log_every_n_steps))
        sinks: Sequence[Sink] = [TensorBoard(), Loggers(), Console()] if self._sinks is None else self._sinks
        if self._answers.saves:
            settings["on_alert"] = self._answers.actions
        if not trainer.is_global_zero:
            # The first process judges and writes; the others tell it what they see.
            sinks = []
            settings |= {"select": (), "rules": None, "on_alert": "log"}
        return Monitor(
            pl_module, sinks=sinks, accumulate_grad_batches=max(1, int(trainer.accumulate_grad_batches)), **settings
        )

    def _own(self, state: dict[str, Any]) -> dict[str, Any]:
        """What of a checkpoint's state is this process's: its window and its alerts are those of the first one."""
        if self._judges:
            return state
        return {**state, "watch": {**state["watch"], "window": None}, "book": self.monitor.state_dict()["book"]}

    def _close(self, *, wait: bool = True) -> None:
        if self._monitor is not None:
            self._monitor.close(wait=wait)


def _loaders(trainer: Any) -> dict[str, Any]:
    """What the Trainer knows of its loaders: the facts of a run by name."""
    return {
        "train_loader": trainer.train_dataloader,
        "val_loader": trainer.val_dataloaders,
        "batches": trainer.num_training_batches,
    }


def _conversions(trainer: Any) -> dict[str, bool]:
    """What the Trainer's plugins and callbacks do to the model: facts of a run by name."""
    # The strategy of a single device does not convert, but the next run may have more of them.
    sync = getattr(getattr(trainer, "_accelerator_connector", None), "_layer_sync", None)
    averages = [c for c in trainer.callbacks if any(k.__name__ == "WeightAveraging" for k in type(c).__mro__)]
    return {
        "converts": type(sync).__name__ == "TorchSyncBatchNorm",
        "averages_without_buffers": any(not getattr(c, "_use_buffers", True) for c in averages),
    }
