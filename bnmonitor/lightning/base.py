"""The base class of bnmonitor's Lightning callbacks."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytorch_lightning import Callback

    CallbackBase = Callback
else:

    def _bases() -> tuple[type, ...]:
        """The Callback class of each installed Lightning package: a Trainer accepts only its own package's."""
        found = []
        for name in ("lightning.pytorch", "pytorch_lightning"):
            try:
                found.append(importlib.import_module(name).Callback)
            except ImportError:
                continue
        if not found:
            raise ImportError("bnmonitor's callbacks need Lightning: pip install pytorch-lightning")
        return tuple(dict.fromkeys(found))

    CallbackBase = type("CallbackBase", _bases(), {})
