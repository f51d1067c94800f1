"""The adapter to the Learner of fastai."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from bnmonitor.integrations.watch import Watch, Watching, harmless, with_average

if TYPE_CHECKING:
    Callback = object

    class CancelFitException(Exception):  # noqa: N818 -- the library's name
        """The library's exception: it is not installed where types are checked."""
else:
    from fastai.callback.core import Callback, CancelFitException


class BatchNormCallback(Watching, Callback):
    """Watches every BatchNorm layer of the model that a Learner of fastai fits.

    ::

        Learner(dls, model, cbs=BatchNormCallback())

    The learning rate finder and predictions are not watched. Fits of one Learner go on in one record.

    Args:
        log_dir: The directory for the history; None: none is written.
        ema: An average of the weights that is evaluated, or what holds it; None: there is none.
        settings: The arguments that :class:`bnmonitor.Monitor` shares with the Lightning callback.

    Raises:
        TypeError: An argument has a name or a type that is not accepted.
        ValueError: An argument has a value that is not accepted.
    """

    learn: Any
    order = 55
    """After what scales gradients and keeps the losses, before the progress bar."""

    def __init__(self, *, log_dir: str | Path | None = None, ema: Any = None, **settings: Any) -> None:
        super().__init__()
        self.watch = Watch(log_dir, settings)
        self._ema = ema
        self._stepped = False

    @harmless
    def before_fit(self) -> None:
        """Begin to watch, unless this is no training, or not its first process."""
        learn = self.learn
        if hasattr(learn, "lr_finder") or hasattr(learn, "gather_preds") or _rank() != 0:
            return
        model = learn.model.module if isinstance(learn.model, nn.parallel.DistributedDataParallel) else learn.model
        self.watch.begin(
            with_average(model, self._ema),
            _Groups(learn),
            **dict(zip(("train_loader", "val_loader"), getattr(learn.dls, "loaders", ()), strict=False)),
        )

    @harmless
    def before_batch(self) -> None:
        """A batch begins."""
        self._stepped = False

    @harmless
    def after_step(self) -> None:
        """Record the batch after the optimizer's step, while its gradients are still there."""
        self._step()

    def after_batch(self) -> None:
        """Record a batch that no step of the optimizer followed, and stop the fit if an alert asked for it."""
        self._batch_ended()
        if self.watch.should_stop and self.watch.running:
            raise CancelFitException

    @harmless
    def _batch_ended(self) -> None:
        if getattr(self.learn, "training", False) and not self._stepped:
            self._step()

    @harmless
    def before_validate(self) -> None:
        """Begin a validation."""
        self.watch.evaluates()

    @harmless
    def after_validate(self) -> None:
        """End the validation."""
        self.watch.trains()

    @harmless
    def after_epoch(self) -> None:
        """Run the rules on the steps that are left."""
        self.watch.ends_epoch(getattr(self.learn, "epoch", None))

    @harmless
    def after_fit(self) -> None:
        """Close the monitor: pass the summary to the sinks and remove all hooks."""
        self.watch.close()

    def _step(self) -> None:
        self._stepped = True
        self.watch.step(loss=getattr(self.learn, "loss", None))


class _Groups:
    """The optimizer of a Learner by the names of PyTorch."""

    def __init__(self, learn: Any) -> None:
        self._learn = learn

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups, with learning rate and weight decay."""
        opt = self._learn.opt
        if not hasattr(opt, "param_lists"):
            return list(getattr(opt, "param_groups", []))
        decoupled = bool(getattr(opt, "decouple_wd", True))
        return [
            {
                "params": list(params),
                "lr": hyper.get("lr"),
                "weight_decay": hyper.get("wd", 0.0),
                "decoupled_weight_decay": decoupled,
            }
            for params, hyper in zip(opt.param_lists, opt.hypers, strict=False)
        ]


def _rank() -> int:
    from torch import distributed

    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
