"""Finding the models that a command line names: a checkpoint, a directory of them, or an importable model."""

from __future__ import annotations

import importlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from torch.nn.parameter import is_lazy

from bnmonitor._text import nearest
from bnmonitor.audit import checkpoint
from bnmonitor.audit.unreadable import UnreadableError

_SPEC = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


@dataclass(frozen=True, kw_only=True)
class Found:
    """A model to audit.

    Attributes:
        name: Name in the output.
        model: The model; for a checkpoint, one of nothing but its normalization layers.
        real: Whether it is the model itself.
        key: What the checkpoint keeps it under; empty for a plain state dict, and for a model.
    """

    name: str
    model: nn.Module
    real: bool
    key: str = ""


def locate(what: str) -> list[Found]:
    """Find the models to audit.

    Args:
        what: A checkpoint, or ``package.module:factory``, where the factory is a model, or makes one without arguments.

    Raises:
        UnreadableError: It is neither, or cannot be read or made; the message is one sentence.
    """
    if not Path(what).exists() and _SPEC.fullmatch(what):
        return [Found(name=what, model=made(what), real=True)]
    if not Path(what).exists():
        raise UnreadableError(f"{what!r} is neither a file nor a directory nor package.module:factory")
    found = checkpoint.read_checkpoint(what)
    return [
        Found(name=f"{what}:{key}" if key else what, model=model, real=False, key=key) for key, model in found.items()
    ]


def made(spec: str) -> nn.Module:
    """Return the model that ``package.module:factory`` is, or makes without arguments.

    Raises:
        UnreadableError: It cannot be imported or called, or is no model with values.
    """
    if not _SPEC.fullmatch(spec):
        raise UnreadableError(f"{spec!r} must be package.module:factory, which is a model or makes one")
    module_name, _, path = spec.partition(":")
    if "" not in sys.path and "." not in sys.path:
        sys.path.insert(0, "")
    try:
        thing = importlib.import_module(module_name)
    except Exception as error:
        raise UnreadableError(f"cannot import {module_name!r}: {type(error).__name__}: {error}") from None
    for part in path.split("."):
        if not hasattr(thing, part):
            raise UnreadableError(f"{module_name!r} has no {path!r}{nearest(part, dir(thing))}")
        thing = getattr(thing, part)
    if not isinstance(thing, nn.Module):
        try:
            thing = thing()  # type: ignore[operator]
        except Exception as error:
            why = (str(error).splitlines() or [""])[0]
            raise UnreadableError(f"{spec} could not be called: {type(error).__name__}: {why}") from None
    if not isinstance(thing, nn.Module):
        raise UnreadableError(f"{spec} makes a {type(thing).__name__}, and must be or make a torch.nn.Module")
    if any(t.is_meta for t in (*thing.parameters(), *thing.buffers()) if not is_lazy(t)):
        raise UnreadableError(f"{spec} has no values to judge: its tensors are on the meta device")
    return thing
