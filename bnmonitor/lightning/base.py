"""The base of every Lightning callback here."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytorch_lightning import Callback

    CallbackBase = Callback
else:

    def _bases() -> tuple[type, ...]:
        """Both Callback classes where both packages are installed: each Trainer accepts only its own."""
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
