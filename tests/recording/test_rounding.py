from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.recording.test_recovery import quiet


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spread", [0.05, 1.0])
def test_what_instance_norm_rounds_under_autocast_is_near_the_truth_or_withheld(
    dtype: torch.dtype, spread: float
) -> None:
    model = nn.InstanceNorm2d(5, track_running_stats=True)
    monitor, true = quiet(model), []
    generator = torch.Generator().manual_seed(0)
    with monitor:
        for step in range(12):
            x = torch.randn(4, 5, 8, 8, generator=generator).mul_(spread * (1 + step % 3)).to(dtype)
            with torch.autocast("cpu", dtype):
                model(x)
            monitor.step()
            flat = x.double().flatten(2)
            true.append((flat.mean(2).mean(0), flat.var(2).mean(0)))
    [name] = monitor.layers.names
    mean, var = (torch.stack(column) for column in zip(*true, strict=True))
    got_mean, got_var = (monitor.history(name, f"batch_{which}") for which in ("mean", "var"))
    most = 0.11  # as for buffers of the same dtype
    assert float(((got_mean - mean).abs() / var.sqrt()).nan_to_num().max()) <= most
    assert float(((got_var - var).abs() / var).nan_to_num().max()) <= most
    assert bool(got_var.isfinite().any()) == (spread == 1.0)


def test_an_instance_norm_in_single_precision_is_not_taken_for_rounded() -> None:
    model = nn.InstanceNorm2d(5, track_running_stats=True)
    with quiet(model) as monitor:
        for _ in range(5):
            model(torch.randn(4, 5, 8, 8) * 0.05)
            monitor.step()
    assert monitor.history(monitor.layers.names[0], "batch_var").isfinite().all()
