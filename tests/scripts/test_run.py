"""Scripts under ``bnmonitor run``: what they print, return and leave is what it is without, and they are watched."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import bnmonitor

PROGRAMS = Path(__file__).parent / "programs"
EXAMPLES = Path(__file__).parents[2] / "examples"

BODY = ("body.1", "body.4")

WATCHED: dict[str, dict[str, tuple[tuple[str, ...], int]]] = {
    "accumulation": {".": (BODY, 39)},
    "average": {".": ((*BODY, "ema.module.body.1", "ema.module.body.4"), 119)},
    "closure": {".": (BODY, 11)},
    "compiled": {".": (BODY, 79), "Net-2": (BODY, 79)},
    "distillation": {".": (BODY, 39), "Net-2": (BODY, 79)},
    "folds": {".": (BODY, 80), "Net-2": (BODY, 80), "Net-3": (BODY, 80)},
    "frozen_backbone": {".": (BODY, 39), "Sequential-2": (("1",), 79)},
    "gan": {".": (("1",), 39), "Sequential-2": (("3",), 39)},
    "lightning_script": {".": (BODY, 79)},
    "mixed_precision": {".": (BODY, 79)},
    "plain": {".": (BODY, 119)},
    "siamese": {".": (("1", "4"), 95), "Sequential-2": (("1",), 95)},
    "stochastic_weights": {".": ((*BODY, "ema.module.body.1", "ema.module.body.4"), 119)},
    "time_first": {".": (("1",), 79)},
    "wasserstein": {".": (("1",), 31)},
    "young_average": {".": ((*BODY, "ema.body.1", "ema.body.4"), 39)},
}
"""Layers and last step of the models that are found in each sound program; the first step of a compiled one is not."""

EVERY = "BNMONITOR_EVERY_SCRIPT" in os.environ
"""Each script is started twice, which takes seconds: ``make test`` starts a few, ``make test-integrations`` all."""
ONLY_WITH_ALL = pytest.mark.skipif(not EVERY, reason="make test-integrations starts every script")
FEW = {"folds", "lightning_script"}


def every(*names: str) -> list[Any]:
    """Names of scripts, of which some are started only where all are."""
    return [pytest.param(name, marks=() if name in FEW else ONLY_WITH_ALL) for name in names]


def start(*command: str, watched: bool, folder: Path, **options: str) -> subprocess.CompletedProcess[str]:
    prefix = ["-m", "bnmonitor", "run", "--log-dir", str(folder / "history")] if watched else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent), **options}
    return subprocess.run(
        [sys.executable, *prefix, *command], capture_output=True, text=True, cwd=folder, env=environment, timeout=300
    )


def both(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Start a script without and with; what is printed on standard output and the exit code are the same."""
    plain, watched = (start(*command, watched=each, folder=folder) for each in (False, True))
    assert watched.stdout == plain.stdout
    assert watched.returncode == plain.returncode
    return watched


def found(folder: Path) -> dict[str, tuple[tuple[str, ...], int]]:
    runs = bnmonitor.open(folder / "history")
    return {name: (tuple(run.layers), int(run.steps[-1])) for name, run in runs.items()}


def serious(folder: Path) -> set[str]:
    runs = bnmonitor.open(folder / "history")
    return {i.code for run in runs.values() for i in run.incidents if i.severity.name in ("WARNING", "ERROR")}


@pytest.mark.parametrize("name", every(*WATCHED))
def test_a_sound_script_is_the_same_and_watched_without_an_alarm(name: str, tmp_path: Path) -> None:
    done = both(tmp_path, str(PROGRAMS / f"{name}.py"))
    assert done.returncode == 0, done.stderr
    assert found(tmp_path) == WATCHED[name]
    assert serious(tmp_path) == set()
    assert "bnmonitor report history" in done.stderr


@pytest.mark.parametrize(
    ("command", "codes", "code"),
    [
        (("forgotten_train",), {"BN401"}, 0),
        (("diverges", "30.0"), {"BN704"}, 1),
        (("exits", "--steps", "60"), {"BN704"}, 7),
    ],
)
def test_a_fault_is_named_and_the_script_ends_as_ever(
    command: tuple[str, ...], codes: set[str], code: int, tmp_path: Path
) -> None:
    name, *arguments = command
    done = both(tmp_path, str(PROGRAMS / f"{name}.py"), *arguments)
    assert done.returncode == code
    assert serious(tmp_path) == codes
    assert "scripts" + os.sep not in done.stderr.split("Traceback")[-1].replace(str(PROGRAMS), "")


def test_a_script_that_is_watched_by_its_own_monitor_is_left_alone(tmp_path: Path) -> None:
    both(tmp_path, str(PROGRAMS / "own_monitor.py"))
    assert not (tmp_path / "history").exists()


@pytest.mark.parametrize("name", every("custom_rule", "lightning_ten_lines", "plain_pytorch"))
def test_the_examples_which_watch_themselves_are_left_alone(name: str, tmp_path: Path) -> None:
    plain, watched = (start(str(EXAMPLES / f"{name}.py"), watched=each, folder=tmp_path) for each in (False, True))
    assert watched.returncode == plain.returncode == 0
    assert without_times(watched.stdout) == without_times(plain.stdout)
    assert not (tmp_path / "history").exists()


def without_times(text: str) -> list[str]:
    """What a progress bar leaves in the end, without its rates and times."""
    last = [line.rsplit("\r", 1)[-1] for line in text.splitlines()]
    return [re.sub(r"[\d.:?]+(it/s|s/it|<)?|version_\S+|[━╸╺ ]+", "", line) for line in last]


def test_torchrun_watches_the_first_process(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    run = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    both(tmp_path, *run, str(PROGRAMS / "distributed.py"))
    assert found(tmp_path) == {".": (BODY, 39)}
    assert serious(tmp_path) == set()


@ONLY_WITH_ALL
def test_processes_that_a_script_spawns_are_watched_and_forked_ones_are_left_alone(tmp_path: Path) -> None:
    done = both(tmp_path, str(PROGRAMS / "spawns.py"))
    assert done.stderr.count("BatchNorm ✓") == 2


@ONLY_WITH_ALL
def test_of_processes_that_train_together_the_first_speaks(tmp_path: Path) -> None:
    done = both(tmp_path, str(PROGRAMS / "spawns_group.py"))
    assert found(tmp_path) == {".": (BODY, 19)}
    assert done.stderr.count("bnmonitor") == 1  # the command that shows the rest


def test_the_entry_does_the_same_without_the_command(tmp_path: Path) -> None:
    from bnmonitor.scripts import ENTRY

    paths = {"PYTHONPATH": os.pathsep.join([str(ENTRY), str(EXAMPLES.parent)]), "BNMONITOR_LOG_DIR": "history"}
    script = str(PROGRAMS / "plain.py")
    off = start(script, watched=False, folder=tmp_path, **paths)
    assert not (tmp_path / "history").exists()
    on = start(script, watched=False, folder=tmp_path, BNMONITOR="1", BNMONITOR_QUIET="1", **paths)
    assert on.stdout == off.stdout
    assert on.stderr == off.stderr == ""
    assert found(tmp_path) == WATCHED["plain"]


def test_what_a_script_sees_of_its_start_is_the_same(tmp_path: Path) -> None:
    script = tmp_path / "looks.py"
    script.write_text(
        "import sys; print('bnmonitor' in sys.modules)\n"
        "import os, torch, signal\n"
        "print(sys.argv, __name__, __file__, sys.path[0], len(sys.path), 'sitecustomize' in sys.modules)\n"
        "print(type(torch.__spec__.loader).__name__, signal.getsignal(signal.SIGINT), sys.flags)\n"
        "print([m for m in sys.modules if m.startswith('rich') or m == 'tensorboard'])\n"
    )
    both(tmp_path, str(script), "--log-dir", "x", "-m")
    hidden = tmp_path / "site"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text("print('mine')\n")
    path = os.pathsep.join([str(EXAMPLES.parent), str(hidden)])
    done = start(str(script), watched=True, folder=tmp_path, PYTHONPATH=path)
    assert done.stdout.startswith("mine\n")


@pytest.mark.skipif(os.name == "nt", reason="Windows has other signals")
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=ONLY_WITH_ALL)])
def test_a_signal_ends_the_script_as_ever(number: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "waits.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(PROGRAMS)!r})\n"
        "import runpy, time\nrunpy.run_path(sys.path[0] + '/plain.py')\nprint('ready', flush=True)\ntime.sleep(60)\n"
    )
    codes = []
    for prefix in ([], ["-m", "bnmonitor", "run", "--log-dir", str(tmp_path / "history")]):
        process = subprocess.Popen(
            [sys.executable, *prefix, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent)}, cwd=tmp_path,
        )  # fmt: skip
        assert process.stdout is not None
        while "ready" not in process.stdout.readline():
            assert process.poll() is None
        time.sleep(0.2)
        process.send_signal(number)
        codes.append(process.wait(60))
    assert codes[0] == codes[1]
    assert (tmp_path / "history").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [((), "give a script"), (("nothing_of_this_name.py",), "neither a file nor a command")],
)
def test_what_cannot_be_started_is_said_in_a_line(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bnmonitor", "run", *arguments], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert said in done.stderr
