"""The remedies as callbacks of a Lightning Trainer."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import DataLoader

from bnmonitor._text import nearest
from bnmonitor.layers import ROOT, norms
from bnmonitor.lightning import CallbackBase
from bnmonitor.remedies.freezing import freeze, thaw
from bnmonitor.remedies.recalibration import Forward, Recalibration, recalibrate

_WHEN = ("validation", "end")


class Recalibrate(CallbackBase):
    """Recalibrates before every validation, or once at the end of the fit: :func:`bnmonitor.remedies.recalibrate`.

    It leaves the random state as it was, so training continues with the same batches::

        Trainer(callbacks=[Recalibrate(max_batches=100)])

    Args:
        when: "validation" or "end".
        loader: Training data; None: the Trainer's training loader.
        forward: Runs the module on a batch. None: the module's own ``forward``, with the first element of a tuple or
            list, or the items of a mapping that it has parameters for.
        max_batches: Batches to take at most; None: all.
        include: Glob patterns over layer names; a layer is treated if one matches.
        exclude: Glob patterns; a layer is not treated if one matches.

    Raises:
        ValueError: ``when`` is neither.
    """

    def __init__(
        self,
        *,
        when: Literal["validation", "end"] = "validation",
        loader: Iterable[Any] | None = None,
        forward: Forward | None = None,
        max_batches: int | None = None,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if when not in _WHEN:
            raise ValueError(f"when={when!r} must be 'validation' or 'end'{nearest(str(when), _WHEN)}")
        self.last: Recalibration | None = None
        """The result of the last recalibration."""
        self._when, self._loader, self._forward = when, loader, forward
        self._max_batches, self._include, self._exclude = max_batches, include, exclude

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Recalibrate in a fit, except in the sanity check."""
        if self._when == "validation" and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._run(trainer, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Recalibrate once."""
        if self._when == "end":
            self._run(trainer, pl_module)

    def _run(self, trainer: Any, pl_module: Any) -> None:
        from pytorch_lightning.utilities.seed import isolate_rng

        given = trainer.train_dataloader if self._loader is None else self._loader
        with isolate_rng(), _separate(given) as loader, trainer.precision_plugin.forward_context():
            self.last = recalibrate(
                pl_module,
                (trainer.strategy.batch_to_device(batch) for batch in loader),
                forward=self._forward,
                max_batches=self._max_batches,
                include=self._include,
                exclude=self._exclude,
                progress=False,
            )


@contextmanager
def _separate(loader: Any) -> Iterator[Iterable[Any]]:
    """Yield a copy of the loader, so that reading it does not disturb an iteration of the training."""
    if not isinstance(loader, DataLoader):
        yield loader
        return
    separate = copy.copy(loader)
    separate._iterator = None  # workers that persist belong to the training
    inner = getattr(loader.batch_sampler, "sampler", None)
    owners = (loader, loader.sampler, loader.batch_sampler, inner)
    generators = {g for owner in owners if isinstance(g := getattr(owner, "generator", None), torch.Generator)}
    states = [(generator, generator.get_state()) for generator in generators]
    try:
        yield separate
    finally:
        for generator, state in states:
            generator.set_state(state)


class Freeze(CallbackBase):
    """Freezes normalization for the fit, or its first epochs: :func:`bnmonitor.remedies.freeze`.

    At the end of the fit all layers are as they were before::

        Trainer(callbacks=[Freeze(include=["backbone.*"])])

    Args:
        include: Glob patterns over layer names; a layer is frozen if one matches.
        exclude: Glob patterns; a layer is not frozen if one matches.
        affine: Freeze gamma and beta, too.
        until_epoch: The epoch that begins with the layers thawed; None: never. The optimizer must hold gamma and beta
            from the start.

    Raises:
        ValueError: ``until_epoch`` is not the number of an epoch.
    """

    def __init__(
        self,
        *,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        affine: bool = True,
        until_epoch: int | None = None,
    ) -> None:
        super().__init__()
        if until_epoch is not None and (isinstance(until_epoch, bool) or not isinstance(until_epoch, int)):
            raise ValueError(f"until_epoch={until_epoch!r} must be the number of an epoch, or None for never")
        self._include, self._exclude, self._affine, self._until = include, exclude, affine, until_epoch
        self._trained: list[nn.Parameter] = []

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Freeze before the model is wrapped: the wrapper looks at which parameters require a gradient."""
        if stage == "fit" and norms([pl_module]):
            self._freeze(pl_module)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Freeze the layers that were made or converted since ``setup``."""
        self._freeze(pl_module)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Thaw when epoch ``until_epoch`` begins."""
        if self._until is not None and trainer.current_epoch >= self._until:
            self._thaw(pl_module)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave everything as it was."""
        if stage == "fit":
            self._thaw(pl_module)

    def _freeze(self, pl_module: Any) -> None:
        training = {p for p in pl_module.parameters() if p.requires_grad}
        for name in freeze(pl_module, include=self._include, exclude=self._exclude, affine=self._affine):
            layer = pl_module.get_submodule("" if name == ROOT else name)
            self._trained += [p for p in layer.parameters(recurse=False) if p in training and not p.requires_grad]

    def _thaw(self, pl_module: Any) -> None:
        if norms([pl_module]):
            thaw(pl_module, include=self._include, exclude=self._exclude)
        for parameter in self._trained:  # a conversion in between drops hooks, and with them what they remember
            parameter.requires_grad_(True)
        self._trained = []
