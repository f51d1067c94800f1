"""The adapter to the models and trainers of Ultralytics: YOLO, RT-DETR and their like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from bnmonitor.integrations.watch import Watch, Watching, harmless


class BatchNormCallback(Watching):
    """Watches every BatchNorm layer of a model that Ultralytics trains, and of the average that it validates.

    ::

        model = YOLO("yolo11n.yaml")
        BatchNormCallback().attach(model)

    A step is a batch, also where several of them are accumulated. A training on several devices runs in processes of
    its own, which know no callbacks of this one: it is not watched.

    Args:
        log_dir: The directory for the history; None: the trainer's ``save_dir``.
        settings: The arguments that :class:`bnmonitor.Monitor` shares with the Lightning callback.

    Raises:
        TypeError: An argument has a name or a type that is not accepted.
        ValueError: An argument has a value that is not accepted.
    """

    def __init__(self, *, log_dir: str | Path | None = None, **settings: Any) -> None:
        self.watch = Watch(log_dir, settings)
        self._stepped = False
        self._hook: Any = None
        self._trainer: Any = None

    def __deepcopy__(self, memo: dict[int, Any]) -> BatchNormCallback:
        """Ultralytics copies callbacks with the model that they belong to: they all tell this one."""
        return self

    def attach(self, model: Any) -> BatchNormCallback:
        """Listen to a model or a trainer of Ultralytics; return the callback.

        Args:
            model: What has ``add_callback``.
        """
        for event in (
            "on_train_start",
            "on_train_batch_start",
            "on_train_batch_end",
            "on_train_epoch_end",
            "on_val_start",
            "on_val_end",
            "on_train_end",
        ):
            model.add_callback(event, getattr(self, event))
        return self

    @harmless
    def on_train_start(self, trainer: Any) -> None:
        """Begin to watch, when the optimizer and the average have been made."""
        self._let_go()
        model = getattr(trainer.model, "module", trainer.model)
        average = getattr(getattr(trainer, "ema", None), "ema", None)
        models = {"": model, "ema": average} if isinstance(average, nn.Module) else model
        self.watch.begin(
            models,
            trainer.optimizer,
            log_dir=Path(trainer.save_dir),
            train_loader=trainer.train_loader,
            val_loader=getattr(trainer, "test_loader", None),
            accumulate_grad_batches=max(1, int(getattr(trainer, "accumulate", 1))),
        )
        # The gradients are zeroed, and the average is moved, before the next event.
        self._hook = trainer.optimizer.register_step_post_hook(self._optimized)
        self._trainer = trainer

    @harmless
    def on_train_batch_start(self, trainer: Any) -> None:
        """A batch begins."""
        self._stepped = False

    @harmless
    def on_train_batch_end(self, trainer: Any) -> None:
        """Record a batch that no step of the optimizer followed, and stop if an alert asked for it."""
        if not self._stepped:
            self._step()
        if self.watch.should_stop:
            trainer.stop = True

    @harmless
    def on_train_epoch_end(self, trainer: Any) -> None:
        """Run the rules on the steps that are left."""
        self.watch.ends_epoch(int(trainer.epoch))

    @harmless
    def on_val_start(self, validator: Any) -> None:
        """Begin a validation within the training; one of a saved model is of another."""
        if getattr(validator, "training", False):
            self.watch.evaluates()

    @harmless
    def on_val_end(self, validator: Any) -> None:
        """End the validation."""
        self.watch.trains()

    @harmless
    def on_train_end(self, trainer: Any) -> None:
        """Close the monitor: pass the summary to the sinks and remove all hooks."""
        self._let_go()
        self.watch.close()

    @harmless
    def _optimized(self, *_: Any) -> None:
        if not self._stepped:
            self._step()

    def _step(self) -> None:
        self._stepped = True
        self.watch.step(loss=getattr(self._trainer, "loss", None))

    def _let_go(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._hook = self._trainer = None
