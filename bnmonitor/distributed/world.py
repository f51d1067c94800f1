"""How many processes train together."""

from __future__ import annotations

import torch


def distributed() -> bool:
    """Whether several processes may train together: a process group exists."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def world_size() -> int:
    """Return how many processes train together; 1 where that is unknown."""
    return torch.distributed.get_world_size() if distributed() else 1
