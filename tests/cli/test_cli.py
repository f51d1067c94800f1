"""The command line as people meet it: help, mistakes, pipes, full disks, terminals without our signs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import bnmonitor
from bnmonitor.cli import main
from bnmonitor.cli.commands import _COMMANDS
from bnmonitor.rules import all_rules
from tests.histories import write

NAMES = ("stem.bn", "block.bn")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recorded")
    write(path, NAMES, range(60), sick=(1,))
    return path


def run(*arguments: object, **more: Any) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "COLUMNS": "80", **more.pop("env", {})}
    command = [sys.executable, "-m", "bnmonitor", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.run(command, timeout=3000, check=False, env=environment, **{**pipes, **more})


# -- help and mistakes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["", *_COMMANDS])
def test_help_has_examples_and_fits_a_terminal(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert f"examples:\n  bnmonitor {command}".rstrip() in said
    assert max(map(len, said.splitlines())) <= 80


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from bnmonitor.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    done = subprocess.run(
        [sys.executable, "-c", code + "print({'torch', 'numpy', 'rich', 'tensorboard'} & {*sys.modules})"],
        capture_output=True, text=True, check=True, timeout=3000,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["reprt"], "'reprt' is not known; did you mean 'report'?"),
        (["report", "x", "--fail-on", "eror"], "'eror' is not known; did you mean 'error'?"),
        (["report", "x", "--rows", "0"], "'0' must be a whole number, 1 or more"),
        (["report", "x", "--rows", "x"], "'x' must be a whole number, 1 or more"),
        (["explain"], "the following arguments are required: rule"),
        (["audit", "x.pt", "--input", "2,0,8"], "'2,0,8' must be sizes such as 2,3,224,224"),
        (["audit", "x.pt", "--input", "2x3"], "'2x3' must be sizes such as 2,3,224,224"),
    ],
)
def test_a_mistake_is_one_line(given: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(given)
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert says in line
    assert line.startswith("bnmonitor")
    assert line.endswith("--help")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["explain", "BN999"], "nothing is called 'BN999'; did you mean 'BN806'?; `bnmonitor rules` lists the rules"),
        (["explain", "bn399"], "did you mean 'BN306'?"),
        (["explain", "304x"], "nothing is called '304x'"),
        (["diagnose", "zzz", "yyy"], "no symptom is like 'zzz yyy'; `bnmonitor diagnose` lists them"),
        (["explain", "learning-rate-to-high"], "did you mean 'learning-rate-too-high'?"),
        (["explain", "changed-inpt"], "nothing is called 'changed-inpt'; did you mean 'changed-input'?"),
        (["explain", "stale-statistic"], "did you mean 'stale-statistics'?"),
        (["rules", "BN9"], "no rule is called 'BN9'; did you mean 'BN"),
        (["rules", "BN3", "momentm"], "no rule is called 'momentm'; did you mean"),
    ],
)
def test_an_unknown_name_gets_the_nearest_one(given: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


# -- the manual --------------------------------------------------------------------------------------------------------


def test_rules_without_a_terminal_are_whole_sentences_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:5] for line in lines] == [rule.code for rule in all_rules()]
    assert all(line.endswith((".", ")")) for line in lines)
    (found,) = [line for line in lines if "stale-statistics" in line]
    assert found.split("  ")[-1] == (
        "The running statistics lag behind the batches, in the same direction, step after step."
    )


def test_rules_in_a_terminal_are_a_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["rules", "BN3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["code", "name", "severity", "what", "it", "finds"]
    assert [line[:5] for line in lines if line.startswith("BN")] == [f"BN30{number}" for number in range(1, 7)]
    assert max(map(len, lines)) <= 100


def test_rules_are_chosen_by_words(capsys: pytest.CaptureFixture[str]) -> None:
    def listed(*words: str) -> list[str]:
        assert main(["rules", *words]) == 0
        return [line[:5] for line in capsys.readouterr().out.splitlines()]

    assert listed("BN3") == ["BN301", "BN302", "BN303", "BN304", "BN305", "BN306"]
    assert listed("momentum") == ["BN301", "BN302"]
    assert listed("momentum", "bn201") == ["BN201", "BN301", "BN302"]


def test_the_manual_is_there_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "BN301", "--json"]) == 0
    (rule,) = json.loads(capsys.readouterr().out)["rules"]
    assert (rule["code"], rule["name"], rule["severity"]) == ("BN301", "inverted-momentum", "warning")
    assert main(["explain", "inverted-momentum", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["schema"] == 1
    assert {**said, **rule} == said
    assert said["thresholds"] == {"warn_from": 0.5, "error_from": 0.9, "mixed_ratio": 9.0}
    sections = {each["title"]: each["text"] for each in said["sections"]}
    assert "momentum=0.99" in sections["Code"]
    assert "Example" not in sections
    assert main(["explain", "momentum", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["cause"], said["rules"]) == ("momentum", ["BN301", "BN302"])
    assert "BN603" in said["follows"]
    assert said["url"].endswith("/docs/causes/momentum.md")


def test_diagnose_finds_a_page_by_words_and_lists_them_without(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose"]) == 0
    assert "\nnan-after-hours          NaN after hours\n" in capsys.readouterr().out
    assert main(["diagnose", "nan", "after", "hours"]) == main(["diagnose", "nan after hours"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("NaN after hours\n\n")
    assert "1. A value of the data is not finite\n" in said
    assert "\n   bnmonitor explain non-finite-input\n" in said
    assert 'float("inf")' not in said
    assert main(["diagnose", "swa is bad"]) == 0
    assert "\nor is it: " in capsys.readouterr().out
    assert main(["diagnose", "nan-after-hours", "--code"]) == 0
    said = capsys.readouterr().out
    assert '     images[300, 0, 4, 4] = float("inf")\n' in said
    assert "\n   def network(**settings):\n" in said


def test_diagnose_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", "ema worse", "--json"]) == 0
    [found] = json.loads(capsys.readouterr().out)["symptoms"]
    assert found["symptom"] == "ema-worse-than-raw"
    assert {cause["cause"] for cause in found["causes"]} == {"foreign-statistics"}
    assert main(["diagnose", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["symptoms"]) == 14


def test_a_name_of_a_rule_and_a_cause_explains_the_cause_and_names_the_rule(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["explain", "Learning-Rate-Too-High"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("learning-rate-too-high\n")
    assert "\nRules that speak for it\n  BN704 learning-rate-too-high\n" in said
    assert main(["explain", "BN704"]) == 0
    assert capsys.readouterr().out.startswith("BN704 learning-rate-too-high · ")


def test_without_a_word_it_helps(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "examples:" in capsys.readouterr().out


# -- the demo and what is started --------------------------------------------------------------------------------------


def test_the_demo_names_what_was_planted_and_says_where_it_did_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bnmonitor.cli import demo

    healthy, fast, leaking = demo.RUNS
    monkeypatch.setattr(demo, "RUNS", (fast, replace(leaking, epochs=2)))
    assert main(["demo", "--log-dir", str(tmp_path / "runs")]) == 0
    said = capsys.readouterr().out
    assert "✗" not in said.rpartition("What was planted")[2]
    assert said.rpartition("What was planted")[2].count("✓") == 2
    assert set(bnmonitor.open(tmp_path / "runs")) == {"learning_rate", "frozen_backbone"}
    monkeypatch.setattr(demo, "RUNS", (replace(healthy, epochs=1, planted="BN704"),))
    assert main(["demo", "--log-dir", str(tmp_path / "runs")]) == 1
    assert "✗ not as planted: no alert" in capsys.readouterr().out
    (tmp_path / "file").write_text("")
    assert main(["demo", "--log-dir", str(tmp_path / "file")]) == 2
    assert "cannot write to" in capsys.readouterr().err


def test_the_demo_says_what_it_needs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delitem(sys.modules, "bnmonitor.cli.demo", raising=False)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert main(["demo"]) == 2
    assert "pip install 'bnmonitor[demo]'" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "pytorch_lightning", None)
    with pytest.raises(ModuleNotFoundError):
        main(["demo"])


def test_what_run_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from bnmonitor.scripts import ENTRY, environment, program

    assert main(["run", "--entry"]) == 0
    assert capsys.readouterr().out == f"{ENTRY}\n"
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\n")
    assert program([str(tool)]) == [sys.executable, str(tool)], "it could not be started by itself"
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert program(["tool", "--lr", "1"]) == [str(tool), "--lr", "1"]
    assert program(["-m", "tool"]) == [sys.executable, "-m", "tool"]
    with pytest.raises(FileNotFoundError, match="nothing is neither a file nor a command"):
        program(["nothing"])
    around = environment({"PYTHONPATH": f"{ENTRY}{os.pathsep}other", "HOME": "here"})
    assert around == {"PYTHONPATH": f"{ENTRY}{os.pathsep}other", "HOME": "here", "BNMONITOR": "1"}
    quiet = environment({}, log_dir=tmp_path, quiet=True)
    assert (quiet["BNMONITOR_LOG_DIR"], quiet["BNMONITOR_QUIET"]) == (str(tmp_path), "1")


# -- pipes, disks, encodings -------------------------------------------------------------------------------------------


def test_a_run_comes_through_a_pipe_and_its_page_leaves_through_one(recorded: Path) -> None:
    (file,) = recorded.glob("*tfevents*")
    with file.open("rb") as stream:
        told = run("report", "-", stdin=stream)
    assert told.returncode == 1
    assert b"standard input" in told.stdout
    assert b"variance-explosion" in told.stdout
    page = run("report", "-", "--html", "-", input=file.read_bytes())
    assert page.stdout.startswith(b"<!doctype html>")
    assert run("report", "-", input=b"").returncode == 2


def test_a_named_pipe_is_read_to_its_end(recorded: Path, tmp_path: Path) -> None:
    (file,) = recorded.glob("*tfevents*")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cp", str(file), str(pipe)]) as copying:
        told = run("report", pipe)
        copying.wait(300)
    assert told.returncode == 1
    assert b"60 frames" in b" ".join(told.stdout.split())  # a long path breaks the line


@pytest.mark.parametrize("form", [[], ["--json"], ["--markdown"]])
def test_a_reader_that_has_enough_is_no_error(recorded: Path, form: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = run("report", recorded, *form, stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("form", [[], ["--json"], ["--markdown"], ["--html", "/dev/full"]])
def test_a_full_disk_is_one_line(recorded: Path, form: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = run("report", recorded, *form, stdout=full)
    assert done.returncode == 2
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("bnmonitor: cannot write")
    assert line.endswith("No space left on device")


@pytest.mark.parametrize("given", [["report"], ["report", "--markdown"], ["explain", "BN304"]])
def test_an_encoding_without_our_signs_gets_plain_ones(recorded: Path, given: list[str]) -> None:
    command = [given[0], recorded, *given[1:]] if given[0] == "report" else given
    done = run(*command, env={"PYTHONIOENCODING": "ascii"})
    assert done.stderr == b""
    assert done.stdout.decode("ascii")


def test_lines_in_a_file_have_no_blanks_at_their_ends(recorded: Path) -> None:
    lines = run("report", recorded).stdout.decode().splitlines()
    assert [line for line in lines if line != line.rstrip()] == []


def test_what_may_not_be_read_is_said(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = Path.open

    def refusing(path: Path, *arguments: Any, **more: Any) -> Any:
        if "closed" in path.parts:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **more)

    for name in ("closed", "free"):
        shutil.copytree(recorded, tmp_path / name)
    monkeypatch.setattr(Path, "open", refusing)  # the tests may run as root, who may read everything
    assert main(["report", str(tmp_path / "closed")]) == 2
    assert "Permission denied" in capsys.readouterr().err
    shutil.copytree(tmp_path / "free", tmp_path / "another")
    main(["compare", str(tmp_path)])
    said = capsys.readouterr().err
    assert "Permission denied" in said
    assert said.endswith("so it is left out\n")
    assert main(["report", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "Permission denied, so it is left out" in said.err
    assert "variance-explosion" in said.out
