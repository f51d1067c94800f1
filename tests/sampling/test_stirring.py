"""What an update changes at the operation before the first layer."""

from __future__ import annotations

import torch

from bnmonitor.sampling.stirring import Stirring


def test_a_weight_whose_memory_was_freed_is_not_read() -> None:
    """As FSDP2 frees the whole weight after the backward: to read it would end the process."""
    weight = torch.randn(64, 32)
    stirring = Stirring(torch.randn(8, 32), weight, None)
    assert stirring.measure() is None  # nothing was updated yet
    weight += 0.1
    assert stirring.measure() is not None
    weight.untyped_storage().resize_(0)
    assert stirring.measure() is None
