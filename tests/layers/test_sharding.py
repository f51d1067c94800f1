"""Parameters that are split over processes (FSDP): what is known stays exact, what is not known is said."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from bnmonitor import Monitor
from bnmonitor.layers import unwrapped
from bnmonitor.layers.sharding import collective_reason
from tests.distributed.sharded import CASES, STEPS, WAYS
from tests.processes import assert_exact, run_cases, seen

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not dist.is_gloo_available(), reason="forks processes that talk over gloo"
)
NOT_GATHERED = [name for name in CASES if not name.startswith(("gathered-", "incident-"))]
WATCHED = [name for name in NOT_GATHERED if not name.endswith("unwatched")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case of :mod:`tests.distributed.sharded`, run once."""
    return run_cases("sharded", tmp_path_factory.mktemp("sharded"), NOT_GATHERED)


@pytest.mark.parametrize("case", [*WAYS, "lightning-fsdp1", "lightning-fsdp2"])
def test_it_does_not_change_a_training_with_split_parameters(runs: Path, case: str) -> None:
    assert [s["digest"] for s in seen(runs, case)] == [s["digest"] for s in seen(runs, f"{case}-unwatched")]


@pytest.mark.parametrize("case", WATCHED)
def test_statistics_are_exact_and_gamma_and_beta_unknown(runs: Path, case: str) -> None:
    for process in seen(runs, case):
        assert_exact(process, STEPS)
        for history in process["history"].values():
            assert all(history[unknown].isnan().all() for unknown in ("gamma", "beta", "gamma_grad"))


@pytest.mark.parametrize("case", WATCHED)
def test_layers_have_the_names_that_a_state_dict_has(runs: Path, case: str) -> None:
    prefix = "net." if case.startswith("lightning") else ""
    assert seen(runs, case)[0]["names"] == (f"{prefix}0.1", f"{prefix}1.1")


@pytest.mark.parametrize("case", WATCHED)
def test_rules_that_need_what_is_split_are_skipped_with_the_reason(runs: Path, case: str) -> None:
    if case == "before":
        return  # runs the default rules
    skipped = seen(runs, case)[0]["skipped"]
    for name in ("dead-channels", "gamma-explosion", "folding-hazard", "weight-decay-on-affine"):
        assert "FSDP or ZeRO-3 splits them over the processes: pass gather_affine=True" in skipped[name]
    assert "FSDP or ZeRO-3 replaces the parameters" in skipped["unregistered-layer"]
    if case in WAYS:
        assert "one process cannot run alone" in skipped["train-eval-gap"]


@pytest.mark.parametrize("case", WATCHED)
def test_nothing_is_said_of_split_parameters_that_is_not_so(runs: Path, case: str) -> None:
    """They train, no layer is a stranger, and the network is what it is: a few updates are all that is wrong."""
    first, *others = seen(runs, case)
    assert {a["code"] for a in first["alerts"]} <= {"BN303", "BN803"}
    assert all({a["code"] for a in other["alerts"]} <= {"BN303", "BN803"} for other in others)
    assert "0 (convolution) → [" in first["structure"]
    assert "1] → " in first["structure"]


@pytest.mark.parametrize("case", WATCHED)
def test_processes_tell_each_other_as_without_sharding(runs: Path, case: str) -> None:
    everyone = seen(runs, case)
    heard = everyone[0]["ranks"]
    assert heard is not None
    start = 0
    for layer in everyone[0]["names"]:
        data = torch.cat([s["inputs"][heard["step"]][layer.removeprefix("net.")] for s in everyone])
        mean = heard["batch_mean"][start : start + data.shape[1]]
        assert float(((mean - data.mean(0)) / data.std(0)).abs().max()) < 2e-5
        start += data.shape[1]


def test_a_fit_that_goes_on_from_a_checkpoint_keeps_its_window(runs: Path) -> None:
    assert seen(runs, "lightning-fsdp2")[0]["steps"] == tuple(range(STEPS))


# -- without processes -------------------------------------------------------------------------------------------------


class Split(nn.Parameter):
    """Stands for a DTensor: its class has ``placements``."""

    placements = ()


def split(layer: nn.BatchNorm1d) -> None:
    for name in ("weight", "bias"):
        layer._parameters[name] = Split(torch.empty(0))


def train(monitor: Monitor, model: nn.Module, layer: nn.BatchNorm1d) -> None:
    whole = dict(layer._parameters)
    layer._parameters.update(weight=nn.Parameter(torch.ones(4)), bias=nn.Parameter(torch.zeros(4)))
    model(torch.randn(32, 3)).square().mean().backward()
    layer._parameters.update(whole)
    monitor.step()


def test_sharding_that_comes_after_the_start_makes_gamma_unknown_and_ends_nothing() -> None:
    layer = nn.BatchNorm1d(4)
    model = nn.Sequential(nn.Linear(3, 4), layer)
    with Monitor(model, sinks=[], on_alert="log") as monitor:
        train(monitor, model, layer)
        assert "dead-channels" not in monitor.skipped
        split(layer)
        for _ in range(12):
            train(monitor, model, layer)
        assert monitor.failure == ""
        assert monitor.layers.split == (0,)
        assert "FSDP" in monitor.skipped["dead-channels"]
        assert monitor.history("1", "gamma").isnan().all()
        assert not monitor.history("1", "batch_mean")[1:].isnan().any()


def test_no_extra_forward_is_made_where_it_would_take_all_processes() -> None:
    layer = nn.BatchNorm1d(4)
    model = nn.Sequential(nn.Linear(3, 4), layer)
    assert collective_reason([model]) == ""
    split(layer)
    with Monitor(model, sinks=[], on_alert="log", probe=True) as monitor:
        train(monitor, model, layer)
        calls: list[Any] = []
        model.register_forward_hook(lambda *_: calls.append(1))
        monitor.begin_evaluation()
        monitor.end_evaluation()
        assert calls == []
        assert "one process cannot run alone" in monitor.skipped["train-eval-gap"]


def test_names_are_without_the_parts_that_wrappers_add() -> None:
    assert unwrapped("_fsdp_wrapped_module.net.0._checkpoint_wrapped_module.bn") == "net.0.bn"
