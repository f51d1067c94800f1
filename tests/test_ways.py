"""Ways of training in plain PyTorch: what is recorded in each is the truth, and the training is what it would be."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.checkpoint import checkpoint

from bnmonitor import Monitor
from bnmonitor.statistics import Recovery
from tests.models import ARCHITECTURES
from tests.test_promises import same
from tests.test_recovery import Truth, quiet, states

STEPS = 10
DATA = ARCHITECTURES["residual"]


def loss_of(out: Tensor) -> Tensor:
    return nn.functional.cross_entropy(out.float(), torch.arange(len(out)) % out.shape[1])


class Run:
    """One training, watched or not; ``end_step`` belongs behind every batch."""

    def __init__(self, models: dict[str, nn.Module], monitor: Monitor | None) -> None:
        self.models, self.monitor = models, monitor
        self.model = models.get("", next(iter(models.values())))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.batches = DATA.batches(STEPS)
        named = {".".join(p for p in (k, n) if p): m for k, v in models.items() for n, m in v.named_modules()}
        self.truth = None if monitor is None else Truth(monitor, named, 0.1)
        self.optimizers: list[Optimizer] = [self.optimizer]

    def end_step(self, number: int | None = None) -> None:
        if self.monitor is not None and self.truth is not None:
            self.monitor.step(number)
            self.truth.end_step()

    @contextlib.contextmanager
    def evaluating(self) -> Any:
        modes = [(m, m.training) for model in self.models.values() for m in model.modules()]
        with self.monitor.evaluation() if self.monitor else contextlib.nullcontext(), torch.no_grad():
            self.model.eval()
            yield
        for module, mode in modes:
            module.training = mode

    @contextlib.contextmanager
    def unheard(self) -> Any:
        """The truth's hooks are copied with the model: what copies do is not for it."""
        if self.truth is not None:
            self.truth.on = False
        yield
        if self.truth is not None:
            self.truth.on = True

    def step(self, loss: Tensor, number: int | None = None) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.end_step(number)


def trained(
    way: Callable[[Run], None], build: Callable[[], nn.Module | dict[str, nn.Module]] = DATA.build
) -> tuple[Monitor, Truth]:
    """Train twice, once watched, and compare all that is left behind."""
    left = []
    for watch in (False, True):
        built = build()
        monitor = quiet(built, sample_every_n_steps=2) if watch else None  # type: ignore[arg-type]
        run = Run(built if isinstance(built, dict) else {"": built}, monitor)
        torch.manual_seed(3)
        with monitor or contextlib.nullcontext():
            way(run)
        states = [dict(m.state_dict()) for m in run.models.values()]
        left.append([states, [o.state_dict() for o in run.optimizers], torch.get_rng_state()])
    assert same(*left)
    assert monitor is not None
    assert run.truth is not None
    return monitor, run.truth


def assert_true(monitor: Monitor, truth: Truth, state: Recovery = Recovery.EXACT, mean: float = 1e-5) -> None:
    worst_mean, worst_var = truth.errors(monitor)
    assert worst_mean <= mean
    assert worst_var <= 100 * mean
    for name in monitor.layers.names:
        assert set(states(monitor, name)) == {state}


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
    sample = monitor._watch._sampling.samples[-1]
    assert sample.calls.unique().tolist() == [1], "the recomputation is no call of the training loop's"


def test_several_forwards_a_step() -> None:
    def way(run: Run) -> None:
        for x in run.batches:
            run.step(loss_of(run.model(x) - run.model(x * 1.5 + 1)))

    monitor, truth = trained(way)
    assert_true(monitor, truth, Recovery.AVERAGED)
    assert monitor._watch._sampling.samples[-1].calls.unique().tolist() == [2]


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
    window = monitor._watch.window([])
    assert window is not None
    updates = dict(zip(window.layers.names, window.updates[-1].tolist(), strict=True))
    assert updates == {"maker.1": 2, "critic.1": 3}


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
    sample = monitor._watch._sampling.samples[-1]
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


def test_step_numbers_that_repeat_and_go_back_are_kept_as_told() -> None:
    told = [0, 0, 1, 5, 5, 2, 3, 0, 1, 1]

    def way(run: Run) -> None:
        for number, x in zip(told, run.batches, strict=True):
            run.step(loss_of(run.model(x)), number)

    monitor, truth = trained(way)
    assert monitor.steps == tuple(told)
    assert_true(monitor, truth)
