"""Which layers of the models are watched, and whether they are still the same."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from operator import is_

from torch import nn

from bnmonitor.layers import (
    Discovery,
    channels_of,
    compiled_parts,
    discover,
    graphs_compiled,
    norms,
    reason_against,
    same_layer,
)

logger = logging.getLogger("bnmonitor")


class WatchedLayers:
    """Finds the layers, and keeps what was found last.

    Args:
        models: The models by prefix of their layers' names.
        include: Glob patterns over layer names.
        exclude: Glob patterns over layer names.

    Raises:
        ValueError: A pattern matches no layer.
    """

    def __init__(self, models: Mapping[str, nn.Module], include: Sequence[str], exclude: Sequence[str]) -> None:
        self._models, self._include, self._exclude = models, include, exclude
        self._said: dict[str, str] = {}
        self._graphs = graphs_compiled()
        self.adopt(discover(models, include=include, exclude=exclude))

    def adopt(self, found: Discovery) -> None:
        """Watch these layers from now on."""
        self.found = found
        """The layers that are watched."""
        for name, reason in found.left_out.items():
            if self._said.get(name) != reason:
                self._said[name] = reason
                logger.warning("bnmonitor does not watch %s: %s", name, reason)
        self._norms = norms(self._models.values())

    def wants(self, name: str) -> bool:
        """Whether the patterns choose a name."""
        out = any(fnmatchcase(name, pattern) for pattern in self._exclude)
        return not out and any(fnmatchcase(name, pattern) for pattern in self._include)

    @property
    def waiting(self) -> bool:
        """Whether there is nothing yet but lazy layers, which have no channels before their first forward."""
        return self.found.lazy > 0

    @property
    def compiled(self) -> set[int]:
        """The modules within compiled parts of the models, as far as these are known, by ``id(module)``."""
        return compiled_parts(self._models.values())

    @property
    def compiled_since(self) -> bool:
        """Whether something was compiled since the layers are watched: the models, or anything else."""
        return graphs_compiled() != self._graphs

    @property
    def changed(self) -> bool:
        """Whether a layer was added, removed, replaced or resized, or keeps other statistics, since they were found."""
        now, known = norms(self._models.values()), self._norms
        same = len(now) == len(known) and all(map(is_, now, known)) and not any(map(_mended, self.found.odd))
        modules, table = self.found.modules, self.found.table
        if not same or tuple(map(channels_of, modules)) != table.channels:
            return True
        return tuple(m._buffers.get("running_mean") is not None for m in modules) != table.tracking

    def find(self, order: Mapping[int, int] | None = None, names: Sequence[str] | None = None) -> Discovery:
        """Find the layers again.

        Args:
            order: Position in the forward by ``id(module)``; None: in the order of names.
            names: These names; None: those so far, so that what was replaced keeps its place.
        """
        names = self.found.table.names if names is None else names
        return discover(self._models, include=self._include, exclude=self._exclude, order=order, names=names)

    def woken(self) -> Discovery | None:
        """Find the layers again if a forward has made a lazy one real; None if it has not."""
        found = self.find() if self.waiting else None
        return None if found is None or found.lazy == self.found.lazy else found

    def staying(self, found: Discovery) -> set[str]:
        """Return the names of the layers that are the same module or, as SyncBatchNorm, took over its tensors."""
        before = dict(zip(self.found.table.names, self.found.modules, strict=True))
        after = zip(found.table.names, found.modules, strict=True)
        return {name for name, module in after if same_layer(before.get(name), module)}


def _mended(module: nn.Module) -> bool:
    """Whether a layer that was left out can be recorded now."""
    return not reason_against(module, split=False)
