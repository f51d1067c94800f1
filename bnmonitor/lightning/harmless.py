"""What keeps an error in the callback itself away from the Trainer."""

from __future__ import annotations

from typing import Any

from bnmonitor.monitor import make_harmless


def _among_several(trainer: Any, *args: Any) -> bool:
    """Whether other processes would wait for this one, where they all act together."""
    return bool(getattr(trainer, "world_size", 1) > 1)


harmless = make_harmless(raises=_among_several)
