"""Finds the parameters that are split over the processes, as FSDP and ZeRO-3 do, so that no process holds all of them.

It reads the tensors at hand and the attributes of the wrappers, and starts no collective: to gather the parts is what
the exchange between the processes does, if the user wants it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

_WRAPPERS = ("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
"""Attributes by which FSDP, activation checkpointing and Lightning Fabric reach what they wrap."""


def unwrapped(path: str) -> str:
    """Return the dotted path of a module as a ``state_dict`` has it: without the parts that wrappers add."""
    return ".".join(part for part in path.split(".") if part not in _WRAPPERS)


def full_name(prefix: str, path: str) -> str:
    """Return the name of a module among all models: the prefix of its model, and its own path, unwrapped."""
    return ".".join(part for part in (prefix, unwrapped(path)) if part)


def is_split(parameter: Tensor | None) -> bool:
    """Whether a parameter may hold only a part of its values: a DTensor, or one that FSDP or ZeRO-3 manages."""
    if parameter is None:
        return False
    return (
        hasattr(type(parameter), "placements")
        or getattr(parameter, "_fsdp_flattened", False)
        or hasattr(parameter, "_param_infos")
        or hasattr(parameter, "ds_id")
    )


def own_part(parameter: Tensor) -> slice | None:
    """Return which values of a DTensor this process tells the others; None if it is not known how they are split.

    Every value is told by one process: the first of those that hold it. An empty slice is a process without any.

    Args:
        parameter: The DTensor, with one dimension.
    """
    mesh, placements = getattr(parameter, "device_mesh", None), getattr(parameter, "placements", ())
    if mesh is None or parameter.dim() != 1 or mesh.ndim != len(placements):
        return None
    start, stop = 0, parameter.shape[0]
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        return slice(0, 0)
    held, first = True, True
    for place, count, placement in zip(coordinate, mesh.shape, placements, strict=True):
        kind = type(placement).__name__
        if kind == "Replicate":
            first &= place == 0
        elif kind == "Shard" and placement.dim == 0:
            size = -(-(stop - start) // count)
            start, stop = min(stop, start + place * size), min(stop, start + (place + 1) * size)
        else:
            held = False
    if not held or local_part(parameter).numel() != stop - start:
        return None
    return slice(start, stop) if first else slice(start, start)


def local_part(parameter: Tensor) -> Tensor:
    """Return the values of a DTensor that this process holds."""
    # What to_local() returns as well, at a hundredth of its time: it is read of every layer at every step.
    part: Tensor | None = getattr(parameter, "_local_tensor", None)
    if part is not None:
        return part
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


def collective_reason(models: Iterable[nn.Module]) -> str:
    """Return why a forward of the models needs all processes; empty if one process can run it alone."""
    for model in models:
        for module in model.modules():
            if any(map(is_split, module._parameters.values())):
                return "the parameters are split over the processes"
            if hasattr(type(module), "will_sync_module_buffers"):
                return "DistributedDataParallel makes the processes wait for each other in each forward"
    return ""


def flat_parameters(models: Iterable[nn.Module]) -> dict[int, Tensor]:
    """Return the flat parameter that holds a module's own, by ``id(module)``: FSDP's ``use_orig_params=False``."""
    found: dict[int, Tensor] = {}
    for model in models:
        for parameter in model.parameters():
            for info in getattr(parameter, "_param_infos", ()):
                found[id(info.module)] = parameter
    return found


def shards_of(module: nn.Module, flat: Mapping[int, Tensor]) -> tuple[Tensor, ...] | None:
    """Return the parameters that hold parts of a layer's gamma and beta; None if the layer has them whole.

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
