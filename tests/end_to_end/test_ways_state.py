"""States that are averaged, copied, loaded or converted during a monitored training, and step numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from bnmonitor.window import Recovery
from tests.end_to_end.ways import STEPS, Run, assert_true, loss_of, trained
from tests.recording.test_recovery import states


@pytest.mark.parametrize("use_buffers", [True, False])
def test_averaged_weights_swapped_in_for_an_evaluation(use_buffers: bool) -> None:
    def way(run: Run) -> None:
        average = AveragedModel(run.model, multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=use_buffers)
        for i, x in enumerate(run.batches):
            run.step(loss_of(run.model(x)))
            average.update_parameters(run.model)
            if i % 3 == 1:
                with run.unheard():
                    update_bn([x], average)
                kept = copy.deepcopy(run.model.state_dict())
                with run.evaluating():
                    run.model.load_state_dict(average.module.state_dict())
                    run.model(x)
                    run.model.load_state_dict(kept)

    assert_true(*trained(way))


def test_a_copy_made_and_trained_in_a_sampled_step() -> None:
    def way(run: Run) -> None:
        for x in run.batches:
            with run.unheard():
                twin = copy.deepcopy(run.model)
                loss_of(twin(x * 100)).backward()
            run.step(loss_of(run.model(x)))

    monitor, truth = trained(way)
    assert_true(monitor, truth)
    sample = monitor.samples[-1]
    assert sample.calls.unique().tolist() == [1]


@pytest.mark.parametrize("assign", [True, False])
def test_a_state_loaded_between_two_steps(assign: bool) -> None:
    def way(run: Run) -> None:
        old: dict[str, Tensor] = {}
        for i, x in enumerate(run.batches):
            run.step(loss_of(run.model(x)))
            if i == 2:
                old = copy.deepcopy(run.model.state_dict())
            if i == 6:
                run.model.load_state_dict(old, assign=assign)
                run.optimizer = run.optimizers[0] = torch.optim.SGD(run.model.parameters(), lr=0.05)

    monitor, truth = trained(way)
    for name in monitor.layers.names:
        found = states(monitor, name)
        assert [i for i, s in enumerate(found) if s is not Recovery.EXACT] == [7]
        assert found[7] is Recovery.FOREIGN
        got, true = monitor.history(name, "batch_mean"), truth.table(name)[0]
        assert got[7].isnan().all()
        others = [i for i in range(STEPS) if i != 7]
        torch.testing.assert_close(got[others].double(), true[others], rtol=1e-4, atol=1e-4)


def test_a_model_made_half_midway_is_recorded_within_the_rounding_of_its_buffers() -> None:
    def way(run: Run) -> None:
        for i, x in enumerate(run.batches):
            if i == 4:
                run.model.to(torch.bfloat16)
            run.step(loss_of(run.model(x.to(next(run.model.parameters()).dtype))))

    monitor, truth = trained(way)
    slip = torch.finfo(torch.bfloat16).eps / 0.1
    for name in monitor.layers.names:
        got, true = monitor.history(name, "batch_mean"), truth.table(name)[0]
        torch.testing.assert_close(got[:4].double(), true[:4], rtol=1e-4, atol=1e-5)
        scale = monitor.history(name, "running_mean").abs().double() + monitor.history(name, "running_var").sqrt()
        error = (got.double() - true).abs()[4:]
        assert bool((error.isnan() | (error <= 2 * slip * scale[4:] + 1e-2)).all())


def test_step_numbers_that_repeat_and_go_back_are_kept_as_given() -> None:
    numbers = [0, 0, 1, 5, 5, 2, 3, 0, 1, 1]

    def way(run: Run) -> None:
        for number, x in zip(numbers, run.batches, strict=True):
            run.step(loss_of(run.model(x)), number)

    monitor, truth = trained(way)
    assert monitor.steps == tuple(numbers)
    assert_true(monitor, truth)
