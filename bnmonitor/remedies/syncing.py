"""SyncBatchNorm that keeps what a subclass adds."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

from bnmonitor._text import count, listing
from bnmonitor.layers import BATCH_NORM, discover, is_synced
from bnmonitor.monitor import warn
from bnmonitor.remedies.said import logger

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def convert_sync(model: nn.Module, process_group: Any = None) -> nn.Module:
    """Make BatchNorm layers compute their statistics over all processes, and keep subclasses what they are.

    ``torch.nn.SyncBatchNorm.convert_sync_batchnorm`` replaces a subclass by a plain SyncBatchNorm, so that what its own
    forward adds, such as an activation, is lost. Here PyTorch's three classes are converted by that function, and an
    instance of a subclass stays what it is, with everything it holds, while the ``super().forward`` that its class
    calls becomes SyncBatchNorm's. A subclass that does not call ``super().forward`` but normalizes by itself can not be
    converted from outside; it is named in a warning and left as it was.

    Use it instead of ``Trainer(sync_batchnorm=True)``, before the model is wrapped and before the optimizer is made.

    Args:
        model: The model; it is changed in place.
        process_group: The processes that share their statistics; None: all.

    Returns:
        The model; another module only where the model itself is a BatchNorm layer.

    Raises:
        TypeError: It is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    left = []
    found = discover({"": model})
    replaced: dict[nn.Module, nn.Module] = {}
    for name, layer in zip(found.table.names, found.modules, strict=True):
        if not isinstance(layer, BATCH_NORM) or is_synced(layer):
            continue
        if type(layer) in _PLAIN:
            convert: Any = nn.SyncBatchNorm.convert_sync_batchnorm
            replaced[layer] = convert(layer, process_group)
        elif _calls_super(type(layer)) and "forward" not in vars(layer):
            kind: Any = type(layer)
            layer.__class__ = _synchronized(kind)
            layer.process_group = process_group
        else:
            left.append(name)
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child in replaced:
                module._modules[name] = replaced[child]
    if left:
        warn(
            f"{listing(left, 3)}: normalizes in a forward of its own, so its statistics stay those of one process; "
            "use the conversion of the library it comes from, such as timm.layers.convert_sync_batchnorm"
        )
    result = replaced.get(model, model)
    logger.info("%s", _converted(result))
    return result


def _converted(model: nn.Module) -> str:
    """Say how many layers synchronize their statistics now, and over how many processes."""
    found = discover({"": model})
    synced = sum(map(is_synced, found.modules))
    shared = torch.distributed.is_available() and torch.distributed.is_initialized()
    over = f"over {torch.distributed.get_world_size()} processes" if shared else "once the processes are connected"
    return f"{synced} of {count(len(found.table), 'normalization layer')} share their statistics {over}"


def _calls_super(kind: type) -> bool:
    """Return whether every forward between a class and PyTorch's own calls the next one."""
    for each in kind.__mro__:
        forward = vars(each).get("forward")
        if each is BATCH_NORM:
            return True
        code = getattr(forward, "__code__", None)
        if forward is not None and (code is None or not {"super", "forward"} <= set(code.co_names)):
            return False
    return False


@cache
def _synchronized(kind: Any) -> Any:
    """Return a class with SyncBatchNorm's forward after that of ``kind`` in the order of resolution."""

    def reduce(self: nn.Module, protocol: object) -> tuple[Any, ...]:
        return _rebuild, (kind,), self.__dict__

    body = {"__reduce_ex__": reduce, "__module__": kind.__module__, "__doc__": kind.__doc__}
    return type(f"Sync{kind.__name__}", (kind, nn.SyncBatchNorm), body)


def _rebuild(kind: Any) -> nn.Module:
    """Return an empty instance, for copies and pickles."""
    made = _synchronized(kind)
    layer: nn.Module = made.__new__(made)
    torch.nn.Module.__init__(layer)
    return layer
