"""What is kept of a validation: of many images, and counted as images."""

from __future__ import annotations

import torch
from torch import nn

from bnmonitor import Monitor
from bnmonitor.window import HeldOut
from tests.measures.test_sampled_input import images


def validated(size: int, batch: int, batches: int, shift: float = 0.0) -> tuple[HeldOut, torch.Tensor]:
    """Train and validate on images of one kind, and return what was kept with the mean of the whole validation."""
    generator, held_out = torch.Generator().manual_seed(0), []
    model = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3))
    nn.init.dirac_(model[0].weight)
    with Monitor(model, sinks=[], on_alert="log") as monitor:
        for _ in range(2):
            model(images(8, 4, generator)).square().mean().backward()
            monitor.step()
        model.eval()
        with monitor.evaluation(), torch.no_grad():
            for _ in range(batches):
                x = images(batch, size, generator) + shift
                held_out.append(x.double())
                model(x)
        window = monitor.window()
    assert window is not None
    return window.facts.held_out[-1], torch.cat(held_out).mean((0, 2, 3))


def test_large_images_are_counted_one_by_one_and_many_of_them_are_looked_at() -> None:
    kept, truth = validated(size=64, batch=64, batches=8)
    assert kept.size.tolist() == [512]
    # Every image was looked at, at a few positions: what is left is the noise of these.
    assert (kept.mean - truth).abs().max() < 0.05


def test_of_a_large_batch_only_what_was_looked_at_counts() -> None:
    kept, _ = validated(size=16, batch=200, batches=4)
    assert kept.size.tolist() == [4 * 67]


def test_one_large_image_a_batch_is_one_sample() -> None:
    kept, _ = validated(size=100, batch=1, batches=5)
    assert kept.size.tolist() == [5]
