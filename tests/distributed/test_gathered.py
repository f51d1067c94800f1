"""Gamma and beta that FSDP2 splits over the processes, with ``gather_affine=True``: whole, exact, and never a guess."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.testing._internal.distributed.fake_pg import FakeStore

import bnmonitor
from bnmonitor.distributed.payload import OwnAffine, pack, unpack
from bnmonitor.layers import own_part
from bnmonitor.summary import METRICS
from bnmonitor.testing import make_window
from bnmonitor.window import RankStatistics
from tests.distributed.sharded import CASES, GATHERED, LOG_EVERY, STEPS
from tests.processes import assert_exact, run_cases, seen

of_processes = pytest.mark.skipif(
    sys.platform != "linux" or not dist.is_gloo_available(), reason="forks processes that talk over gloo"
)
MINE = [name for name in CASES if name.startswith(("gathered-", "incident-"))]
NOT_WHOLE = ("gathered-fsdp1", "incident-of-a-rank")
WHOLE = [name for name in MINE if not name.endswith("unwatched") and name not in NOT_WHOLE]
BY_LIGHTNING = ("gathered-lightning", "gathered-alone")
OTHERS = ["lightning-fsdp2-unwatched", "fsdp1-unwatched"]
LOGGED = {0, *range(LOG_EVERY - 1, STEPS, LOG_EVERY)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cases of :mod:`tests.distributed.sharded` in which gamma and beta are gathered, run once."""
    return run_cases("sharded", tmp_path_factory.mktemp("gathered"), [*MINE, *OTHERS])


@of_processes
@pytest.mark.parametrize("case", [*GATHERED, "gathered-lightning"])
def test_it_does_not_change_the_training(runs: Path, case: str) -> None:
    bare = {"gathered-lightning": "lightning-fsdp2-unwatched", "gathered-fsdp1": "fsdp1-unwatched"}
    digests = [process["digest"] for process in seen(runs, case)]
    assert digests == [process["digest"] for process in seen(runs, bare.get(case, f"{case}-unwatched"))]


@of_processes
@pytest.mark.parametrize("case", WHOLE)
def test_every_process_knows_all_channels_of_the_steps_that_were_logged(runs: Path, case: str) -> None:
    for process in seen(runs, case):
        assert_exact(process, STEPS // 2)
        compared = 0
        for layer, history in process["history"].items():
            for row, step in enumerate(process["steps"]):
                gamma, beta = history["gamma"][row], history["beta"][row]
                if step in LOGGED and step in process["whole"]:
                    compared += 1
                    assert torch.equal(gamma, process["whole"][step][layer][0])
                    assert torch.equal(beta, process["whole"][step][layer][1])
                elif case != "gathered-some" and step not in LOGGED:
                    assert gamma.isnan().all()
                    assert beta.isnan().all()
        assert compared >= (4 if case in BY_LIGHTNING else 2 * len(LOGGED) - 2)


@of_processes
@pytest.mark.parametrize("case", WHOLE)
def test_the_last_exchange_has_them_as_they_were_then_and_at_the_start(runs: Path, case: str) -> None:
    for process in seen(runs, case):
        affine = process["ranks"]["affine"]
        assert affine.known.all()
        then = process["whole"][affine.step]
        for i, told in enumerate((affine.gamma, affine.beta)):
            assert torch.equal(told, torch.cat([then[layer][i] for layer in process["names"]]).double())
        if process.get("start"):
            start = torch.cat([process["start"][layer][0] for layer in process["names"]])
            assert torch.equal(affine.gamma_start, start.double())
        if case not in ("gathered-some", "gathered-fabric", *BY_LIGHTNING):
            assert bool((affine.gamma_grad > 0).all())


@of_processes
@pytest.mark.parametrize("case", WHOLE)
def test_rules_and_tables_have_what_they_need(runs: Path, case: str) -> None:
    first = seen(runs, case)[0]
    skipped = first["skipped"]
    assert skipped.keys().isdisjoint({"dead-channels", "gamma-explosion", "weight-decay-on-affine", "folding-hazard"})
    for name in {"learning-rate-too-low", "gradient-growth-with-depth"} & skipped.keys():
        assert "its gradient at each step" in skipped[name]
    table = dict(zip(METRICS, first["table"].T, strict=True))
    then = first["whole"][first["ranks"]["affine"].step]
    for row, layer in enumerate(first["names"]):
        gamma, beta = then[layer]
        assert table["gamma_max"][row] == gamma.abs().max()
        assert table["gamma_min"][row] == gamma.abs().min()
        assert gamma.abs().min() <= table["gamma"][row] <= gamma.abs().max()
        assert beta.min() <= table["beta"][row] <= beta.max()
        assert table["dead"][row] == 0


@of_processes
@pytest.mark.parametrize("case", ["gathered-fsdp2", "gathered-of-four", "gathered-fabric"])
def test_the_history_on_the_disk_has_them(runs: Path, case: str) -> None:
    first = seen(runs, case)[0]
    [run] = bnmonitor.open(runs / case / "log").values()
    for i, statistic in enumerate(("gamma", "beta")):
        for layer in first["names"]:
            steps, values = run.history(layer, statistic)
            for step, row in zip(steps[1:], torch.as_tensor(values[1:]), strict=True):
                # A block of steps has the mean of what was known at them.
                told = torch.stack([first["whole"][s][layer][i] for s in sorted(LOGGED) if s <= step + LOG_EVERY])
                assert bool((row >= told.amin(0) - 1e-2).all())
                assert bool((row <= told.amax(0) + 1e-2).all())


@of_processes
def test_what_cannot_be_gathered_stays_unknown_with_the_reason(runs: Path) -> None:
    for process in seen(runs, "gathered-fsdp1"):
        assert all(history["gamma"].isnan().all() for history in process["history"].values())
        assert (
            "gathers what FSDP2 (fully_shard) splits by channels, and nothing else"
            in (process["skipped"]["dead-channels"])
        )
        table = dict(zip(METRICS, process["table"].T, strict=True))
        assert all(table[name].isnan().all() for name in ("gamma", "gamma_min", "gamma_max", "beta", "dead"))


@of_processes
@pytest.mark.parametrize("case", ["incident-of-two", "incident-of-four"])
def test_the_first_process_reports_what_befell_a_channel_that_another_holds(runs: Path, case: str) -> None:
    first, *others = seen(runs, case)
    [alert] = [a for a in first["alerts"] if a["code"] == "BN702"]
    assert (alert["layer"], list(alert["channels"]), alert["first_step"]) == ("1.1", [3], 11)
    assert [i["layer"] for i in first["incidents"] if i["code"] == "BN702"] == ["1.1"]
    assert all(other["alerts"] == [] and other["incidents"] == [] for other in others)
    assert len(list((runs / case).rglob("events*"))) == 1


@of_processes
def test_an_incident_names_the_rank_with_other_data_and_one_process_reports_it(runs: Path) -> None:
    first, *others = seen(runs, "incident-of-a-rank")
    [alert] = [a for a in first["alerts"] if a["code"] == "BN503"]
    assert "between 4 processes (furthest from the rest: rank 2): " in alert["message"]
    [incident] = [i for i in first["incidents"] if i["code"] == "BN503"]
    assert incident["evidence"][0]["message"] == alert["message"]
    assert all(other["alerts"] == [] and other["incidents"] == [] for other in others)
    assert len(list((runs / "incident-of-a-rank").rglob("events*"))) == 1


# -- without processes -------------------------------------------------------------------------------------------------


@pytest.fixture
def as_rank(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Act as one of many processes, without any of the others."""

    def join(rank: int, world: int) -> None:
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)

    yield join
    if dist.is_initialized():
        dist.destroy_process_group()


LAYOUTS: dict[str, tuple[tuple[int, ...], tuple[Any, ...]]] = {
    "one": ((1,), (Shard(0),)),
    "two": ((2,), (Shard(0),)),
    "five": ((5,), (Shard(0),)),
    "replicas": ((2, 3), (Replicate(), Shard(0))),
    "replicas inside": ((3, 2), (Shard(0), Replicate())),
    "twice": ((2, 3), (Shard(0), Shard(0))),
    "whole": ((4,), (Replicate(),)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7, 12])
def test_each_channel_is_told_by_one_process(as_rank: Any, layout: str, channels: int) -> None:
    shape, placements = LAYOUTS[layout]
    world = int(torch.tensor(shape).prod())
    told = torch.zeros(channels, dtype=torch.int64)
    for rank in range(world):
        as_rank(rank, world)
        mesh = init_device_mesh("cpu", shape)
        size, offset = compute_local_shape_and_global_offset((channels,), mesh, placements)
        parameter = DTensor.from_local(
            torch.zeros(size), mesh, placements, shape=torch.Size((channels,)), stride=(1,), run_check=False
        )
        part = own_part(parameter)
        assert part is not None
        if part.start < part.stop:
            assert (part.start, part.stop) == (offset[0], offset[0] + size[0])
        told[part] += 1
        dist.destroy_process_group()
    assert told.tolist() == [1] * channels


def test_a_layout_that_is_not_understood_is_not_guessed_at(as_rank: Any) -> None:
    as_rank(0, 2)
    mesh = init_device_mesh("cpu", (2,))
    assert own_part(distribute_tensor(torch.zeros(4, 4), mesh, [Shard(0)])) is None
    assert own_part(nn.Parameter(torch.zeros(4))) is None
    assert own_part(distribute_tensor(torch.zeros(4), mesh, [Shard(0)])) == slice(0, 2)

    class Interleaved:
        dim = 0

    class Odd(nn.Parameter):
        device_mesh = mesh
        placements = (Interleaved(),)

    assert own_part(Odd(torch.zeros(4))) is None


def exchanged(owns: list[Tensor], values: Tensor) -> RankStatistics:
    """What processes hear that tell these channels of a layer of four, with these values."""
    window = make_window(channels=(4,), steps=12)
    window = replace(window, layers=replace(window.layers, split=(0,)))
    parts = [
        OwnAffine(own=own, gamma=values.where(own, torch.nan), beta=values.where(own, torch.nan), gradient=values)
        for own in owns
    ]
    total = torch.stack([pack(window, overwritten=False, gather=True, affine=part) for part in parts]).sum(0)
    found = unpack(total, window, world_size=len(owns), overwritten=False, gather=True)
    assert found is not None
    return found


def test_only_what_exactly_one_process_has_told_is_known() -> None:
    values = torch.tensor([0.0, -2.5, torch.inf, torch.nan])
    first, second = torch.tensor([True, True, False, False]), torch.tensor([False, False, True, True])
    affine = exchanged([first, second], values).affine
    assert affine is not None
    assert affine.known.all()
    torch.testing.assert_close(affine.gamma, values.double(), equal_nan=True, rtol=0, atol=0)

    twice = exchanged([first, first | second], values).affine
    assert twice is not None
    assert twice.known.tolist() == [False, False, True, True]
    assert twice.gamma[:2].isnan().all()

    some = exchanged([first, torch.zeros(4, dtype=torch.bool)], values).affine
    assert some is not None
    assert some.known.tolist() == [True, True, False, False]
    assert some.gamma[2:].isnan().all()
    assert exchanged([torch.zeros(4, dtype=torch.bool)] * 2, values).affine is None
