from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from bnmonitor.distributed.exchange import UNANSWERED
from bnmonitor.distributed.group import GATHERING
from tests.distributed.run import CASES, LOG_EVERY, STEPS
from tests.processes import run_cases, seen

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not dist.is_gloo_available(), reason="forks processes that talk over gloo"
)
TRUE_TO = 5e-6


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case of :mod:`tests.distributed.run`, run once."""
    return run_cases("run", tmp_path_factory.mktemp("run"), CASES)


@pytest.mark.parametrize(("watched", "bare"), [("broadcast", "broadcast-unwatched"), ("own", "own-unwatched")])
def test_it_does_not_change_a_distributed_training(runs: Path, watched: str, bare: str) -> None:
    assert [s["digest"] for s in seen(runs, watched)] == [s["digest"] for s in seen(runs, bare)]


@pytest.mark.parametrize(
    "case", ["broadcast", "own", "three", "unused", "static", "validated", "apart", "apart-broadcast"]
)
def test_the_first_process_knows_the_statistics_of_all_data_together(runs: Path, case: str) -> None:
    everyone = seen(runs, case)
    first = everyone[0]
    assert len(first["ranks"]) >= STEPS // LOG_EVERY - 1
    for step, heard in first["ranks"].items():
        start = 0
        for layer, recorded in first["batch_mean"].items():
            data = torch.cat([s["inputs"][step][layer] for s in everyone])
            mean, var = (heard[n][start : start + data.shape[1]] for n in ("batch_mean", "batch_var"))
            assert float(((mean - data.mean(0)) / data.std(0)).abs().max()) < TRUE_TO
            assert float((var / data.var(0) - 1).abs().max()) < 2e-5
            start += data.shape[1]
            own = everyone[0]["inputs"][step][layer].mean(0)
            at = recorded[list(first["recorded"]).index(step)]
            torch.testing.assert_close(at.double(), own, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("case", "fires"), [("broadcast", False), ("own", False), ("apart", True), ("apart-broadcast", True)]
)
def test_bn503_hears_processes_with_different_data(runs: Path, case: str, fires: bool) -> None:
    alerts = [a for a in seen(runs, case)[0]["alerts"] if a["code"] == "BN503"]
    assert [(a["layer"], a["severity"]) for a in alerts] == ([("net.1", "warning")] if fires else [])


@pytest.mark.parametrize(("case", "rank"), [("odd", 2), ("odd-broadcast", 3)])
def test_an_incident_names_the_rank_with_other_data_and_one_process_reports_it(
    runs: Path, case: str, rank: int
) -> None:
    first, *others = seen(runs, case)
    assert len(others) == 3
    [alert] = [a for a in first["alerts"] if a["code"] == "BN503"]
    assert f"between 4 processes (furthest from the rest: rank {rank}): " in alert["message"]
    [incident] = [i for i in first["incidents"] if i["code"] == "BN503"]
    assert incident["evidence"][0]["message"] == alert["message"]
    assert len(first["files"]) == 1
    assert all(other["alerts"] == [] and other["incidents"] == [] for other in others)


def test_only_the_first_process_judges_and_writes(runs: Path) -> None:
    for case in ("broadcast", "apart", "three"):
        first, *others = seen(runs, case)
        assert len(first["files"]) == 1
        assert all(other["alerts"] == [] for other in others)


def test_all_processes_stop_at_the_same_step(runs: Path) -> None:
    first, second = seen(runs, "stop")
    assert [(a["code"], a["first_step"]) for a in first["alerts"] if a["severity"] == "error"] == [("BN101", 9)]
    assert first["steps"] == second["steps"] < STEPS


def test_other_callbacks_and_checkpoints_act_in_all_processes_together(runs: Path) -> None:
    """EarlyStopping and ModelCheckpoint watch what the first process judged; a checkpoint needs all of them."""
    assert [process["steps"] for process in seen(runs, "answers")] == [12, 12]
    [saved] = (runs / "answers").rglob("bnmonitor-step=*.ckpt")
    assert torch.load(saved, weights_only=False)["global_step"] == 12
    [best] = (runs / "answers" / "best").iterdir()
    assert torch.load(best, weights_only=False)["global_step"] == 6


def test_an_error_that_is_raised_ends_every_process(runs: Path) -> None:
    said = (runs / "raise" / "error.txt").read_text()
    assert "AlertError: " in said
    assert "explain BN101" in said


def test_what_a_process_cannot_know_under_a_broadcast_is_not_told(runs: Path) -> None:
    """Its buffers change by a batch and by those of the first process: the difference is no batch of its own."""
    for case in ("broadcast", "three", "validated"):
        first, *others = seen(runs, case)
        assert not any(rows.isnan().any() for rows in first["batch_mean"].values())
        assert all(rows.isnan().all() for other in others for rows in other["batch_mean"].values())
    _, second = seen(runs, "own")
    for layer, rows in second["batch_mean"].items():
        truth = torch.stack([second["inputs"][step][layer].mean(0) for step in second["recorded"]])
        torch.testing.assert_close(rows.double(), truth, rtol=1e-4, atol=1e-5)


def test_processes_that_may_run_out_of_batches_take_over_the_buffers_of_any(runs: Path) -> None:
    first, second = seen(runs, "joined")
    assert (len(first["history"]), len(second["history"])) == (8, 6)
    assert first["history"].isnan().all()
    assert second["history"].isnan().all()
    assert first["ranks"] is None


def test_synchronized_statistics_are_those_of_all_processes_in_each(runs: Path) -> None:
    everyone = seen(runs, "synced")
    assert everyone[0]["layers"] == ("SyncBatchNorm", "SyncBatchNorm")
    heard = list(everyone[0]["ranks"].values())[-1]
    for process in everyone:
        start = 0
        for layer in process["batch_mean"]:
            for row, step in enumerate(process["recorded"]):
                data = torch.cat([s["inputs"][step][layer] for s in everyone])
                mean, var = (process[n][layer][row].double() for n in ("batch_mean", "batch_var"))
                torch.testing.assert_close(mean, data.mean(0), rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(var, data.var(0), rtol=1e-4, atol=1e-5)
                if step == heard["step"]:
                    told = heard["batch_var"][start : start + data.shape[1]]
                    torch.testing.assert_close(told, data.var(0), rtol=1e-4, atol=1e-5)
            start += data.shape[1]
    # Six samples a process would be too few each, and are said to be for those that do not synchronize.
    assert {"BN205", "BN503", "BN504"}.isdisjoint(a["code"] for a in everyone[0]["alerts"])


def test_a_training_that_was_stopped_and_resumed_equals_one_that_was_not(runs: Path) -> None:
    once, _ = seen(runs, "two-epochs")
    twice, other = seen(runs, "resumed")
    assert once["digest"] == twice["digest"]
    assert once["recorded"] == twice["recorded"] == tuple(range(24))
    assert once["alerts"] == twice["alerts"] != []
    for layer, rows in once["batch_mean"].items():
        assert torch.equal(rows, twice["batch_mean"][layer])
    # The checkpoint holds what the first process recorded and judged, which the second did not.
    assert other["recorded"] == tuple(range(12, 24))
    assert other["alerts"] == []
    assert max(twice["ranks"]) > 12
    [saved] = (runs / "resumed" / "saved").glob("*.ckpt")
    state = torch.load(saved, weights_only=True)
    assert any(key.startswith("BatchNormMonitor") for key in state["callbacks"])


def test_a_process_without_a_monitor_is_not_waited_for(runs: Path) -> None:
    first, second = seen(runs, "absent")
    assert GATHERING <= first["waited"] < GATHERING + 1
    assert len(first["steps"]) == 4
    assert "share_ranks" in first["skipped"]["rank-divergence"]
    assert "not every one of them called share_ranks()" in second["failure"]


def test_what_one_process_tells_meets_what_the_others_tell_of_the_same_step(runs: Path) -> None:
    for process in seen(runs, "late"):
        assert process["failure"] == ""
        assert process["heard"][-2:] == [20, 30]


def test_a_process_that_never_answers_is_not_waited_for(runs: Path) -> None:
    first, second = seen(runs, "silent")
    assert second == {"first_went_on": True}
    assert first["results"] == [None] * 40
    assert first["failure"] == (
        f"the processes could not exchange their statistics: they have not answered the last {UNANSWERED} times"
    )


def test_an_exchange_that_no_process_answers_in_its_time_has_failed(runs: Path) -> None:
    (first,) = seen(runs, "overdue")
    assert first["failure"].startswith("the processes could not exchange their statistics: ")
