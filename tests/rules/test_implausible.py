"""BN109 on models that are sound although some of their numbers are large, and on ruined ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from bnmonitor import Alert, Monitor, Severity
from bnmonitor.audit import audit, read_checkpoint
from bnmonitor.cli import main
from bnmonitor.rules import Finding, find
from bnmonitor.testing import make_structure, make_window
from bnmonitor.window import Window


def findings(window: Window) -> list[Finding]:
    return find("BN109").check(window)


def pixels() -> tuple[nn.Module, Callable[[], torch.Tensor]]:
    """Images of 0 to 255, as they lie in the file."""
    blocks = [nn.Sequential(nn.Conv2d(c, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for c in (3, 8, 8)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(8 * 64, 1)), lambda: torch.randint(256, (16, 3, 8, 8)).float()


def raw_units() -> tuple[nn.Module, Callable[[], torch.Tensor]]:
    """A time in seconds since 1970, a size in bytes and a price, straight into a linear layer."""
    model = nn.Sequential(
        nn.Linear(3, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Linear(16, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Linear(16, 1),
    )
    scale = torch.tensor([1.7e9, 4e12, 3e5])
    return model, lambda: torch.rand(32, 3) * scale


def raw_batchnorm() -> tuple[nn.Module, Callable[[], torch.Tensor]]:
    """The same features, normalized by a first layer as tabular models do."""
    model, batch = raw_units()
    return nn.Sequential(nn.BatchNorm1d(3), *model), batch


def discriminator() -> tuple[nn.Module, Callable[[], torch.Tensor]]:
    blocks = [nn.Sequential(nn.Linear(w, 32), nn.BatchNorm1d(32), nn.LeakyReLU(0.2)) for w in (64, 32, 32)]
    return nn.Sequential(*blocks, nn.Linear(32, 1)), lambda: torch.rand(32, 64) * 2 - 1


SOUND = [pixels, raw_units, raw_batchnorm, discriminator]


def train(model: nn.Module, batch: Callable[[], torch.Tensor], steps: int = 120, rate: float = 0.01) -> list[Alert]:
    optimizer = torch.optim.Adam(model.parameters(), rate)
    monitor = Monitor(model, optimizer=optimizer, sinks=[], on_alert="log")
    with monitor:
        for _ in range(steps):
            x = batch()
            optimizer.zero_grad()
            (model(x) - 1.0).square().mean().backward()
            optimizer.step()
            monitor.step()
    return [alert for alert in monitor.alerts if alert.code == "BN109"]


@pytest.mark.parametrize("made", SOUND, ids=lambda f: f.__name__)
def test_a_sound_model_with_large_numbers_is_not_called_ruined(made: Callable[..., object], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, batch = made()  # type: ignore[misc]
    assert train(model, batch) == []
    torch.save(model.state_dict(), tmp_path / "model.pt")
    (read,) = read_checkpoint(tmp_path / "model.pt").values()
    assert "BN109" not in {alert.code for alert in audit(read, settings=False).alerts}


def test_a_checkpoint_of_a_training_that_diverged_is_called_ruined(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model, _ = pixels()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.fill_(1e22)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    assert main(["audit", str(tmp_path / "model.pt")]) == 1
    assert "BN109" in capsys.readouterr().out
    (read,) = read_checkpoint(tmp_path / "model.pt").values()
    (alert,) = [a for a in audit(read, settings=False).alerts if a.code == "BN109"]
    assert (alert.severity, alert.value, len(alert.layers)) == (Severity.ERROR, float(torch.tensor(1e22)), 3)
    assert "the checkpoint is ruined" in alert.message


def test_a_training_that_starts_from_a_ruined_model_is_reported_at_the_first_check_and_cleared_when_it_is_over() -> (
    None
):
    torch.manual_seed(0)
    model, batch = pixels()
    model[1][1].running_var.fill_(1e22)  # type: ignore[index]
    (alert,) = train(model, batch, steps=600)
    assert (alert.first_step, alert.layer, alert.state) == (0, "1.1", "cleared")


WIDE = make_window(channels=(2, 2, 2), running_var=[1.0, 2.0, 1.0, 1.0, 3.0, 1.0], batch_var=1.0)


def with_variance(value: float, at: int) -> Window:
    var = WIDE.running_var.clone()
    var[:, at] = value
    return replace(WIDE, running_var=var)


@pytest.mark.parametrize(("value", "severity"), [(9e5, None), (2e6, Severity.WARNING), (2e12, Severity.ERROR)])
def test_a_layer_behind_another_is_judged_by_its_worst_channel(value: float, severity: Severity | None) -> None:
    found = findings(with_variance(value, 3))
    assert [each.severity for each in found] == ([] if severity is None else [severity])
    assert [each.channels for each in found] == [(1,)] * len(found)


def test_a_mean_counts_like_a_variance() -> None:
    mean = torch.zeros_like(WIDE.running_mean)
    mean[:, 4] = -3e12
    (found,) = findings(replace(WIDE, running_mean=mean))
    assert (found.layer, found.value) == (2, float(torch.tensor(3e12)))
    assert found.message.startswith("running mean 3e+12 in 1 channel")


def test_a_large_scale_of_all_layers_is_only_relative_to_their_median_above_the_floor() -> None:
    small = replace(WIDE, running_var=WIDE.running_var * 1e-9)
    assert findings(small) == []
    large = replace(WIDE, running_var=WIDE.running_var * 1e5)
    assert findings(large) == []


def test_the_layer_that_reads_the_input_may_be_in_raw_units_unless_others_are_ruined_too() -> None:
    assert findings(with_variance(1e20, 0)) == []
    assert [each.layer for each in findings(with_variance(1e35, 0))] == [0]
    both = with_variance(1e20, 0).running_var
    both[:, 2] = 1e20
    assert [each.layers for each in findings(replace(WIDE, running_var=both))] == [(0, 1)]


def test_a_second_branch_on_raw_input_is_known_by_the_connections() -> None:
    window = with_variance(1e20, 4)
    assert [each.layer for each in findings(window)] == [2]
    structure = make_structure(layers=3)
    places = tuple(replace(place, root=i in (0, 2)) for i, place in enumerate(structure.places))
    facts = replace(window.facts, structure=replace(structure, places=places))
    assert findings(replace(window, facts=facts)) == []


def test_what_is_not_finite_is_left_to_another_rule() -> None:
    assert findings(with_variance(float("inf"), 3)) == []
