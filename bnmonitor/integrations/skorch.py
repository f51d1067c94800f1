"""The adapter to the nets of skorch, and to what derives from them, such as braindecode's classifiers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from bnmonitor.integrations.watch import Watch, Watching, harmless, with_average

if TYPE_CHECKING:
    Callback = object
else:
    from skorch.callbacks import Callback


class BatchNormCallback(Watching, Callback):
    """Watches every BatchNorm layer of the module that a net of skorch fits.

    ::

        NeuralNetClassifier(Module, callbacks=[BatchNormCallback()])

    It may be cloned with its net, as a search over hyperparameters does: each copy watches its own training.

    Args:
        log_dir: The directory for the history; None: none is written.
        ema: An average of the weights that is evaluated, or what holds it; None: there is none.
        settings: The arguments that :class:`bnmonitor.Monitor` shares with the Lightning callback.

    Raises:
        TypeError: An argument has a name or a type that is not accepted.
        ValueError: An argument has a value that is not accepted.
    """

    def __init__(self, *, log_dir: str | Path | None = None, ema: Any = None, **settings: Any) -> None:
        self.log_dir, self.ema = log_dir, ema
        self._settings_ = tuple(settings)
        for name, value in settings.items():
            setattr(self, name, value)
        self.initialize()

    def _get_param_names(self) -> list[str]:
        return ["log_dir", "ema", *self._settings_]

    def initialize(self) -> BatchNormCallback:
        """Take the arguments as they are now: skorch may have set them anew."""
        self.watch = Watch(self.log_dir, {name: getattr(self, name) for name in self._settings_})
        return self

    @harmless
    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:  # noqa: N803
        """Begin to watch."""
        found = {name: getattr(net, f"{name}_", None) for name in getattr(net, "_modules", ("module",))}
        modules = {name: each for name, each in found.items() if isinstance(each, nn.Module)}
        alone = next(iter(modules.values())) if len(modules) == 1 else None
        names = getattr(net, "_optimizers", ("optimizer",))
        optimizers = [getattr(net, f"{name}_") for name in names if hasattr(net, f"{name}_")]
        self.watch.begin(modules if alone is None else with_average(alone, self.ema), optimizers)

    @harmless
    def on_batch_begin(self, net: Any, batch: Any = None, training: bool = False, **kwargs: Any) -> None:
        """Tell training from validation."""
        (self.watch.trains if training else self.watch.evaluates)()

    def on_batch_end(self, net: Any, batch: Any = None, training: bool = False, **kwargs: Any) -> None:
        """Record a training batch, and stop the fit if an alert asked for it."""
        if training:
            self._step(kwargs.get("loss"))
            if self.watch.should_stop and self.watch.running:
                raise KeyboardInterrupt  # as skorch's own callbacks end a fit

    @harmless
    def _step(self, loss: object) -> None:
        self.watch.step(loss=loss)

    @harmless
    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """End the validation, and run the rules on the steps that are left."""
        self.watch.trains()
        self.watch.ends_epoch(max(0, len(net.history) - 1))

    @harmless
    def on_train_end(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:  # noqa: N803
        """Close the monitor: pass the summary to the sinks and remove all hooks."""
        self.watch.close()
