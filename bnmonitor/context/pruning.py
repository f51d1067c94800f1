"""Which channels somebody has pruned."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from bnmonitor.layers import unwrapped
from bnmonitor.window import Structure


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
        """Return which channels of a layer are pruned; this waits for the device that the mask is on.

        Args:
            structure: The network around the layers.
            layer: The layer's position.
            channels: How many channels it has.

        Returns:
            ``[C]`` bool on the CPU; None where nothing is known to be pruned.
        """
        places = () if structure is None else structure.places
        producers = places[layer].producers if layer < len(places) else ()
        if len(producers) != 1 or producers[0].role != "weights" or not producers[0].name:
            return None
        module = self._named().get(producers[0].name)
        mask = None if module is None else module._buffers.get("weight_mask")
        if mask is None or mask.ndim < 2 or (isinstance(module, _ConvTransposeNd) and module.groups != 1):
            return None
        by_feature = mask.transpose(0, 1) if isinstance(module, _ConvTransposeNd) else mask
        return (by_feature.flatten(1) == 0).all(1).cpu() if len(by_feature) == channels else None

    def _named(self) -> Mapping[str, nn.Module]:
        if not self._modules:
            for prefix, model in self._models.items():
                for path, module in model.named_modules():
                    self._modules[".".join(part for part in (prefix, unwrapped(path)) if part)] = module
        return self._modules
