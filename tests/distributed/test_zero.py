"""DeepSpeed on the CPU, where it is installed: ZeRO-1 and 2 keep parameters whole, ZeRO-3 splits them."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.optim import SGD

from bnmonitor import Monitor
from bnmonitor.context.optimizers import groups_of, trains_copies
from tests.processes import assert_exact, run_cases, seen

STEPS = 24
WAYS = [
    *(f"plain-{what}" for what in ("zero1", "zero2", "zero3", "zero3-small")),
    *(f"lightning-{what}" for what in ("zero1", "zero3")),
    "alone-zero1",
    "alone-zero3",
    "inner",
]
WHOLE = [way for way in WAYS if "zero3" not in way]
SPLIT = [way for way in WAYS if "zero3" in way]
trained = pytest.mark.skipif(
    find_spec("deepspeed") is None or sys.platform != "linux" or not dist.is_gloo_available(),
    reason="needs deepspeed, and forks processes that talk over gloo",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every way of :mod:`tests.distributed.zero`, run once with a monitor and once without."""
    cases = [*WAYS, *(f"{way}-unwatched" for way in WAYS)]
    return run_cases("zero", tmp_path_factory.mktemp("zero"), cases)


@trained
@pytest.mark.parametrize("case", WAYS)
def test_it_does_not_change_a_training_with_deepspeed(runs: Path, case: str) -> None:
    digests = [s["digest"] for s in seen(runs, case)]
    assert len(digests) == (1 if case.startswith("alone") else 2)
    assert digests == [s["digest"] for s in seen(runs, f"{case}-unwatched")]


@trained
@pytest.mark.parametrize("case", WAYS)
def test_statistics_are_exact(runs: Path, case: str) -> None:
    for process in seen(runs, case):
        assert_exact(process, STEPS)


@trained
@pytest.mark.parametrize("case", WAYS)
def test_gamma_is_known_where_it_is_whole_and_gradients_are_not(runs: Path, case: str) -> None:
    for process in seen(runs, case):
        for history in process["history"].values():
            for name in ("gamma", "beta"):
                assert bool(history[name].isnan().all() if case in SPLIT else history[name].isfinite().all())
            assert history["gamma_grad"].isnan().all()


@trained
@pytest.mark.parametrize("case", SPLIT)
def test_rules_that_need_what_is_split_are_skipped_with_the_reason(runs: Path, case: str) -> None:
    skipped = seen(runs, case)[0]["skipped"]
    for name in ("dead-channels", "gamma-explosion", "folding-hazard", "weight-decay-on-affine"):
        assert "FSDP or ZeRO-3 splits them over the processes" in skipped[name]
    assert "FSDP or ZeRO-3 replaces the parameters" in skipped["unregistered-layer"]


@trained
@pytest.mark.parametrize("case", WAYS)
def test_nothing_is_said_of_a_sound_training_that_is_not_so(runs: Path, case: str) -> None:
    """Few updates, a bias that the normalization removes and AdamW's weight decay are all there is to say."""
    for process in seen(runs, case):
        assert {a["code"] for a in process["alerts"]} <= {"BN303", "BN703", "BN803"}
    first = {a["code"] for a in seen(runs, case)[0]["alerts"]}
    assert ("BN703" in first) is (case in WHOLE and case != "inner")


@trained
def test_an_optimizer_that_trains_copies_is_named(runs: Path) -> None:
    skipped = seen(runs, "inner")[0]["skipped"]
    assert "pass the optimizer that deepspeed.initialize returned" in skipped["weight-decay-on-affine"]
    assert "pass the optimizer that deepspeed.initialize returned" in skipped["auxiliary-network-updates"]


@trained
@pytest.mark.parametrize("case", [way for way in WAYS if not way.startswith("alone")])
def test_processes_tell_each_other(runs: Path, case: str) -> None:
    everyone = seen(runs, case)
    heard = everyone[0]["ranks"]
    start = 0
    for layer in everyone[0]["names"]:
        data = torch.cat([s["inputs"][heard["step"]][layer.removeprefix("net.")] for s in everyone])
        mean = heard["batch_mean"][start : start + data.shape[1]]
        assert float(((mean - data.mean(0)) / data.std(0)).abs().max()) < 2e-5
        start += data.shape[1]


@trained
@pytest.mark.parametrize("case", [way for way in WAYS if way.startswith("lightning")])
def test_a_fit_that_goes_on_from_a_checkpoint_keeps_its_window(runs: Path, case: str) -> None:
    assert seen(runs, case)[0]["steps"] == tuple(range(STEPS))


# -- without DeepSpeed -------------------------------------------------------------------------------------------------


class Wrapper:
    """Has flat copies in the groups of another optimizer, as ZeRO-1 does, and the model's parameters beside them."""

    def __init__(self, inner: torch.optim.Optimizer, **kept: Any) -> None:
        own = [list(group["params"]) for group in inner.param_groups]
        for group in inner.param_groups:
            group["params"] = [nn.Parameter(torch.cat([p.detach().flatten() for p in group["params"]]))]
        self.optimizer, self.param_groups = inner, inner.param_groups
        self.own = own
        vars(self).update(kept)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))


def inner(model: nn.Module) -> SGD:
    decayed = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() == 1]
    return SGD([{"params": decayed, "weight_decay": 0.5}, {"params": rest, "weight_decay": 0.25}], lr=0.1)


@pytest.mark.parametrize("name", ["bit16_groups", "bf16_groups", "fp16_groups"])
def test_groups_are_of_the_parameters_that_the_copies_are_made_of(name: str) -> None:
    model = network()
    wrapper: Any = Wrapper(inner(model))
    setattr(wrapper, name, wrapper.own)
    found = {id(p): group.decay for group in groups_of([wrapper]) for p in group.params}
    assert found == {id(p): 0.5 if p.dim() > 1 else 0.25 for p in model.parameters()}
    assert not trains_copies([model], [wrapper], groups_of([wrapper]))


def test_groups_that_are_kept_in_pieces_are_put_back_together() -> None:
    model = network()
    wrapper: Any = Wrapper(inner(model))
    pieces = [[p] for group in wrapper.own for p in group]
    source = {i: int(piece[0].dim() == 1) for i, piece in enumerate(pieces)}
    vars(wrapper).update(fp16_groups=pieces, sub_group_to_group_id=source)
    found = {id(p): group.decay for group in groups_of([wrapper]) for p in group.params}
    assert found == {id(p): 0.5 if p.dim() > 1 else 0.25 for p in model.parameters()}


def train(model: nn.Module, optimizer: Any) -> Monitor:
    monitor = Monitor(model, optimizer=optimizer, sinks=[], on_alert="log", select=("all",))
    with monitor:
        for _ in range(20):
            model(torch.randn(32, 3)).square().mean().backward()
            monitor.step()
    return monitor


def test_a_layer_whose_owner_is_unknown_is_not_said_to_be_of_another_network() -> None:
    model = network()
    monitor = train(model, Wrapper(inner(model)))
    assert {"BN402", "BN407"}.isdisjoint(a.code for a in monitor.alerts)
    for name in ("auxiliary-network-updates", "weight-decay-on-affine"):
        assert "the optimizer trains copies of the parameters" in monitor.skipped[name]


def test_the_optimizer_of_another_network_is_no_copy() -> None:
    model, head = network(), nn.Linear(4, 2)
    monitor = train(model, SGD(head.parameters(), lr=0.1))
    assert "BN402" in {a.code for a in monitor.alerts}
    assert "auxiliary-network-updates" not in monitor.skipped


def test_one_optimizer_of_no_class_of_pytorch_is_an_optimizer() -> None:
    model = network()
    wrapper: Any = Wrapper(inner(model))
    wrapper.bit16_groups = wrapper.own
    monitor = train(model, wrapper)
    assert "weight-decay-on-affine" not in monitor.skipped
    assert [(a.code, a.value) for a in monitor.alerts if a.code == "BN703"] == [("BN703", 0.25)]
