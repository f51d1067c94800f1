"""Optuna: a trial that is ill is pruned, because nothing that it reaches says anything about its parameters."""

from __future__ import annotations

from typing import Any, Literal

from bnmonitor._text import nearest
from bnmonitor.lightning import BatchNormMonitor, CallbackBase
from bnmonitor.monitor import Monitor
from bnmonitor.results import Severity, still_open

try:
    import optuna
except ImportError as error:
    raise ImportError("bnmonitor.integrations.optuna needs Optuna: pip install optuna") from error

_LEVELS = ("warning", "error")


class PruneIll(CallbackBase):
    """Prunes a trial when an incident is open in its training.

    With Lightning, as a callback beside the monitor, it prunes at the batch at which the incident opens::

        Trainer(callbacks=[BatchNormMonitor(), PruneIll(trial)])

    In a loop of your own, where you call it::

        PruneIll(trial).check(monitor)

    The trial gets the user attributes ``bn_incident`` (the cause), ``bn_layer``, ``bn_since`` (the step) and
    ``bn_health`` (of the worst layer), which Optuna's dashboard shows.

    Args:
        trial: The trial.
        level: The least severity that prunes: "warning" or "error".

    Raises:
        ValueError: ``level`` is neither.
    """

    def __init__(self, trial: Any, *, level: Literal["warning", "error"] = "error") -> None:
        super().__init__()
        if level not in _LEVELS:
            raise ValueError(f"level must be 'warning' or 'error', got {level!r}{nearest(str(level), _LEVELS)}")
        self._trial, self._least = trial, Severity[level.upper()]

    def check(self, monitor: Monitor | BatchNormMonitor) -> None:
        """Prune the trial if an incident is open.

        Args:
            monitor: The monitor of the training, or the callback.

        Raises:
            optuna.TrialPruned: One is.
        """
        found = [each for each in still_open(monitor.incidents) if each.severity >= self._least]
        if not found:
            return
        worst = found[0]
        attributes = {
            "bn_incident": worst.cause,
            "bn_layer": worst.layer or "",
            "bn_since": worst.first_step,
            "bn_health": float(monitor.summary().health),
        }
        for name, value in attributes.items():
            self._trial.set_user_attr(name, value)
        raise optuna.TrialPruned(" · ".join(filter(None, worst.lines())))

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Look for the monitor.

        Raises:
            ValueError: The Trainer has none.
        """
        self._monitor(trainer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Prune as soon as an incident opens."""
        if trainer.world_size == 1:
            self.check(self._monitor(trainer))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Prune at the end of an epoch, all processes together: only the first of them knows of incidents."""
        if trainer.world_size == 1:
            self.check(self._monitor(trainer))
            return
        pruned = ""
        try:
            self.check(self._monitor(trainer))
        except optuna.TrialPruned as error:
            pruned = str(error)
        pruned = trainer.strategy.broadcast(pruned)
        if pruned:
            raise optuna.TrialPruned(pruned)

    on_validation_end = on_train_epoch_end

    def _monitor(self, trainer: Any) -> BatchNormMonitor:
        for callback in trainer.callbacks:
            if isinstance(callback, BatchNormMonitor):
                return callback
        raise ValueError("PruneIll needs a BatchNormMonitor: Trainer(callbacks=[BatchNormMonitor(), PruneIll(trial)])")
