"""Layers that are added, removed, replaced or resized during a monitored training."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bnmonitor.monitor import Settings
from bnmonitor.recording import Recorder
from tests.end_to_end.test_promises import hooks
from tests.models import ARCHITECTURES, train
from tests.recording.test_recovery import quiet

DATA = ARCHITECTURES["residual"]


def block(width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Conv2d(8, width, 1), nn.BatchNorm2d(width), nn.Conv2d(width, 8, 1))


def add(model: nn.Module) -> None:
    model[0] = nn.Sequential(model[0], block())


def remove(model: nn.Module) -> None:
    model[4] = nn.Identity()


def replace(model: nn.Module) -> None:
    model[1] = nn.BatchNorm2d(8)


def replace_wider(model: nn.Module) -> None:
    model[4] = block(12)


def prune(model: nn.Module) -> None:
    """Shorten the tensors as pruning tools do; ``num_features`` stays."""
    with torch.no_grad():
        for name in ("conv1", "bn1"):
            module = getattr(model[3], name)
            for registry in (module._parameters, module._buffers):
                for key, tensor in registry.items():
                    if tensor is not None and tensor.dim():
                        kept = tensor[:5].clone()
                        registry[key] = nn.Parameter(kept) if registry is module._parameters else kept
        model[3].conv2.weight = nn.Parameter(model[3].conv2.weight[:, :5].clone())


CHANGES = (add, remove, replace, replace_wider, prune)


def truths(model: nn.Module, seen: dict[str, list[Tensor]]) -> None:
    """Keep the true batch means of every layer from now on."""
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):

            def hook(module: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
                if module.training:
                    seen.setdefault(name, []).append(args[0].detach().double().mean((0, 2, 3)))

            module._forward_pre_hooks.clear()
            module.register_forward_pre_hook(hook)


@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
@pytest.mark.parametrize("at", ["step", "evaluation", "start"])
@pytest.mark.parametrize("change", CHANGES)
def test_the_new_layers_are_watched_at_the_latest_from_the_next_check_on(
    change: Callable[[nn.Module], None], at: str
) -> None:
    model = DATA.build()
    batches = DATA.batches(20)
    with quiet(model, check_every_n_steps=4, sample_every_n_steps=6) as monitor:
        train(model, batches[:6], monitor=monitor)
        if at == "evaluation":
            with monitor.evaluation():
                change(model)
        elif at == "start":
            monitor.close()
            change(model)
            monitor.start()
        else:
            change(model)
        seen: dict[str, list[Tensor]] = {}
        truths(model, seen)
        train(model, batches[6:], monitor=monitor)
        known = {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
        assert set(monitor.layers.names) == set(known)
        assert monitor.layers.channels == tuple(known[n].weight.numel() for n in monitor.layers.names)
        first = monitor.steps[0]
        assert first <= 8
        assert first == 6 or at == "step"
        assert monitor.steps == tuple(range(first, 20))
        for name in known:
            got = monitor.history(name, "batch_mean").double()
            torch.testing.assert_close(got, torch.stack(seen[name])[first - 6 :], rtol=1e-4, atol=1e-5)
        sample = monitor.samples[-1]
        assert sample.calls.tolist() == [1] * len(known)
    assert hooks(model) == len(known), "the test's own"


def test_records_of_the_layers_that_stay_are_kept_and_new_layers_start_empty() -> None:
    model = DATA.build()
    with quiet(model) as monitor:
        train(model, DATA.batches(40), monitor=monitor)
        replace(model)
        train(model, DATA.batches(12), monitor=monitor)
        state = monitor.state_dict()["watch"]
    updates = dict(zip(state["layers"], state["baseline"]["updates"].tolist(), strict=True))
    assert updates.pop("1") == 8, "of the 12, 4 were taken before the check that noticed"
    assert set(updates.values()) == {48}


def test_a_conversion_to_synchronized_layers_keeps_the_records() -> None:
    model = DATA.build()
    monitor = quiet(model)
    with monitor:
        train(model, DATA.batches(8), monitor=monitor)
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        monitor.begin_evaluation()
        monitor.end_evaluation()
        assert set(monitor.layers.kinds) == {"BatchNorm2d", "SyncBatchNorm"} - {"BatchNorm2d"}
        assert set(monitor.state_dict()["watch"]["layers"]) == set(monitor.layers.names)


def test_patterns_that_no_longer_match_a_layer_do_not_end_the_recording() -> None:
    model = DATA.build()
    with quiet(model, exclude=("4.*",), check_every_n_steps=2) as monitor:
        train(model, DATA.batches(4), monitor=monitor)
        remove(model)
        train(model, DATA.batches(6), monitor=monitor)
    assert monitor.layers.names == ("1", "3.bn1", "3.bn2")
    assert len(monitor.steps) == 4


def test_a_model_that_gets_its_first_layer_before_the_start_is_watched() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 8))
    with pytest.warns(UserWarning, match="no BatchNorm layer"):
        monitor = quiet(model)
    model.append(nn.BatchNorm1d(8))
    with monitor:
        train(model, DATA.batches(3), monitor=monitor)
    assert monitor.steps == (0, 1, 2)


def test_a_change_after_the_last_step_does_not_discard_the_window() -> None:
    model = DATA.build()
    with quiet(model) as monitor:
        train(model, DATA.batches(6), monitor=monitor)
        replace_wider(model)
    assert monitor.steps == tuple(range(6))
    assert len(monitor.summary()) == 5


def test_looking_for_changes_takes_a_few_calls_for_each_module() -> None:
    def bottleneck() -> nn.Module:
        return nn.Sequential(*[m for _ in range(3) for m in (nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())])

    model = nn.Sequential(*[nn.Sequential(bottleneck()) for _ in range(17)])
    recorder = Recorder({"": model}, Settings())
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        changed = recorder.renewed()
    finally:
        sys.setprofile(None)
    assert not changed
    assert calls < 9 * sum(1 for _ in model.modules())
