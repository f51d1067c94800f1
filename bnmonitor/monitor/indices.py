"""Which samples of the data set a batch holds, as the sampler of a loader draws them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from torch.utils.data import BatchSampler, DataLoader

_AHEAD = 4096
"""Indices of batches that workers may have fetched ahead."""


class _Told:
    """A sampler that also tells what it yields; everything else is the sampler's own."""

    def __init__(self, sampler: Any, listener: IndexListener) -> None:
        self.__dict__.update(_sampler=sampler, _listener=listener)

    def __iter__(self) -> Iterator[Any]:
        yield from self._listener.began(iter(self._sampler))

    def __len__(self) -> int:
        return len(self._sampler)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_sampler"], name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._sampler, name, value)


class IndexListener:
    """Listens to the sampler of a DataLoader; the order and the random numbers stay as they are.

    Only PyTorch's own BatchSampler says which samples make a batch: with another one nothing is known.

    Args:
        loader: The training loader.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self._drawn: deque[Any] = deque(maxlen=_AHEAD)
        self._batches: Any = None
        batches = loader.batch_sampler if isinstance(loader, DataLoader) else None
        if type(batches) is BatchSampler:
            self._batches, self._size, self._sampler = batches, batches.batch_size, batches.sampler
            batches.sampler = _Told(batches.sampler, self)

    def began(self, drawn: Iterator[Any]) -> Iterator[Any]:
        """Pass on what is drawn in an epoch, and remember it."""
        self._drawn.clear()
        for index in drawn:
            self._drawn.append(index)
            yield index

    def step(self) -> list[int] | None:
        """Return the samples of the next batch of the epoch; None where they are unknown."""
        if self._batches is None or not self._drawn:
            return None
        size = min(self._size, len(self._drawn))
        batch = [self._drawn.popleft() for _ in range(size)]
        return [int(i) for i in batch] if all(isinstance(i, int) or hasattr(i, "__index__") for i in batch) else None

    def close(self) -> None:
        """Give the loader its sampler back."""
        if self._batches is not None and isinstance(self._batches.sampler, _Told):
            self._batches.sampler = self._sampler
        self._batches = None
