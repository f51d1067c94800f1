"""The arithmetic of the recovery alone: readings of the buffers in, rows of a window out, against float64."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from bnmonitor.layers import LayerTable
from bnmonitor.recording.recovery import Seen, fill_seen, recover_rows
from bnmonitor.testing import make_window
from bnmonitor.window import Recovery

CHANNELS = (2, 3)
EPS = (1e-5, 1e-3)
OWNER = (0, 0, 1, 1, 1)
FLOAT = 2.0**-24


def table(**more: object) -> LayerTable:
    return replace(make_window(channels=CHANNELS).layers, eps=EPS, **more)


def rows(steps: int) -> dict[str, Tensor]:
    """Rows of the window, filled with what no test expects."""
    out = {name: torch.full((steps, 5), -7.0) for name in ("batch_mean", "batch_var", "shift", "ratio")}
    out |= {name: torch.full((steps, 2), -7, dtype=torch.int64) for name in ("updates", "recovery")}
    out |= {name: torch.full((steps, 2), -7.0, dtype=torch.float64) for name in ("momentum", "variance")}
    return out


@dataclass
class Readings:
    """A step or more of two layers, with two and three channels, that were updated once in each."""

    mean: Tensor
    var: Tensor
    momentum: Tensor = field(default_factory=lambda: torch.tensor([[0.1, 0.1]], dtype=torch.float64))
    updates: Tensor = field(default_factory=lambda: torch.tensor([[1, 1]]))
    counted: Tensor = field(default_factory=lambda: torch.tensor([[True, True]]))
    foreign: Tensor = field(default_factory=lambda: torch.tensor([[False, False]]))
    layers: LayerTable = field(default_factory=table)

    def recovered(self) -> tuple[dict[str, Tensor], Tensor | None]:
        """The rows, and where no batch can have made the readings."""
        steps = len(self.mean) - 1
        out = rows(steps)
        updates = self.updates.expand(steps, 2)
        before = torch.full_like(updates, 10) + updates.cumsum(0) - updates
        recovered = recover_rows(
            self.layers,
            before=(self.mean[:-1], self.var[:-1]),
            after=(self.mean[1:], self.var[1:]),
            counts=(before, before + updates),
            counted=self.counted.expand(steps, 2),
            foreign=self.foreign.expand(steps, 2),
            momentum=self.momentum.expand(steps, 2),
            half_ulp=torch.full((steps, 2), FLOAT, dtype=torch.float64),
            out=out,
            chained=True,
        )
        return out, recovered.impossible

    def states(self) -> list[list[Recovery]]:
        return [[Recovery(each) for each in row] for row in self.recovered()[0]["recovery"].tolist()]


def running(steps: int = 4, momentum: tuple[float, float] = (0.1, 0.1)) -> tuple[Readings, Tensor, Tensor]:
    """Running statistics as an update a step makes them, and the batches that made them, in float64."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(steps, 5, generator=generator, dtype=torch.float64)
    variances = torch.rand(steps, 5, generator=generator, dtype=torch.float64) + 0.5
    weight = torch.tensor([momentum[i] for i in OWNER], dtype=torch.float64)
    mean, var = [torch.zeros(5, dtype=torch.float64)], [torch.ones(5, dtype=torch.float64)]
    for t in range(steps):
        mean.append(mean[-1] + weight * (means[t] - mean[-1]))
        var.append(var[-1] + weight * (variances[t] - var[-1]))
    readings = Readings(torch.stack(mean).float(), torch.stack(var).float())
    readings.momentum = torch.tensor([momentum], dtype=torch.float64)
    return readings, means, variances


def assert_rows(out: Mapping[str, Tensor], readings: Readings, means: Tensor, variances: Tensor) -> None:
    """Compare every channel of every step with the definition, one number at a time."""
    for t in range(len(means)):
        for c, layer in enumerate(OWNER):
            old_mean, old_var = float(readings.mean[t, c]), float(readings.var[t, c])
            mean, var, eps = float(means[t, c]), float(variances[t, c]), EPS[layer]
            assert float(out["batch_mean"][t, c]) == pytest.approx(mean, rel=1e-4, abs=1e-4)
            assert float(out["batch_var"][t, c]) == pytest.approx(var, rel=1e-4)
            shift, ratio = (mean - old_mean) / math.sqrt(old_var + eps), math.sqrt((var + eps) / (old_var + eps))
            assert float(out["shift"][t, c]) == pytest.approx(shift, rel=1e-4, abs=1e-4)
            assert float(out["ratio"][t, c]) == pytest.approx(ratio, rel=1e-4)
        for layer, span in enumerate((slice(0, 2), slice(2, 5))):
            assert float(out["variance"][t, layer]) == pytest.approx(float(variances[t, span].mean()), rel=1e-4)


@pytest.mark.parametrize("momentum", [(0.1, 0.1), (0.1, 0.02)])
@pytest.mark.parametrize("counted", [True, False])  # what is not counted goes the way of all that is unusual
def test_each_row_is_what_its_name_says(momentum: tuple[float, float], counted: bool) -> None:
    readings, means, variances = running(momentum=momentum)
    readings.counted = torch.tensor([[counted, counted]])
    out, impossible = readings.recovered()
    assert_rows(out, readings, means, variances)
    assert impossible is None
    assert out["updates"].tolist() == [[1, 1]] * 4
    assert out["momentum"].tolist() == [list(momentum)] * 4
    assert set(out["recovery"].flatten().tolist()) == {Recovery.EXACT}


def test_two_updates_have_their_weight_together() -> None:
    readings, means, variances = running(momentum=(0.19, 0.1))
    readings.momentum = torch.tensor([[0.1, 0.1]], dtype=torch.float64)
    readings.updates = torch.tensor([[2, 1]])  # 1 - 0.9 ** 2 is 0.19
    out, impossible = readings.recovered()
    assert_rows(out, readings, means, variances)
    assert impossible is None
    assert out["updates"].tolist() == [[2, 1]] * 4
    assert readings.states() == [[Recovery.AVERAGED, Recovery.EXACT]] * 4


def test_of_a_cumulative_average_a_batch_has_its_share() -> None:
    readings, _, _ = running(1)
    readings.momentum = torch.tensor([[math.nan, math.nan]], dtype=torch.float64)
    readings.mean[1] = torch.full((5,), 2.0)
    out, _ = readings.recovered()
    torch.testing.assert_close(out["batch_mean"], torch.full((1, 5), 22.0))  # the eleventh of eleven


def test_a_layer_is_not_finite_once_no_channel_has_both_statistics() -> None:
    readings, means, variances = running(1)
    readings.var[1, 0] = math.inf
    out, _ = readings.recovered()
    assert Recovery(int(out["recovery"][0, 0])) is Recovery.EXACT, "the other channel is known"
    assert float(out["batch_mean"][0, 1]) == pytest.approx(float(means[0, 1]), abs=1e-4)
    readings.var[1, 1] = math.inf
    out, impossible = readings.recovered()
    assert readings.states() == [[Recovery.NON_FINITE, Recovery.EXACT]], "the means alone make no batch"
    assert impossible is None
    for name in ("batch_mean", "batch_var", "shift", "ratio"):
        assert out[name][0].isnan().tolist() == [True] * 2 + [False] * 3
    assert float(out["variance"][0, 1]) == pytest.approx(float(variances[0, 2:].mean()), rel=1e-4)
    assert out["variance"][0, 0].isnan()


def test_a_batch_of_negative_variance_is_seen_beside_a_step_that_is_not_finite() -> None:
    readings, _, _ = running(2)
    readings.var[1, 0] = 0.5  # the batch of the first step had a variance of -4
    readings.var[2, 0] = math.nan
    out, impossible = readings.recovered()
    assert impossible is not None
    assert impossible.tolist() == [[True, False], [False, False]]
    assert readings.states() == [[Recovery.FOREIGN, Recovery.EXACT], [Recovery.EXACT, Recovery.EXACT]]
    assert out["batch_mean"][0].isnan().tolist() == [True] * 2 + [False] * 3


def test_a_variance_below_zero_by_rounding_alone_is_zero() -> None:
    readings, _, _ = running(1)
    readings.var[:, 4] = torch.tensor([1e-4, 0.9e-4 - 1e-8])  # of a batch with -1e-7, a ten-thousandth of eps
    out, impossible = readings.recovered()
    assert impossible is None
    assert float(out["batch_var"][0, 4]) == 0.0
    assert float(out["ratio"][0, 4]) == pytest.approx(math.sqrt(1e-3 / 1.1e-3), rel=1e-5)


@pytest.mark.parametrize(("running_var", "known"), [(100.0, False), (0.01, True)])
def test_a_small_batch_variance_is_withheld_beside_a_large_running_one_of_which_it_is_a_rounding(
    running_var: float, known: bool
) -> None:
    readings, _, _ = running(1)
    readings.var[:, :2] = torch.tensor([[running_var], [0.9 * running_var + 0.1 * 0.01]])
    out, impossible = readings.recovered()
    assert impossible is None
    assert readings.states() == [[Recovery.EXACT if known else Recovery.PRECISION, Recovery.EXACT]]
    assert out["batch_var"][0].isnan().tolist() == [not known] * 2 + [False] * 3
    assert out["variance"][0].isnan().tolist() == [not known, False]
    assert out["ratio"].isfinite().all(), "that the variance is small is known"
    assert out["batch_mean"].isfinite().all()


def test_who_is_known_to_have_written_is_not_reported_again() -> None:
    readings, _, _ = running(1)
    readings.var[1, 0] = 0.5
    readings.foreign = torch.tensor([[True, False]])
    out, impossible = readings.recovered()
    assert impossible is None
    assert readings.states() == [[Recovery.FOREIGN, Recovery.EXACT]]
    assert out["shift"][0].isnan().tolist() == [True] * 2 + [False] * 3


@pytest.mark.parametrize("changed", [True, False])
@pytest.mark.parametrize(
    ("updates", "momentum", "same", "other"),
    [
        (0, 0.1, Recovery.NO_UPDATE, Recovery.FOREIGN),
        (1, 0.0, Recovery.NO_MOMENTUM, Recovery.MOMENTUM_CHANGED),
        (-1, 0.1, Recovery.FOREIGN, Recovery.FOREIGN),
    ],
)
@pytest.mark.parametrize("statistic", ["mean", "var"])
def test_without_an_update_that_counts_the_reason_depends_on_whether_something_changed(
    updates: int, momentum: float, same: Recovery, other: Recovery, changed: bool, statistic: str
) -> None:
    readings, _, _ = running(1)
    for tensor in (readings.mean, readings.var):
        tensor[1, :2] = tensor[0, :2]
    if changed:
        getattr(readings, statistic)[1, 1] += 0.25
    readings.updates = torch.tensor([[updates, 1]])
    readings.momentum = torch.tensor([[momentum, 0.1]], dtype=torch.float64)
    out, impossible = readings.recovered()
    assert impossible is None
    assert readings.states() == [[other if changed else same, Recovery.EXACT]]
    assert out["batch_var"][0].isnan().tolist() == [True] * 2 + [False] * 3
    assert out["variance"][0].isnan().tolist() == [True, False]
    assert out["updates"].tolist() == [[updates, 1]]


def test_nan_that_stays_nan_has_not_changed() -> None:
    readings, _, _ = running(1)
    readings.mean[:, :2] = math.nan
    readings.var[1, :2] = readings.var[0, :2]
    readings.updates = torch.tensor([[0, 1]])
    assert readings.states() == [[Recovery.NO_UPDATE, Recovery.EXACT]]


def test_what_a_layer_does_not_count_is_one_update_if_something_changed() -> None:
    readings, means, _ = running(1)
    readings.counted = torch.tensor([[False, False]])
    readings.updates = torch.tensor([[0, 0]])
    for tensor in (readings.mean, readings.var):
        tensor[1, :2] = tensor[0, :2]
    out, _ = readings.recovered()
    assert readings.states() == [[Recovery.NO_UPDATE, Recovery.EXACT]]
    assert out["updates"].tolist() == [[0, 1]]
    torch.testing.assert_close(out["batch_mean"][0, 2:].double(), means[0, 2:], rtol=1e-4, atol=1e-4)


# -- layers without running statistics ---------------------------------------------------------------------------------


def seen(calls: int, mean: list[float], var: list[float]) -> Seen:
    return Seen(calls, 8, torch.tensor(mean), torch.tensor(var))


def test_what_was_seen_of_a_layer_without_running_statistics_fills_its_rows() -> None:
    readings, means, _ = running(5)
    readings.layers = table(tracking=(False, True))
    out, _ = readings.recovered()
    assert readings.states() == [[Recovery.NO_BUFFERS, Recovery.EXACT]] * 5
    assert out["batch_mean"][:, :2].isnan().all()
    steps = [
        {7: seen(1, [1.0, 2.0], [3.0, 5.0])},
        None,
        {7: seen(2, [4.0, 6.0], [1.0, 9.0]), 8: seen(1, [9.0] * 3, [9.0] * 3)},
        {8: seen(1, [9.0] * 3, [9.0] * 3)},
        {7: seen(1, [1.0], [1.0])},
    ]
    fill_seen(readings.layers, out, [7, 8], steps)
    nan = math.nan
    expected = {
        "batch_mean": [[1.0, 2.0], [nan, nan], [4.0, 6.0], [nan, nan], [nan, nan]],
        "batch_var": [[3.0, 5.0], [nan, nan], [1.0, 9.0], [nan, nan], [nan, nan]],
    }
    for name, wanted in expected.items():
        torch.testing.assert_close(out[name][:, :2], torch.tensor(wanted), rtol=0, atol=0, equal_nan=True)
    assert out["variance"][:, 0].nan_to_num(-1).tolist() == [4.0, -1.0, 5.0, -1.0, -1.0]
    none = Recovery.NO_BUFFERS
    assert out["recovery"][:, 0].tolist() == [Recovery.OBSERVED, none, Recovery.AVERAGED, none, none]
    torch.testing.assert_close(out["batch_mean"][:, 2:].double(), means[:, 2:], rtol=1e-4, atol=1e-4)


def test_what_was_seen_is_not_finite_once_no_channel_has_both_statistics() -> None:
    readings, _, _ = running(2)
    readings.layers = table(tracking=(False, True))
    out, _ = readings.recovered()
    half, none = seen(1, [math.nan, 1.0], [1.0, 1.0]), seen(1, [math.nan, 1.0], [1.0, math.inf])
    fill_seen(readings.layers, out, [7, 8], [{7: half}, {7: none}])
    assert out["recovery"][:, 0].tolist() == [Recovery.OBSERVED, Recovery.NON_FINITE]


def test_two_calls_are_averaged_by_their_number_of_values() -> None:
    both = Seen(1, 30, torch.tensor([1.0]), torch.tensor([2.0])).averaged(
        Seen(2, 10, torch.tensor([5.0]), torch.tensor([6.0]))
    )
    assert (both.calls, both.values, both.mean.tolist(), both.var.tolist()) == (3, 40, [2.0], [3.0])
