"""Which channels somebody has pruned."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from bnmonitor.layers import full_name
from bnmonitor.window import Place, Structure


class Pruned:
    """Looks up, when somebody asks, which channels of a layer the operation before it has been pruned of.

    Pruned is what ``torch.nn.utils.prune`` keeps a mask of. Weights that are zero without one may be a fault.

    Args:
        models: The models by prefix of their layers' names.
    """

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        self._models = models
        self._modules: dict[str, nn.Module] = {}

    def renew(self) -> None:
        """Forget the modules: they may have been replaced."""
        self._modules = {}

    def channels(self, structure: Structure | None, layer: int, channels: int) -> Tensor | None:
        """Return which channels of a layer are pruned, also through a depthwise convolution.

        This waits for the device that the mask is on.

        Args:
            structure: The network around the layers.
            layer: The layer's position.
            channels: How many channels it has.

        Returns:
            ``[C]`` bool on the CPU; None where nothing is known to be pruned.
        """
        places = () if structure is None else structure.places
        if layer >= len(places):
            return None
        place, found = places[layer], [self._masked(places[layer], channels)]
        if len(place.predecessors) == 1 and any(producer.depthwise for producer in place.producers):
            # Such a feature reads one channel, and is constant where that one is.
            found.append(self._masked(places[place.predecessors[0]], channels))
        known = [masked for masked in found if masked is not None]
        return torch.stack(known).any(0) if known else None

    def _masked(self, place: Place, channels: int) -> Tensor | None:
        """Which features of what feeds a layer have a mask of zeros, ``[C]``; None where none is known."""
        if len(place.producers) != 1:
            return None
        module = self._named().get(place.producers[0].name) if place.producers[0].role == "weights" else None
        mask = None if module is None else module._buffers.get("weight_mask")
        if mask is None or mask.ndim < 2 or (isinstance(module, _ConvTransposeNd) and module.groups != 1):
            return None
        by_feature = mask.transpose(0, 1) if isinstance(module, _ConvTransposeNd) else mask
        return (by_feature.flatten(1) == 0).all(1).cpu() if len(by_feature) == channels else None

    def _named(self) -> Mapping[str, nn.Module]:
        if not self._modules:
            for prefix, model in self._models.items():
                for path, module in model.named_modules():
                    self._modules[full_name(prefix, path)] = module
        return self._modules
