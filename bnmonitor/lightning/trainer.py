"""What a Lightning Trainer is asked to do when an alert opens, and what its other callbacks may watch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bnmonitor.monitor import Monitor, OneAction
from bnmonitor.results import Alert, Severity

MOST_CHECKPOINTS = 5
"""Checkpoints that alerts may save."""


class TrainerActions:
    """Stops the Trainer, saves checkpoints and publishes metrics: in every process of a training at the same step.

    Args:
        actions: The actions by severity.
        every: Batches between two decisions of several processes.
    """

    def __init__(self, actions: Mapping[Severity, tuple[OneAction, ...]], every: int) -> None:
        self._given, self._every = actions, every
        self._words = {action for several in actions.values() for action in several if isinstance(action, str)}
        self._batches = self._saved = 0
        self._save = False
        self._published: list[tuple[str, Severity]] | None = None

    @property
    def saves(self) -> bool:
        """Whether an alert may save a checkpoint."""
        return "checkpoint" in self._words

    @property
    def actions(self) -> dict[str, list[OneAction]]:
        """The actions for a monitor, which knows no Trainer: ``"checkpoint"`` has become a callable."""
        return {
            str(severity): [self._want_checkpoint if action == "checkpoint" else action for action in several]
            for severity, several in self._given.items()
        }

    def _want_checkpoint(self, alert: Alert) -> None:
        self._save |= not alert.code.startswith("BN0")  # which are about bnmonitor itself

    def batch_ended(self, trainer: Any, monitor: Monitor) -> None:
        """Act, and publish where something has changed."""
        self._batches += 1
        self.act(trainer, monitor, due=self._batches % self._every == 0)
        if trainer.is_last_batch or (trainer.world_size == 1 and self._published != _open(monitor)):
            self.publish(trainer, monitor)

    def act(self, trainer: Any, monitor: Monitor, *, due: bool = True) -> None:
        """Stop or save a checkpoint, if an alert has asked for it; several processes only where it is ``due``."""
        stop, save = monitor.should_stop, self._save
        if trainer.world_size > 1:
            # Only the first process judges, and all have to do it at the same step. They count the same batches.
            stop = due and "stop" in self._words and trainer.strategy.reduce_boolean_decision(stop, all=False)
            save = due and self.saves and trainer.strategy.reduce_boolean_decision(save, all=False)
        if stop:
            trainer.should_stop = True
        if save:
            self._save = False
            if self._saved < MOST_CHECKPOINTS and not trainer.fast_dev_run:
                self._saved += 1
                folder = Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints"
                trainer.save_checkpoint(folder / f"bnmonitor-step={step_number(trainer)}.ckpt")

    def publish(self, trainer: Any, monitor: Monitor) -> None:
        """Let EarlyStopping and ModelCheckpoint see the totals."""
        self._published = _open(monitor)
        values = monitor.totals()
        if trainer.world_size > 1:
            values = trainer.strategy.broadcast(values)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})


def step_number(trainer: Any) -> int:
    """The number that Lightning itself logs under; with several optimizers ``global_step`` runs ahead of it."""
    loop = getattr(trainer.fit_loop, "epoch_loop", None)
    number = getattr(loop, "_batches_that_stepped", trainer.global_step)
    return int(number)


def _open(monitor: Monitor) -> list[tuple[str, Severity]]:
    return [(alert.code, alert.severity) for alert in monitor.alerts if alert.state == "open"]
