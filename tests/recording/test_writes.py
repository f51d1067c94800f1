"""Other code that writes to the running statistics: what is recorded is the batch, or is said to be missing."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bnmonitor import Monitor
from bnmonitor.window import Recovery
from tests.recording.test_recovery import Truth, states

STEPS, AT = 30, 10
Write = Callable[[nn.BatchNorm1d], object]


def in_place(norm: nn.BatchNorm1d) -> None:
    norm.running_mean.mul_(0.9)
    norm.running_var.mul_(0.9)


def copied(norm: nn.BatchNorm1d) -> None:
    norm.running_mean.copy_(norm.running_mean + 0.01)
    norm.running_var.copy_(norm.running_var + 0.01)


def loaded(norm: nn.BatchNorm1d) -> None:
    norm.load_state_dict({name: value + (1 if "mean" in name else 0) for name, value in norm.state_dict().items()})


def assigned(norm: nn.BatchNorm1d) -> None:
    state = {name: value + (1 if "mean" in name else 0) for name, value in norm.state_dict().items()}
    norm.load_state_dict(state, assign=True)


def new_data(norm: nn.BatchNorm1d) -> None:
    norm.running_mean.data = norm.running_mean.data + 0.01


def new_variance(norm: nn.BatchNorm1d) -> None:
    norm.running_var.data = norm.running_var.data * 1.5


def set_to(norm: nn.BatchNorm1d) -> None:
    norm.running_mean.set_(norm.running_mean + 0.01)


def new_buffer(norm: nn.BatchNorm1d) -> None:
    norm.running_var = norm.running_var * 1.01


def in_inference_mode(norm: nn.BatchNorm1d) -> None:
    with torch.inference_mode():
        in_place(norm)


def rounded(norm: nn.BatchNorm1d) -> None:
    for buffer in (norm.running_mean, norm.running_var):
        buffer.copy_(buffer.half())


def through_half(norm: nn.BatchNorm1d) -> None:
    norm.half().float()


def counter(norm: nn.BatchNorm1d) -> None:
    norm.num_batches_tracked.fill_(3)


def hidden_decay(norm: nn.BatchNorm1d) -> None:
    for buffer in (norm.running_mean, norm.running_var):
        buffer.data.mul_(0.99)


def hidden_rounding(norm: nn.BatchNorm1d) -> None:
    for buffer in (norm.running_mean, norm.running_var):
        buffer.data.copy_(buffer.bfloat16())


def from_numpy(norm: nn.BatchNorm1d) -> None:
    norm.running_mean.numpy()[:] += 0.1


SEEN: list[Write] = [in_place, copied, loaded, assigned, new_data, new_variance, set_to, new_buffer, in_inference_mode]
SEEN += [rounded, through_half]


def trained(
    write: Callable[[nn.BatchNorm1d, int], object],
    *,
    within: bool,
    momentum: float | None = 0.1,
    steps: int = STEPS,
    **settings: Any,
) -> tuple[Monitor, Truth]:
    """Train a network, write in each step after its forward, or between it and the next, and collect the truth."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(8, momentum=momentum)
    model = nn.Sequential(nn.Linear(4, 8), norm, nn.Linear(8, 2))
    monitor = Monitor(model, sinks=[], on_alert="log", **{"sample_every_n_steps": 0, "window": 300, **settings})
    truth = Truth(monitor, dict(model.named_modules()), momentum)
    with monitor:
        for step in range(steps):
            model(torch.randn(64, 4) + 3).square().mean().backward()
            with torch.no_grad():
                if within:
                    write(norm, step)
                monitor.step()
                if not within:
                    write(norm, step)
            truth.end_step()
    return monitor, truth


def at(*steps: int) -> Callable[[Write], Callable[[nn.BatchNorm1d, int], object]]:
    return lambda write: lambda norm, step: write(norm) if step in steps else None


def withheld(monitor: Monitor, truth: Truth) -> list[int]:
    """The steps of which nothing is recorded; everything else is compared with the truth, in float64."""
    mean, var = truth.table("1")
    got_mean, got_var = (monitor.history("1", name).double() for name in ("batch_mean", "batch_var"))
    missing = got_mean.isnan().all(1)
    assert missing.equal(got_var.isnan().all(1))
    assert (((got_mean - mean).abs() / var.sqrt())[~missing] <= 1e-3).all()
    assert ((got_var / var - 1)[~missing].abs() <= 1e-3).all()
    found = states(monitor, "1")
    assert all((state is Recovery.FOREIGN) == gone for state, gone in zip(found, missing.tolist(), strict=True))
    return missing.nonzero().flatten().tolist()


@pytest.mark.parametrize("momentum", [0.1, 0.01, None])
@pytest.mark.parametrize("within", [True, False])
@pytest.mark.parametrize("write", SEEN)
def test_a_write_withholds_its_own_step_only(write: Write, within: bool, momentum: float | None) -> None:
    monitor, truth = trained(at(AT)(write), within=within, momentum=momentum)
    assert withheld(monitor, truth) == [AT if within else AT + 1]


@pytest.mark.parametrize("within", [True, False])
@pytest.mark.parametrize("write", SEEN)
def test_writes_in_every_step_withhold_every_step(write: Write, within: bool) -> None:
    monitor, truth = trained(lambda norm, step: write(norm), within=within)
    assert withheld(monitor, truth) == list(range(not within, STEPS))


def test_a_counter_that_is_set_withholds_its_step() -> None:
    monitor, truth = trained(at(2, AT)(counter), within=True)
    assert withheld(monitor, truth) == [2, AT]


@pytest.mark.parametrize("every", [1, 10])
@pytest.mark.parametrize("within", [True, False])
@pytest.mark.parametrize("write", [hidden_decay, hidden_rounding, from_numpy])
def test_a_write_that_autograd_does_not_see_is_contradicted_by_the_sampled_steps(
    write: Write, within: bool, every: int
) -> None:
    """From step 12 to 25 there are writes: what is between the samples that agree is withheld."""

    def writes(norm: nn.BatchNorm1d, step: int) -> None:
        if AT + 2 <= step <= AT + 15:
            write(norm)

    monitor, truth = trained(writes, within=within, steps=50, sample_every_n_steps=every)
    first, last = (12, 25) if within else (13, 26)
    if every == 10:
        first, last = 11, 29
    assert withheld(monitor, truth) == list(range(first, last + 1))


def test_a_hidden_write_in_every_step_withholds_the_whole_run() -> None:
    monitor, truth = trained(lambda norm, step: hidden_decay(norm), within=True, sample_every_n_steps=100)
    assert withheld(monitor, truth) == list(range(STEPS))


@pytest.mark.parametrize("check_every", [1, 4, 10, 50])
@pytest.mark.parametrize("step", [2, 9, 10, 11])
@pytest.mark.parametrize("within", [True, False])
def test_a_single_write_that_leaves_no_trace_is_doubted_if_it_is_large(
    within: bool, step: int, check_every: int
) -> None:
    def write(norm: nn.BatchNorm1d) -> None:
        norm.running_mean.data.add_(2.0)

    monitor, truth = trained(at(step)(write), within=within, check_every_n_steps=check_every)
    hit = step if within else step + 1
    found = states(monitor, "1")
    assert [i for i, state in enumerate(found) if state is not Recovery.EXACT] == [hit]
    assert found[hit] is Recovery.DOUBTFUL
    mean, _ = truth.table("1")
    rest = [i for i in range(STEPS) if i != hit]
    torch.testing.assert_close(monitor.history("1", "batch_mean").double()[rest], mean[rest], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("offset", "factor", "steps"), [(5.0, 1.0, 1), (100.0, 1.0, 2), (100.0, 9.0, 1)])
def test_odd_batches_are_not_doubted_unless_they_look_like_a_write(offset: float, factor: float, steps: int) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(8)
    monitor = watched(norm, 0)
    with monitor:
        for step in range(30):
            x = torch.randn(64, 8)
            norm(offset + factor * x if 12 <= step < 12 + steps else x)
            monitor.step()
    assert set(states(monitor, "(root)")) == {Recovery.EXACT}


@pytest.mark.parametrize("every", [0, 1, 7])
@pytest.mark.parametrize("momentum", [0.1, 0.01, None])
def test_nothing_is_withheld_of_a_sound_training(every: int, momentum: float | None) -> None:
    monitor, truth = trained(lambda norm, step: None, within=True, momentum=momentum, sample_every_n_steps=every)
    assert withheld(monitor, truth) == []


def recorded(model: Callable[[Tensor], Tensor], monitor: Monitor, steps: int = 12) -> set[Recovery]:
    """How the batches of all layers were recovered in a training."""
    with monitor:
        for _ in range(steps):
            model(torch.randn(64, 4, requires_grad=True) + 3).square().mean().backward()
            monitor.step()
    return {state for name in monitor.layers.names for state in states(monitor, name)}


def a_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.BatchNorm1d(8))


def watched(model: nn.Module, every: int) -> Monitor:
    return Monitor(model, sinks=[], on_alert="log", sample_every_n_steps=every)


@pytest.mark.parametrize("backend", ["aot_eager", "eager"])
@pytest.mark.parametrize("every", [0, 5])
def test_a_compiled_forward_writes_in_its_own_way(every: int, backend: str) -> None:
    torch._dynamo.reset()
    model = a_model()
    compiled = torch.compile(model, backend=backend)
    assert recorded(compiled, watched(model, every)) == {Recovery.EXACT}, "what compiles later is not known at first"
    assert recorded(compiled, watched(compiled, every)) == {Recovery.EXACT}
    assert recorded(compiled, watched(model, 5)) == {Recovery.EXACT}, "hooks that nobody calls show the compiler"


@pytest.mark.parametrize("write", [loaded, new_data, new_buffer, assigned])
def test_a_write_beside_a_compiled_forward_is_found(write: Write) -> None:
    model = a_model()
    compiled = torch.compile(model, backend="aot_eager")
    monitor = watched(compiled, 0)
    with monitor:
        for step in range(12):
            compiled(torch.randn(64, 4) + 3).square().mean().backward()
            with torch.no_grad():
                at(5)(write)(model[1], step)
            monitor.step()
        first, second = monitor.layers.names
    assert [step for step, state in enumerate(states(monitor, first)) if state is not Recovery.EXACT] == [5]
    assert set(states(monitor, second)) == {Recovery.EXACT}


def test_layers_known_to_run_eagerly_are_held_to_it_after_a_compilation_elsewhere() -> None:
    torch.compile(nn.Linear(2, 2), backend="aot_eager")(torch.ones(1, 2))
    monitor, truth = trained(at(AT)(in_place), within=True)
    assert withheld(monitor, truth) == [AT]
    monitor, truth = trained(lambda norm, step: in_place(norm), within=True, sample_every_n_steps=100)
    assert withheld(monitor, truth) == list(range(STEPS))


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_recomputation_is_one_more_update_and_no_write(reentrant: bool) -> None:
    model = a_model()

    def run(x: Tensor) -> Tensor:
        out = checkpoint(model, x, use_reentrant=reentrant)
        assert isinstance(out, Tensor)
        return out

    assert recorded(run, watched(model, 5)) == {Recovery.AVERAGED}


def test_synchronized_layers_in_one_process_are_recovered() -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(a_model())
    assert recorded(model, watched(model, 5)) == {Recovery.EXACT}


@pytest.mark.parametrize("swap", ["load", "data"])
def test_weights_swapped_for_an_evaluation_withhold_nothing(swap: str) -> None:
    model = a_model()
    other = {name: value * 0.5 for name, value in model.state_dict().items()}
    monitor = watched(model, 5)
    with monitor:
        for _ in range(12):
            model(torch.randn(64, 4) + 3).square().mean().backward()
            monitor.step()
            with monitor.evaluation(), torch.no_grad():
                own = {name: value.clone() for name, value in model.state_dict().items()}
                for state in (other, own):
                    if swap == "load":
                        model.load_state_dict(state)
                        continue
                    for name, tensor in model.state_dict(keep_vars=True).items():
                        tensor.data = state[name].to(tensor.dtype)
    assert {state for name in ("1", "3") for state in states(monitor, name)} == {Recovery.EXACT}


def test_gamma_that_is_split_late_raises_no_warning() -> None:
    model = a_model()
    monitor = watched(model, 0)
    with warnings.catch_warnings(), monitor:
        warnings.simplefilter("error")
        for step in range(6):
            model(torch.randn(64, 4)).square().mean().backward()
            if step == 2:
                for parameter in model[1].parameters():
                    parameter.data, parameter.grad = parameter.data[:4], None
            monitor.step()
            if step == 2:
                for parameter in model[1].parameters():
                    parameter.data = torch.ones(8)
    assert monitor.failure == ""


def test_statistics_that_become_integers_are_left_out_with_the_reason() -> None:
    model = a_model()
    monitor = watched(model, 0)
    with monitor:
        for step in range(6):
            model(torch.randn(64, 4)).square().mean().backward()
            monitor.step()
            if step == 2:
                model[1].running_mean = model[1].running_mean.long()
                model[1].running_var = model[1].running_var.long()
                model[1].eval()
                monitor.step()
                model[1].running_mean, model[1].running_var = model[1].running_mean.float(), torch.ones(8)
                break
        assert monitor.layers.names == ("3",)
    assert monitor.failure == ""
