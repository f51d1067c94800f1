"""`bnmonitor report` and `compare`, on real runs: healthy, faulty, broken off, taken up again, damaged, foreign."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rich.console
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from bnmonitor import Monitor
from bnmonitor.cli import main
from bnmonitor.report.compare import Change, Comparison, cliffs_delta
from bnmonitor.report.read import Report, read
from bnmonitor.report.show import markdown, terminal
from bnmonitor.sinks import TensorBoard

STEPS = 80


def train(log_dir: Path, *, poison: bool = False, steps: int = STEPS, name: str = "norm", start: int = 0) -> None:
    """A short training; with a batch of NaN in the middle, should it be poisoned."""
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("linear", nn.Linear(4, 8))
    model.add_module(name, nn.BatchNorm1d(8))
    monitor = Monitor(model, log_dir=log_dir, log_every_n_steps=5, on_alert="log", sinks=[TensorBoard(log_dir)])
    with monitor:
        for step in range(start, start + steps):
            x = torch.randn(64, 4)
            model(x * torch.nan if poison and step == start + steps // 2 else x).square().mean().backward()
            monitor.step(step)
            if step % 40 == 39:
                monitor.end_epoch()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs")
    train(directory / "healthy")
    train(directory / "sick", poison=True)
    return directory


def run(*arguments: object) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "bnmonitor", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1"},
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


def shown(reports: list[Report], width: int = 80) -> str:
    file = io.StringIO()
    rich.console.Console(file=file, width=width).print(terminal(reports))
    return file.getvalue()


# -- report ------------------------------------------------------------------------------------------------------------


def test_a_healthy_run_is_told_in_a_line_and_exits_with_0(runs: Path) -> None:
    code, said = run("report", runs / "healthy")
    assert code == 0
    assert "17 frames, steps 0 to 79 · ended" in said
    assert "BatchNorm ✓ 1 layer, 8 channels healthy · epoch 1 · step 79\n" in said
    assert "not checked:" not in said
    code, said = run("report", runs / "healthy", "--verbose")
    assert "not checked:" in said


def test_a_sick_run_names_the_layer_the_step_the_fix_and_the_black_box(runs: Path) -> None:
    code, said = run("report", runs / "sick")
    assert code == 1
    for part in (
        "BatchNorm ✗ running statistics are NaN or infinite, since step 40 (norm) · epoch 1 · step 79",
        "✗ running statistics are NaN or infinite · since step 40 · norm",
        "since step 40",
        "fix:",
        "bnmonitor explain BN101",
        "black box:",
        "BN101-norm",
    ):
        assert part in said


def test_the_newest_of_several_runs_is_shown_and_the_others_counted(runs: Path) -> None:
    code, said = run("report", runs)
    assert code == 1
    assert "1 older run" in said
    assert "healthy: BatchNorm ✓" in said
    code, said = run("report", runs, "--run", "healthy")
    assert (code, "older" in said) == (0, False)


@pytest.mark.parametrize(("fail_on", "code"), [("never", 0), ("error", 1), ("warning", 1), ("info", 1)])
def test_the_exit_code_follows_fail_on(runs: Path, fail_on: str, code: int) -> None:
    assert main(["report", str(runs / "sick"), "--json", "--fail-on", fail_on]) == code


def test_json_holds_everything_in_plain_types(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["report", str(runs), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == 1
    assert [each["run"] for each in told["runs"]] == ["sick", "healthy"]
    sick = told["runs"][0]
    assert sick["state"] == "ended"
    assert (sick["first_step"], sick["step"], sick["frames"]) == (0, 79, 17)
    (alert,) = [a for a in sick["alerts"] if a["code"] == "BN101"]
    assert (alert["layer"], alert["first_step"], alert["state"]) == ("norm", 40, "open")
    (incident,) = sick["incidents"]
    assert (incident["cause"], incident["severity"], incident["state"]) == ("non-finite-statistics", "error", "open")
    assert incident["evidence"][0]["code"] == "BN101"
    assert sick["loss"] is None
    assert sick["learning_rates"] == []
    assert sick["layers"][0]["health"] <= 20
    assert len(sick["black_boxes"]) == 1
    assert all(isinstance(why, str) for why in sick["skipped"].values())


def test_markdown_shows_hostile_names_as_they_are(tmp_path: Path) -> None:
    train(tmp_path, poison=True, name="<b>x|*y*`")
    text = markdown(read(tmp_path))
    assert "&lt;b&gt;x\\|\\*y\\*\\`" in text
    assert "<b>" not in text.replace("<br>", "")
    assert "fix: " in text


def test_hostile_names_cannot_mark_up_the_terminal(tmp_path: Path) -> None:
    train(tmp_path, poison=True, name="[red]x[/]")
    assert "[red]x[/]" in shown(read(tmp_path))


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal(runs: Path, width: int) -> None:
    assert max(map(len, shown(read(runs), width).splitlines())) <= width


def test_a_run_that_was_killed_is_read_up_to_its_last_flush(tmp_path: Path) -> None:
    code = "import sys, pathlib, tests.report.test_report as t; t.train(pathlib.Path(sys.argv[1]), steps=10**6)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    try:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and not _frames(tmp_path):
            time.sleep(0.2)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    (found,) = read(tmp_path)
    assert found.frames > 0
    assert not found.ended
    assert found.ending(found.written + 1) == "running"
    assert found.ending(found.written + 10_000).startswith("stopped without a word")


def _frames(path: Path) -> int:
    try:
        return read(path)[0].frames
    except ValueError:
        return 0


def test_a_run_taken_up_again_is_one_run(tmp_path: Path) -> None:
    train(tmp_path, steps=40)
    train(tmp_path, steps=40, start=20)
    (found,) = read(tmp_path)
    assert (found.first_step, found.step) == (0, 59)
    assert found.ended


def test_a_cut_off_file_is_read_as_far_as_it_goes(runs: Path, tmp_path: Path) -> None:
    (file,) = (runs / "healthy").glob("events*")
    whole = file.read_bytes()
    for part in (0.7, 0.5):
        cut = tmp_path / f"events.out.tfevents.{part}"
        cut.write_bytes(whole[: int(len(whole) * part)])
        (found,) = read(cut)
        assert 0 < found.frames < 17
        assert not found.ended


def test_foreign_and_missing_files_give_one_sentence(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path / "foreign")) as writer:
        writer.add_scalar("loss", 1.0, 0)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("hello")
    for path in ("foreign", "empty", "text.txt", "no such"):
        code, said = run("report", tmp_path / path)
        assert code == 2
        assert said.startswith("bnmonitor: ")
        assert said.count("\n") == 1


def test_it_reads_without_torch() -> None:
    code = (
        "import sys; import bnmonitor.report.read, bnmonitor.report.show, bnmonitor.report.compare, bnmonitor.cli;"
        "print([m for m in ('torch', 'pytorch_lightning', 'lightning') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -- compare -----------------------------------------------------------------------------------------------------------


def test_a_fix_is_told_from_a_regression(runs: Path) -> None:
    code, said = run("compare", runs / "sick", runs / "healthy")
    assert code == 0
    assert "1 incident went, 0 incidents came" in said
    code, said = run("compare", runs / "healthy", runs / "sick")
    assert code == 1
    assert "came:" in said
    assert "BN101" in said
    code, said = run("compare", runs / "healthy", runs / "sick", "--fail-on", "never")
    assert code == 0


def test_a_layer_whose_health_got_better_is_not_worse() -> None:
    def change(layer: str, statistic: str, verdict: Any) -> Change:
        return Change(layer=layer, statistic=statistic, before=0.0, after=1.0, delta=1.0, verdict=verdict)

    changes = (change("a", "health", "better"), change("a", "gap", "worse"), change("b", "gap", "worse"))
    nothing: dict[str, Any] = {f.name: () for f in fields(Comparison)}
    found = Comparison(**{**nothing, "changes": changes})
    assert [c.layer for c in found.worse] == ["b"]
    assert found.headline().endswith("1 layer better, 1 layer worse")


def test_a_run_does_not_differ_from_itself(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(runs / "healthy"), str(runs / "healthy"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["changes"] == told["came"] == told["went"] == []
    assert told["schema"] == 2


def test_what_stayed_is_told_with_its_fix_and_not_as_news(runs: Path) -> None:
    _, said = run("compare", runs / "sick", runs / "sick")
    told = said[said.index("stayed:") :]
    assert "✗ running statistics are NaN or infinite · since step 40 · norm" in told
    assert "fix:" in told


def test_layers_of_one_run_only_are_listed(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, name="other")
    main(["compare", str(runs / "healthy"), str(tmp_path), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert (told["only_before"], told["only_after"]) == (["norm"], ["other"])


def test_a_directory_of_runs_cannot_be_compared(runs: Path) -> None:
    code, said = run("compare", runs, runs / "healthy")
    assert code == 2
    assert "holds 2 runs" in said


def test_any_number_of_runs_is_compared_with_the_first(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = run("compare", runs / "healthy", runs / "healthy", runs / "sick")
    assert code == 1
    assert "3 runs: 2 without an open incident, 1 worse than the first" in said
    rows = [line for line in said.splitlines() if line.startswith(("healthy", "sick"))]
    assert ["the first" in rows[0], "the same" in rows[1], "1 came" in rows[2]] == [True] * 3
    assert "running statistics are" in rows[2]
    assert all(len(line) <= 100 for line in said.splitlines())
    assert main(["compare", *[str(runs / name) for name in ("sick", "healthy", "healthy")]]) == 0
    assert "2 without an open incident, 0 worse" in capsys.readouterr().out
    assert main(["compare", *[str(runs / name) for name in ("healthy", "sick", "healthy")], "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert [(one["severity"], one["first_step"]) for one in told["runs"]] == [("", None), ("error", 40), ("", None)]
    assert [len(one["came"]) for one in told["comparisons"]] == [1, 0]
    assert (told["schema"], told["comparisons"][0]["schema"]) == (3, 2)


def test_a_directory_of_two_runs_is_compared_and_one_run_is_not(runs: Path) -> None:
    code, said = run("compare", runs)
    assert (code, "1 incident came" in said) == (1, True)
    code, said = run("compare", runs / "sick")
    assert (code, "give another one" in said) == (2, True)


@settings(max_examples=50, deadline=None)
@given(
    before=st.lists(st.integers(-3, 3), min_size=1, max_size=9),
    after=st.lists(st.integers(-3, 3), min_size=1, max_size=9),
)
def test_cliffs_delta_counts_pairs(before: list[int], after: list[int]) -> None:
    pairs = [(a > b) - (a < b) for a in after for b in before]
    assert cliffs_delta(np.array(before), np.array(after)) == pytest.approx(sum(pairs) / len(pairs))
