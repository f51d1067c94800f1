"""The adapter to the models of pytorch-tabnet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnmonitor.integrations.watch import Watch, Watching, harmless

if TYPE_CHECKING:
    Callback = object
else:
    from pytorch_tabnet.callbacks import Callback


class BatchNormCallback(Watching, Callback):
    """Watches every BatchNorm layer of the network that a TabNet fits.

    ::

        TabNetClassifier().fit(X, y, callbacks=[BatchNormCallback()])

    TabNet normalizes parts of a batch (ghost batch normalization): the statistics of a step are the average of its
    parts, the last one weighted most.

    Args:
        log_dir: The directory for the history; None: none is written.
        settings: The arguments that :class:`bnmonitor.Monitor` shares with the Lightning callback.

    Raises:
        TypeError: An argument has a name or a type that is not accepted.
        ValueError: An argument has a value that is not accepted.
    """

    trainer: Any

    def __init__(self, *, log_dir: str | Path | None = None, **settings: Any) -> None:
        super().__init__()
        self.watch = Watch(log_dir, settings)

    @harmless
    def on_train_begin(self, logs: Any = None) -> None:
        """Begin to watch."""
        self.watch.begin(self.trainer.network, self.trainer._optimizer, by_mode=True)

    @harmless
    def on_batch_end(self, batch: int, logs: Any = None) -> None:
        """Record the batch that has just ended; its gradients are cleared when the next one begins."""
        self.watch.step(loss=(logs or {}).get("loss"))
        if self.watch.should_stop:
            self.trainer._stop_training = True

    @harmless
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """End the evaluation, and run the rules on the steps that are left."""
        self.watch.trains()
        self.watch.ends_epoch(int(epoch))

    @harmless
    def on_train_end(self, logs: Any = None) -> None:
        """Close the monitor: pass the summary to the sinks and remove all hooks."""
        self.watch.close()
