"""Ways of training in plain PyTorch: each record is true, and the training is unchanged."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from bnmonitor.window import Recovery
from tests.end_to_end.test_promises import same
from tests.end_to_end.ways import DATA, STEPS, Run, assert_true, loss_of, trained


def test_autocast_to_bfloat16() -> None:
    def way(run: Run) -> None:
        for x in run.batches:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = loss_of(run.model(x))
            run.step(loss)

    assert_true(*trained(way))


def test_steps_that_a_gradient_scaler_skips() -> None:
    skipped = []

    def way(run: Run) -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for i, x in enumerate(run.batches):
            run.optimizer.zero_grad()
            scaler.scale(loss_of(run.model(x)) * (torch.inf if i in (2, 5) else 1.0)).backward()
            before = [p.clone() for p in run.model.parameters()]
            scaler.step(run.optimizer)
            scaler.update()
            skipped.append(same(before, [p.detach() for p in run.model.parameters()]))
            run.end_step()

    monitor, truth = trained(way)
    assert [i for i, s in enumerate(skipped[STEPS:]) if s] == [2, 5]
    assert_true(monitor, truth)
    assert not monitor.history("1", "gamma_grad")[[2, 5]].isfinite().any()


def test_accumulated_gradients_are_recorded_micro_batch_by_micro_batch() -> None:
    def way(run: Run) -> None:
        for i, x in enumerate(run.batches):
            loss_of(run.model(x)).backward()
            if i % 2:
                run.optimizer.step()
                run.optimizer.zero_grad()
            run.end_step()

    assert_true(*trained(way))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_activations_update_twice(reentrant: bool) -> None:
    def way(run: Run) -> None:
        for x in run.batches:
            run.step(loss_of(checkpoint(run.model, x.requires_grad_(), use_reentrant=reentrant)))

    monitor, truth = trained(way)
    assert_true(monitor, truth, Recovery.AVERAGED)
    sample = monitor.samples[-1]
    assert sample.calls.unique().tolist() == [1], "the recomputation is not a call by the training loop"


def test_several_forwards_a_step() -> None:
    def way(run: Run) -> None:
        for x in run.batches:
            run.step(loss_of(run.model(x) - run.model(x * 1.5 + 1)))

    monitor, truth = trained(way)
    assert_true(monitor, truth, Recovery.AVERAGED)
    assert monitor.samples[-1].calls.unique().tolist() == [2]


def test_channels_last() -> None:
    def way(run: Run) -> None:
        for x in run.batches:
            run.step(loss_of(run.model(x.to(memory_format=torch.channels_last))))

    assert_true(*trained(way, lambda: DATA.build().to(memory_format=torch.channels_last)))


def test_a_double_model_is_recorded_in_double() -> None:
    def way(run: Run) -> None:
        for x in run.batches:
            run.step(loss_of(run.model(x.double())))

    assert_true(*trained(way, lambda: DATA.build().double()), mean=1e-12)


def test_two_models_in_turn() -> None:
    def build() -> dict[str, nn.Module]:
        torch.manual_seed(0)
        maker = nn.Sequential(nn.Linear(5, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 6))
        critic = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
        return {"maker": maker, "critic": critic}

    def way(run: Run) -> None:
        maker, critic = run.models.values()
        run.optimizers.append(torch.optim.SGD(critic.parameters(), lr=0.05))
        for i in range(STEPS):
            for optimizer, sign in zip(run.optimizers, (1, -1), strict=True):
                optimizer.zero_grad()
                made = maker(torch.randn(16, 5))
                real = critic(torch.randn(16, 6) * (1 + i)) if sign < 0 else made.new_zeros(())
                (sign * (critic(made).mean() - real.mean())).backward()
                optimizer.step()
            run.end_step()

    monitor, truth = trained(way, build)
    assert set(monitor.layers.names) == {"maker.1", "critic.1"}
    assert_true(monitor, truth, Recovery.AVERAGED)
    window = monitor.window()
    assert window is not None
    updates = dict(zip(window.layers.names, window.updates[-1].tolist(), strict=True))
    assert updates == {"maker.1": 2, "critic.1": 3}
