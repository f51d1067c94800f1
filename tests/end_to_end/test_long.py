"""A long run: its frames stay within their budget, spikes and alerts are kept, and nothing grows with the steps."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bnmonitor.history.run import open_history
from bnmonitor.sinks import Run, TensorBoard
from bnmonitor.sinks.own_tabs import ROWS
from bnmonitor.sinks.thinning import Thinning
from tests.sinks.test_sinks import a_summary, an_alert


def written(thinning: Thinning, frames: int, size: int, spikes: frozenset[int] = frozenset()) -> list[int]:
    """The written frames of a healthy run with spikes of a single frame."""
    torch.manual_seed(0)
    health = torch.full((3,), 100.0)
    found = []
    for frame in range(frames):
        variance = torch.empty(3).normal_(0, 0.05).exp()
        variance[1] *= 50 if frame in spikes else 1
        if thinning.wants(variance, health, alerted=False):
            thinning.wrote(size)
            found.append(frame)
    return found


def test_a_run_that_fits_is_written_whole() -> None:
    assert written(Thinning(10_000), 18, 100) == list(range(18))


def test_without_a_budget_every_frame_is_written() -> None:
    assert written(Thinning(None), 500, 10**9) == list(range(500))


def test_frames_become_rarer_by_doubling_strides() -> None:
    found = written(Thinning(40_000), 2000, 100)
    gaps = [b - a for a, b in itertools.pairwise(found)]
    assert found[:75] == list(range(75))
    assert 0.15 * 2000 > len(found) > 0.05 * 2000
    assert {1, 2, 4} <= set(gaps)
    assert max(gaps) <= 128


def test_spikes_are_kept_and_noise_is_not_a_spike() -> None:
    spikes = frozenset(range(301, 2000, 97))
    found = written(Thinning(40_000), 2000, 100, spikes)
    assert spikes <= set(found)
    assert len(found) <= len(written(Thinning(40_000), 2000, 100)) + 2 * len(spikes)


@settings(max_examples=100, deadline=None)
@given(
    budget=st.integers(1, 50_000),
    sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=5),
    wild=st.booleans(),
    alerted=st.booleans(),
)
def test_the_budget_holds_whatever_the_frames_are(budget: int, sizes: list[int], wild: bool, alerted: bool) -> None:
    thinning, total = Thinning(budget), 0
    for frame in range(400):
        variance = torch.tensor([float("nan") if wild and frame % 3 == 0 else 10.0 ** (frame % 7 * wild)])
        if thinning.wants(variance, torch.tensor([100.0]), alerted):
            size = sizes[frame % len(sizes)]
            thinning.wrote(size)
            total += size
    assert total <= budget + 2 * max(sizes)


def test_the_last_frame_and_those_with_an_alert_are_there_although_they_would_be_left_out(tmp_path: Path) -> None:
    sink = TensorBoard(tmp_path, channel_bytes=0, run_bytes=100_000)
    summary = a_summary()
    sink.open(Run(layers=summary.layers))
    for step in range(500):
        if step == 333:
            sink.alert(an_alert("layer1", first_step=333))
        sink.frame(replace(summary, step=step))
    sink.close(replace(summary, step=499))
    run = open_history(tmp_path).run(".")
    steps = run.frames.steps.tolist()
    assert steps[:5] == [0, 1, 2, 3, 4]
    assert 333 in steps
    assert steps[-1] == 499
    assert len(steps) < 200
    assert [alert["first_step"] for alert in run.alerts] == [333]
    assert sum(path.stat().st_size for path in tmp_path.glob("*tfevents*")) < 110_000


@pytest.mark.parametrize("run_bytes", [0, -1])
def test_a_budget_must_be_positive(run_bytes: int) -> None:
    with pytest.raises(ValueError, match=f"run_bytes={run_bytes} must be 1 or more, or None"):
        TensorBoard(run_bytes=run_bytes)


def test_the_table_of_alerts_stays_bounded(tmp_path: Path) -> None:
    sink = TensorBoard(tmp_path)
    sink.open(Run(layers=a_summary().layers))
    sizes = []
    for step in range(3 * ROWS):
        before = sum(path.stat().st_size for path in tmp_path.glob("*tfevents*"))
        sink.alert(an_alert("layer1", first_step=step))
        sizes.append(sum(path.stat().st_size for path in tmp_path.glob("*tfevents*")) - before)
    sink.close(a_summary())
    assert max(sizes[-10:]) < 1.2 * max(sizes[ROWS - 10 : ROWS])
    assert len(open_history(tmp_path).run(".").alerts) == 3 * ROWS


def test_bytes_memory_and_time_stay_bounded_and_spikes_and_alerts_are_kept() -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "long.py"
    arguments = [sys.executable, script, "20000", str(8 << 20)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["sink"]["frames_written"] < figures["sink"]["frames"]
    assert figures["sink"]["last_frame_kept"]
    assert figures["sink"]["memory_growth"] < 16 << 20
    assert figures["monitor"]["memory_growth"] < 16 << 20
    assert figures["monitor"]["step"]["end_us"] < 3 * figures["monitor"]["step"]["begin_us"]
