"""What bnmonitor does to a Lightning Trainer when an alert opens, and the metrics that other callbacks can read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from bnmonitor.lightning.private import steps_taken
from bnmonitor.monitor import Monitor, Rollback, Settings
from bnmonitor.results import Alert, Severity

MOST_CHECKPOINTS = 5
"""How many checkpoints alerts may save in one run."""


class SaveCheckpoint:
    """The action ``"checkpoint"``: an alert asks for a checkpoint, and the Trainer saves it when the batch has ended.

    In a training of several processes only the first one has alerts, but all of them have to save together.
    """

    def __init__(self) -> None:
        self.wanted = False
        """Whether an alert asked for a checkpoint that was not saved yet."""
        self._saved = 0

    def __call__(self, alert: Alert) -> None:
        """Ask for a checkpoint."""
        self.wanted = True

    def save(self, trainer: Any) -> None:
        """Save the checkpoint, unless alerts have saved enough of them."""
        self.wanted = False
        if self._saved < MOST_CHECKPOINTS:
            self._saved += 1
            _save(trainer, "step")


def _save(trainer: Any, what: str) -> None:
    """Save a checkpoint into the directory of the run."""
    if not trainer.fast_dev_run:
        folder = Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints"
        trainer.save_checkpoint(folder / f"bnmonitor-{what}={steps_taken(trainer)}.ckpt")


class TrainerActions:
    """Stops the Trainer, saves checkpoints and publishes metrics, at the same step in every process.

    Args:
        settings: Says which actions alerts may ask for, and how often several processes agree on them.
    """

    def __init__(self, settings: Settings) -> None:
        self._words, self._every = settings.words(), settings.check_every_n_steps
        self.checkpoint = SaveCheckpoint()
        self._batches = 0
        self._published: list[tuple[str, Severity]] | None = None

    def began(self, trainer: Any, monitor: Monitor) -> None:
        """Keep the state that the training begins with, once a checkpoint has been loaded."""
        if monitor.rollback is not None:
            monitor.rollback.automatic = False
            monitor.rollback.further = lambda: _averages(trainer)
            monitor.keep_state()

    def batch_ended(self, trainer: Any, monitor: Monitor) -> None:
        """Stop or save if an alert asked for it, and publish the metrics if they may have changed."""
        self._batches += 1
        self.act(trainer, monitor, due=self._batches % self._every == 0)
        if trainer.is_last_batch or (trainer.world_size == 1 and self._published != _open(monitor)):
            self.publish(trainer, monitor)

    def act(self, trainer: Any, monitor: Monitor, *, due: bool = True) -> None:
        """Stop or save a checkpoint if an alert asked for it; several processes do so only when it is ``due``."""
        stop, save = monitor.should_stop, self.checkpoint.wanted
        if trainer.world_size > 1:
            # Only the first process runs the rules, and all of them have to act at the same step. They count the same
            # batches, so they reach this agreement together.
            agree = trainer.strategy.reduce_boolean_decision
            stop = due and "stop" in self._words and agree(stop, all=False)
            save = due and "checkpoint" in self._words and agree(save, all=False)
        if stop:
            trainer.should_stop = True
        if save:
            self.checkpoint.save(trainer)
        if monitor.rollback is not None:
            self._roll_back(trainer, monitor.rollback, due=due)

    def _roll_back(self, trainer: Any, rollback: Rollback, *, due: bool) -> None:
        """Go back if an alert asked for it, all processes together, and save where the training goes on from."""
        several = trainer.world_size > 1
        if not (
            due and trainer.strategy.reduce_boolean_decision(rollback.wanted, all=False) if several else rollback.wanted
        ):
            return
        plan = rollback.plan()
        if several:
            plan = trainer.strategy.broadcast(plan)
        if plan is not None and rollback.go(plan):
            _save(trainer, "rollback")

    def publish(self, trainer: Any, monitor: Monitor) -> None:
        """Put the totals into the metrics that EarlyStopping and ModelCheckpoint read."""
        self._published = _open(monitor)
        values = monitor.totals()
        if trainer.world_size > 1:
            values = trainer.strategy.broadcast(values)
        if _HEALTH in values:
            values = {**values, "bn_health": values[_HEALTH]}
        trainer.callback_metrics.update({name: torch.tensor(value, device="cpu") for name, value in values.items()})


_HEALTH = "bnmonitor/health"
"""The total that is there as ``bn_health`` as well, which can stand in the file name of a checkpoint."""


def _averages(trainer: Any) -> list[nn.Module]:
    """Averages of the weights, which callbacks keep as modules of their own."""
    kept = [value for callback in trainer.callbacks for value in vars(callback).values()]
    return [each for each in kept if isinstance(each, nn.Module) and each is not trainer.lightning_module]


def _open(monitor: Monitor) -> list[tuple[str, Severity]]:
    return [(alert.code, alert.severity) for alert in monitor.alerts if alert.state == "open"]
