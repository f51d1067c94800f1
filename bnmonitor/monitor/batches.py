"""The action ``"save-batch"``: keeps the training batch of the step at which an incident began."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bnmonitor.history.schema import BOXES
from bnmonitor.monitor.indices import IndexListener
from bnmonitor.results import Alert

MOST_BATCHES = 5
"""How many batches alerts may save in one run."""

MOST_CALLS = 8
"""Forwards of the model that are kept of one step."""


class BatchKeeper:
    """Remembers the batches of the last steps, without a copy, and saves one to a file when an alert asks for it.

    A batch is what the adapter says the training step got or, without an adapter, the arguments of the model's own
    forwards in the step.

    Args:
        models: The models, for the arguments of their forwards.
        steps: Steps to remember: an alert opens at the check after the step at which its fault began.
        folder: Returns the run's directory; None: nothing is saved.
    """

    def __init__(self, models: Iterable[nn.Module], steps: int, folder: Callable[[], Path | None]) -> None:
        self._models, self._folder = list(models), folder
        self._kept: deque[tuple[int, Any, list[int] | None]] = deque(maxlen=steps)
        self._calls: list[Any] = []
        self._batch: tuple[Any] | None = None
        self._hooks: list[Any] = []
        self._listener: IndexListener | None = None
        self.loader: Any = None
        """The training loader, if it is known."""
        self.files: list[Path] = []
        """The files that were saved."""

    # -- what a training gives -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Listen to the models' forwards, and to the loader's sampler."""
        self.listen()
        if not self._hooks:
            self._hooks = [m.register_forward_pre_hook(self._called, with_kwargs=True) for m in self._models]

    def close(self) -> None:
        """Remove the hooks, and let go of the batches."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._kept.clear()
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def listen(self) -> None:
        """Listen to which samples the sampler of the loader draws."""
        if self._listener is not None and self._listener.loader is not self.loader:
            self._listener.close()
            self._listener = None
        if self._listener is None and self.loader is not None:
            self._listener = IndexListener(self.loader)

    def saw(self, batch: Any) -> None:
        """Take what the training step got, as an adapter knows it."""
        self._batch = (batch,)

    def step(self, number: int) -> None:
        """A step has ended: what was seen since the last one is its batch."""
        calls, self._calls = self._calls, []
        given, self._batch = self._batch, None
        indices = None if self._listener is None else self._listener.step()
        self._kept.append((number, calls if given is None else given[0], indices))

    def _called(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled() and len(self._calls) < MOST_CALLS:
            self._calls.append({"args": args, **({"kwargs": kwargs} if kwargs else {})})

    # -- what an alert asks for ----------------------------------------------------------------------------------------

    def __call__(self, alert: Alert) -> None:
        """Save the batch of the step at which the incident of an alert began, or of the first step after it."""
        folder, began = self._folder(), alert.first_step if alert.incident is None else alert.incident.first_step
        if folder is None or not self._kept or len(self.files) >= MOST_BATCHES:
            return
        step, batch, indices = next((kept for kept in self._kept if kept[0] >= began), self._kept[-1])
        path = folder / BOXES / f"batch-step{step:08d}-{alert.code}.pt"
        if path in self.files:
            return
        content = {
            "step": step,
            "batch": plain(batch),
            "indices": indices if indices and _counts(batch, len(indices)) else None,
            "alert": alert.to_dict(),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        torch.save(content, part)
        part.replace(path)
        self.files.append(path)


def _counts(batch: Any, samples: int) -> bool:
    """Whether a tensor of a batch has so many samples; if not, another loader made it."""
    if isinstance(batch, Tensor):
        return batch.dim() > 0 and len(batch) == samples
    inner = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return any(_counts(each, samples) for each in inner)


def plain(value: Any) -> Any:
    """Return a copy on the CPU, made of what ``torch.load(weights_only=True)`` reads.

    >>> plain({"x": (torch.ones(1), 2), "of": nn.Identity()})
    {'x': (tensor([1.]), 2), 'of': '<Identity>'}
    """
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True).as_subclass(Tensor)
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    if isinstance(value, Mapping):
        return {key if isinstance(key, int) else str(key): plain(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return tuple(plain(each) for each in value)
    if isinstance(value, list):
        return [plain(each) for each in value]
    named = getattr(value, "__dict__", None)
    if named and any(isinstance(each, Tensor) for each in named.values()):  # a batch of a class of its own
        return {name: plain(each) for name, each in named.items()}
    return f"<{type(value).__name__}>"
