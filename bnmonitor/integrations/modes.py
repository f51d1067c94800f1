"""Tells an evaluation by the mode of the models that are called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from bnmonitor.layers import Hooks


class Modes:
    """Hooks on models that tell when they are called for an evaluation, and when for training again.

    Args:
        models: The models.
        evaluates: Called before each forward of a model that is in evaluation mode.
        trains: Called before each forward of a model that is in training mode.
    """

    def __init__(
        self, models: Sequence[nn.Module], *, evaluates: Callable[[], None], trains: Callable[[], None]
    ) -> None:
        self._evaluates, self._trains = evaluates, trains
        self._hooks = Hooks()
        for model in models:
            self._hooks.on_call(model, self._called)

    def remove(self) -> None:
        """Remove every hook."""
        self._hooks.remove()

    def _called(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        (self._trains if module.training else self._evaluates)()
