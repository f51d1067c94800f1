"""Finds what is split over the processes that train together, so that no process holds all of it (FSDP and its like).

It looks at the tensors that are there and at what the wrappers say of themselves: to gather them would be a collective,
which a monitor must not start.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

_WRAPPERS = ("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
"""Attributes by which FSDP, activation checkpointing and Lightning Fabric reach what they wrap."""


def unwrapped(path: str) -> str:
    """Return the dotted path of a module without the parts that wrappers add to it, as a ``state_dict`` has it."""
    return ".".join(part for part in path.split(".") if part not in _WRAPPERS)


def is_split(parameter: Tensor | None) -> bool:
    """Whether a parameter may be only a part of what it stands for: a DTensor, or one that FSDP or ZeRO-3 manages."""
    if parameter is None:
        return False
    return (
        hasattr(type(parameter), "placements")
        or getattr(parameter, "_fsdp_flattened", False)
        or hasattr(parameter, "_param_infos")
        or hasattr(parameter, "ds_id")
    )


def together(models: Iterable[nn.Module]) -> str:
    """Say why a forward of the models takes all processes; empty if one can make it alone."""
    for model in models:
        for module in model.modules():
            if any(map(is_split, module._parameters.values())):
                return "the parameters are split over the processes"
            if hasattr(type(module), "will_sync_module_buffers"):
                return "DistributedDataParallel brings the processes together in each forward"
    return ""


def flat_parameters(models: Iterable[nn.Module]) -> dict[int, Tensor]:
    """Return the flat parameter that holds a module's own, by ``id(module)``: what ``use_orig_params=False`` makes."""
    found: dict[int, Tensor] = {}
    for model in models:
        for parameter in model.parameters():
            for info in getattr(parameter, "_param_infos", ()):
                found[id(info.module)] = parameter
    return found


def shards_of(module: nn.Module, flat: Mapping[int, Tensor]) -> tuple[Tensor, ...] | None:
    """Return the parameters that hold a layer's gamma and beta, if these are split; None if the layer has them whole.

    Args:
        module: The layer.
        flat: What :func:`flat_parameters` returned.
    """
    if id(module) in flat:
        return (flat[id(module)],)
    own = [p for p in (module._parameters.get("weight"), module._parameters.get("bias")) if p is not None]
    mean = module._buffers.get("running_mean")
    if any(is_split(p) or (mean is not None and p.numel() != mean.numel()) for p in own):
        return tuple(own)
    # Between a forward and the coming backward FSDP puts views of the whole in place of the parameters.
    return () if isinstance(vars(module).get("weight"), Tensor) else None
