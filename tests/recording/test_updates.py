"""The ledger: who ran and updated each layer, in real trainings."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bnmonitor import Monitor
from bnmonitor.window import PHASES, Ledger
from tests.end_to_end.test_promises import hooks
from tests.models import ARCHITECTURES, train


def watched(model: Any, **settings: Any) -> Monitor:
    return Monitor(model, sinks=[], on_alert="log", **{"sample_every_n_steps": 3, **settings})


def ledger(monitor: Monitor) -> Ledger:
    window = monitor.window()
    assert window is not None
    return window.ledger


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8))


def steps(monitor: Monitor, model: Callable[[Tensor], Tensor], number: int = 4) -> None:
    for _ in range(number):
        model(torch.randn(32, 4)).square().mean().backward()
        monitor.step()


@contextlib.contextmanager
def in_eval(model: nn.Module) -> Iterator[None]:
    model.eval()
    yield
    model.train()


@pytest.mark.parametrize("phase", PHASES[2:])
def test_an_evaluation_in_evaluation_mode_updates_nothing(phase: Any) -> None:
    model = small()
    with watched(model) as monitor:
        steps(monitor, model)
        with monitor.evaluation(phase), in_eval(model):
            model(torch.randn(32, 4))
        steps(monitor, model)
        book = ledger(monitor)
    assert book.of("evaluated", phase).all()
    assert not book.seen[2:].any()
    assert book.steps == 8
    assert book.called.all()


@pytest.mark.parametrize("phase", PHASES[2:])
@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode, contextlib.nullcontext])
def test_updates_in_an_evaluation_are_counted(phase: Any, guard: Any) -> None:
    model = small()
    with watched(model) as monitor:
        steps(monitor, model)
        for _ in range(2):
            with monitor.evaluation(phase), guard():
                for _ in range(3):
                    model(torch.randn(32, 4))
        steps(monitor, model)
        book = ledger(monitor)
    assert book.of("seen", phase).tolist() == [6, 6]
    assert book.of("latest", phase).tolist() == [3, 3]
    assert not book.of("evaluated", phase).any()


def test_a_layer_without_a_counter_is_seen_to_move_as_well() -> None:
    model = small()
    for layer in (model[1], model[4]):
        layer.num_batches_tracked = None
    model.insert(0, nn.Unflatten(1, (4, 1)))
    model.insert(1, nn.InstanceNorm1d(4, track_running_stats=True))
    model[1] = nn.InstanceNorm1d(1, track_running_stats=True)
    model[0] = nn.Unflatten(1, (1, 4))
    model.insert(2, nn.Flatten())
    with watched(model) as monitor:
        steps(monitor, model)
        with monitor.evaluation():
            model(torch.randn(32, 4))
        book = ledger(monitor)
    assert book.of("seen", "validation").tolist() == [1, 1, 1]


def test_weights_swapped_restored_or_reset_in_an_evaluation_are_no_updates() -> None:
    model = small()
    with watched(model) as monitor:
        steps(monitor, model)
        early = {k: v.clone() for k, v in model.state_dict().items()}
        steps(monitor, model)
        late = {k: v.clone() for k, v in model.state_dict().items()}
        with monitor.evaluation(), in_eval(model):
            model.load_state_dict(early)
            model(torch.randn(32, 4))
        with monitor.evaluation("test"), in_eval(model):
            model.load_state_dict(late)
        with monitor.evaluation("predict"), in_eval(model):
            for layer in (model[1], model[4]):
                layer.reset_running_stats()
            model.train()
            for _ in range(20):
                model(torch.randn(32, 4))
        book = ledger(monitor)
    assert not book.seen[2:].any()


def test_layers_that_alone_are_in_training_mode_are_meant_to_be() -> None:
    model = small()
    with watched(model) as monitor:
        steps(monitor, model)
        with monitor.evaluation(), in_eval(model):
            for layer in (model[1], model[4]):
                layer.train()
            model(torch.randn(32, 4))
        book = ledger(monitor)
    assert not book.seen[2:].any()


@pytest.mark.parametrize("reentrant", [True, False])
def test_updates_by_a_recomputation_are_told_from_those_of_the_forward(reentrant: bool) -> None:
    model = small()

    def forward(x: Tensor) -> Tensor:
        first = checkpoint(model[:3], x.requires_grad_(), use_reentrant=reentrant)
        assert isinstance(first, Tensor)
        return model[3:](first)  # type: ignore[no-any-return]

    with watched(model) as monitor:
        steps(monitor, forward)
        book = ledger(monitor)
    assert book.of("latest", "recompute").tolist() == [1, 0]
    assert book.of("seen", "training").tolist() == [4, 2]
    assert book.of("expected", "training").tolist() == [2, 2]
    assert book.of("seen", "recompute").tolist() == [2, 0]


def test_a_layer_is_called_however_training_reaches_it() -> None:
    model = nn.ModuleDict({"net": small(), "teacher": small().eval(), "spare": small()})

    def forward(x: Tensor) -> Tensor:
        with torch.no_grad():
            target = model["teacher"](x)
        return model["net"](x) - target

    with watched(model) as monitor:
        steps(monitor, forward)
        names, book = monitor.layers.names, ledger(monitor)
    assert {n.split(".")[0] for n, called in zip(names, book.called, strict=True) if called} == {"net", "teacher"}


def test_averaged_layers_are_known() -> None:
    net = small()
    model = nn.ModuleDict({"net": net, "average": torch.optim.swa_utils.AveragedModel(net)})
    with watched(model) as monitor:
        steps(monitor, net)
        names, book = monitor.layers.names, ledger(monitor)
    assert {n.split(".")[0] for n, averaged in zip(names, book.averaged, strict=True) if averaged} == {"average"}


def test_no_hook_is_left_by_an_evaluation_without_a_call() -> None:
    model = small()
    with watched(model, sample_every_n_steps=0) as monitor:
        steps(monitor, model)
        with monitor.evaluation():
            assert hooks(model) == 0
    with watched(model) as monitor:
        steps(monitor, model)
        with monitor.evaluation():
            assert hooks(model) > 0
        steps(monitor, model, 1)
        assert hooks(model) == 0


def test_without_hooks_what_trains_is_taken_to_be_evaluated() -> None:
    model = small()
    with watched(model, sample_every_n_steps=0) as monitor:
        steps(monitor, model)
        with monitor.evaluation(), in_eval(model):
            model(torch.randn(32, 4))
        book = ledger(monitor)
    assert book.of("evaluated", "validation").all()


def test_the_ledger_is_continued_by_a_resumed_run() -> None:
    architecture = ARCHITECTURES["residual"]
    model = architecture.build()
    with watched(model) as monitor:
        train(model, architecture.batches(4), monitor=monitor)
        with monitor.evaluation():
            model(architecture.batches(1)[0])
        before, state = ledger(monitor), monitor.state_dict()
    again = watched(model)
    again.load_state_dict(state)
    with again as monitor:
        train(model, architecture.batches(1), monitor=monitor)
        after = ledger(monitor)
    assert after.of("seen", "validation").tolist() == before.of("seen", "validation").tolist() == [1] * 5
    assert after.steps == 5
    assert after.called.all()


def test_what_was_handed_out_does_not_change() -> None:
    model = small()
    with watched(model) as monitor:
        steps(monitor, model)
        early = ledger(monitor)
        with monitor.evaluation():
            model(torch.randn(32, 4))
    assert not early.seen[2:].any()


def test_a_ledger_is_copied_again_only_after_it_has_changed_and_later_steps_do_not_change_a_copy() -> None:
    model = small()
    with watched(model, sample_every_n_steps=0) as monitor:
        steps(monitor, model)
        before = ledger(monitor)
        steps(monitor, model)
        assert ledger(monitor).seen is before.seen, "nothing has been entered since"
        assert (before.steps, ledger(monitor).steps) == (4, 8)
        with monitor.evaluation("test"):  # in training mode
            model(torch.randn(32, 4))
        after = ledger(monitor)
        model[1].track_running_stats = False
        untracked = ledger(monitor)
    assert not before.of("seen", "test").any()
    assert (after.of("seen", "test") == 1).all()
    assert after.tracks.all()
    assert untracked.tracks.tolist() == [False, True]


def test_no_tensor_that_is_kept_was_made_in_inference_mode_where_a_training_could_not_write_to_it() -> None:
    model = small()
    with watched(model, check_every_n_steps=5) as monitor:
        steps(monitor, model, 40)
        window, state = monitor.window(), monitor.state_dict()["watch"]
        assert window is not None
        kept = [*state["baseline"].values(), *state["ledger"].values(), *state["window"]["rows"].values()]
        kept += [monitor.summary().table, monitor.history(monitor.layers.names[0], "batch_mean"), window.shift]
        assert not any(map(Tensor.is_inference, kept))
