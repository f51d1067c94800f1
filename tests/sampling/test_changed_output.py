"""A hook of the user's changes what a layer puts out: the sample shows what goes on to the next layer, or nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bnmonitor import Monitor
from bnmonitor.window import Sample

Change = Callable[[Tensor], Tensor | None]


def doubled(output: Tensor) -> None:
    output.mul_(2)


def doubled_without_grad(output: Tensor) -> None:
    with torch.no_grad():
        output.mul_(2)


def clipped_without_grad(output: Tensor) -> None:
    with torch.no_grad():
        output.clamp_(max=2.0)


def doubled_by_data(output: Tensor) -> None:
    output.data.mul_(2)


def rectified_from_numpy(output: Tensor) -> None:
    values = output.detach().numpy()
    values.clip(0, None, out=values)


def one_channel_by_data(output: Tensor) -> None:
    output.data[:, 1] += 0.5


def replaced(output: Tensor) -> Tensor:
    return output * 2


def sampled(norm: nn.Module, x: Tensor, change: Change | None, *, autocast: bool = False) -> tuple[Sample, Tensor]:
    """The sample of one step, and the output that the next layer got."""
    got: list[Tensor] = []
    model = nn.Sequential(norm, nn.Identity())
    model[1].register_forward_pre_hook(lambda module, args: got.append(args[0].detach().clone()))
    if change is not None:
        norm.register_forward_hook(lambda module, args, output: change(output))
    with Monitor(model, sinks=[], on_alert="log", sample_every_n_steps=1) as monitor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            model(x).float().square().mean().backward()
        monitor.step()
        (sample,) = monitor.samples
    return sample, got[0].double()


@pytest.mark.parametrize("change", [doubled, doubled_without_grad, clipped_without_grad, replaced])
def test_a_change_that_autograd_sees_is_in_the_sample(change: Change) -> None:
    torch.manual_seed(0)
    sample, output = sampled(nn.BatchNorm2d(3), 2 + torch.randn(16, 3, 4, 4), change)
    values = output.transpose(0, 1).flatten(1)
    torch.testing.assert_close(sample.output.var.double(), values.var(1, correction=0), rtol=1e-4, atol=0)
    torch.testing.assert_close(sample.output.max.double(), values.amax(1), rtol=1e-5, atol=0)
    torch.testing.assert_close(sample.output.mean.double(), values.mean(1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("change", [doubled_by_data, rectified_from_numpy])
def test_a_change_that_autograd_does_not_see_withholds_the_output(change: Change) -> None:
    torch.manual_seed(0)
    sample, _ = sampled(nn.BatchNorm2d(3), 2 + torch.randn(16, 3, 4, 4), change)
    for statistic in ("mean", "var", "max", "nonpositive"):
        assert getattr(sample.output, statistic).isnan().all()
        assert getattr(sample.input, statistic).isfinite().all()


def test_it_is_withheld_of_the_changed_channel_only() -> None:
    sample, output = sampled(nn.BatchNorm1d(3), torch.randn(64, 3), one_channel_by_data)
    assert sample.output.mean.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(sample.output.max[[0, 2]].double(), output.amax(0)[[0, 2]], rtol=1e-5, atol=0)


@pytest.mark.parametrize("mean", [0.0, 1e3])
@pytest.mark.parametrize("mode", ["single", "double", "autocast", "evaluation", "bfloat16"])
def test_an_output_that_nobody_changed_is_never_withheld(mode: str, mean: float) -> None:
    torch.manual_seed(0)
    norm: nn.Module = nn.BatchNorm2d(16)
    nn.init.normal_(norm.weight, std=3.0)  # type: ignore[arg-type]
    nn.init.normal_(norm.bias)  # type: ignore[arg-type]
    with torch.no_grad():
        norm.weight[0] = 0.0  # type: ignore[index]
    x = mean + torch.randn(32, 16, 9, 9) * torch.logspace(-4, 2, 16)[:, None, None]
    if mode == "double":
        norm, x = norm.double(), x.double()
    if mode == "bfloat16":
        norm, x = norm.bfloat16(), x.bfloat16()
    norm.train(mode != "evaluation")
    sample, _ = sampled(norm, x, None, autocast=mode == "autocast")
    for statistic in ("mean", "var", "max", "nonpositive"):
        assert getattr(sample.output, statistic).isfinite().all(), statistic
