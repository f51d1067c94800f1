"""What the finder makes of the models of one process: programs that `bnmonitor run` starts, and their surroundings."""

from __future__ import annotations

import copy
import gc
import os
import runpy
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from bnmonitor import Monitor
from bnmonitor.scripts import finder as found_by
from bnmonitor.scripts.finder import Finder, optimizers_in_memory
from tests.scripts.test_run import PROGRAMS, WATCHED, found

X = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))


def sgd(*modules: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for each in modules for p in each.parameters()], 0.05)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 1) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()


@contextmanager
def finding(folder: Path, *, quiet: bool = True) -> Iterator[Finder]:
    gc.collect()
    finder = Finder(folder / "history", quiet=quiet, others=optimizers_in_memory())
    try:
        yield finder
    finally:
        finder.close()


def test_an_average_that_a_script_wrote_itself_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PROGRAMS))
    with finding(tmp_path):
        runpy.run_path(str(PROGRAMS / "young_average.py"), run_name="__main__")
    assert found(tmp_path) == WATCHED["young_average"]


@pytest.mark.parametrize("way", ["function", "method"])
def test_a_compiled_model_is_found_at_its_first_step(way: str, tmp_path: Path) -> None:
    model = network()
    optimizer, head = sgd(model), nn.Linear(4, 2)
    of_head = sgd(head)
    with finding(tmp_path) as finder:
        if way == "method":
            model.compile(backend="eager")
        compiled = model if way == "method" else torch.compile(model, backend="eager")
        for _ in range(2):
            train(compiled.train(), optimizer, 3)
            train(head, of_head)
            compiled.eval()
            with torch.no_grad():
                compiled(X)
        assert [each.model for each in finder.watched] == [model]
    assert found(tmp_path) == {".": (("1",), 5)}


def test_an_evaluation_beside_an_average_is_one_evaluation(tmp_path: Path) -> None:
    """In inference mode the model and its average run in turn, batch after batch."""
    model = network()
    average, optimizer = copy.deepcopy(model).eval(), sgd(model)
    with finding(tmp_path) as finder:
        for _ in range(3):
            train(model.train(), optimizer, 4)
            model.eval()
            with torch.inference_mode():
                for _ in range(5):
                    model(X)
                    average(X)
        train(model.train(), optimizer)
        window = finder.watched[0].monitor.window()
    assert window is not None
    assert window.ledger.times.max() == 3


def test_evaluations_of_a_network_that_is_trained_in_evaluation_mode_are_seen(tmp_path: Path) -> None:
    model = network()
    optimizer = sgd(model)
    with finding(tmp_path) as finder:
        train(model, optimizer, 2)
        model.eval()  # its statistics are frozen from here on
        for _ in range(3):
            train(model, optimizer, 4)
            with torch.no_grad():
                model(X)
        train(model, optimizer)
        window = finder.watched[0].monitor.window()
    assert window is not None
    assert window.ledger.times.tolist() == [3]


def test_a_model_that_only_runs_without_gradients_is_not_watched(tmp_path: Path) -> None:
    kept, trained = network(), network()
    optimizer = sgd(trained)
    with finding(tmp_path) as finder:
        for _ in range(2):
            with torch.no_grad():
                kept(X)  # in training mode, such as to estimate its statistics anew
            train(trained, optimizer)
        assert [each.model for each in finder.watched] == [trained]


def test_a_part_that_runs_first_and_a_part_that_comes_later_belong_to_the_whole(tmp_path: Path) -> None:
    body = network()
    model = nn.Sequential(body, nn.ReLU(), nn.Linear(2, 2))
    optimizer = sgd(model)
    with finding(tmp_path) as finder:
        body(X)  # to know how many features there are
        train(model, optimizer, 2)
        model[2] = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
        optimizer.add_param_group({"params": list(model[2].parameters())})
        model[2](torch.randn(8, 2))
        train(model, optimizer, 3)
        assert [each.model for each in finder.watched] == [model]
    assert found(tmp_path) == {".": (("0.1",), 4)}


def test_an_average_that_is_made_after_the_first_step_joins_its_model(tmp_path: Path) -> None:
    model, other = network(), nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    optimizers = sgd(model), sgd(other)
    with finding(tmp_path):
        train(other, optimizers[1])
        train(model, optimizers[0], 3)
        average = AveragedModel(model, use_buffers=True)
        for _ in range(4):
            train(model, optimizers[0])
            average.update_parameters(model)
            train(other, optimizers[1])
    assert found(tmp_path)["Sequential-2"] == (("1", "ema.module.1"), 6)


def test_a_model_is_left_to_a_monitor_of_the_script_that_comes_later(tmp_path: Path) -> None:
    model = network()
    optimizer = sgd(model)
    with finding(tmp_path) as finder:
        train(model, optimizer, 2)
        with Monitor(model, sinks=[], on_alert="log") as own:
            for _ in range(3):
                train(model, optimizer)
                own.step()
            assert not finder.watched
    assert len(own.steps) == 3


def test_forked_processes_and_other_threads_are_left_alone(tmp_path: Path) -> None:
    model, other = network(), network()
    optimizer, of_other = sgd(model), sgd(other)
    with finding(tmp_path) as finder:
        train(model, optimizer, 3)
        thread = threading.Thread(target=lambda: train(other, of_other))
        thread.start()
        thread.join()
        if hasattr(os, "fork"):
            child = os.fork()
            if child == 0:
                train(model, optimizer)
                finder.close()
                os._exit(0 if len(finder.watched[0].monitor.steps) == 3 else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        train(model, optimizer)
        assert [each.model for each in finder.watched] == [model]
    assert found(tmp_path) == {".": (("1",), 3)}


def test_a_traced_model_and_modules_without_layers_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(found_by, "MOST", 4)
    model, plain = network(), nn.Linear(4, 2)
    optimizer = sgd(plain)
    with finding(tmp_path, quiet=False) as finder:
        torch.jit.trace(model, X)
        for _ in range(9):
            nn.ReLU()(X)  # a new module in each step
            train(plain, optimizer)
        assert not finder.watched
    assert capfd.readouterr().err.splitlines()[-1] == "bnmonitor: no model with a BatchNorm layer was trained here"


def test_a_history_that_cannot_be_written_is_said_and_the_training_goes_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "history").write_text("a file")
    model = network()
    with finding(tmp_path, quiet=False):
        train(model, sgd(model), 3)
    assert model[1].num_batches_tracked == 3
    assert "a sink of bnmonitor failed" in capfd.readouterr().err


@pytest.mark.parametrize("quiet", [False, True])
def test_an_error_in_a_script_s_model_is_said_in_a_line_and_the_training_goes_on(
    quiet: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Unbuilt(nn.Sequential):
        def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
            raise RuntimeError("build it first")

    model = Unbuilt(*network())
    with finding(tmp_path, quiet=quiet):
        train(model, sgd(*model), 3)
    assert model[1].num_batches_tracked == 3
    said = capfd.readouterr().err
    assert ("bnmonitor stopped watching: RuntimeError: build it first\n" in said) is not quiet
    if quiet:
        assert not said


def test_the_second_optimizer_ends_the_batches_once_the_first_is_at_rest(tmp_path: Path) -> None:
    model = network()
    first, second = sgd(model[0], model[1]), sgd(model[3])
    with finding(tmp_path) as finder:
        for _ in range(3):
            model(X).square().mean().backward()
            first.step()
            second.step()
        assert len(finder.watched[0].monitor.steps) == 3
        train(model, second, 4)
        assert len(finder.watched[0].monitor.steps) == 7


@pytest.mark.parametrize(
    ("command", "name"),
    [(["python", "-m", "pkg.train", "--lr", "1"], "pkg.train"), (["python", "my train.py"], "my_train")],
)
def test_the_directory_is_named_by_what_was_started_and_is_a_new_one(
    command: list[str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BNMONITOR_LOG_DIR", raising=False)
    monkeypatch.setattr(sys, "orig_argv", command)
    monkeypatch.setattr(sys, "argv", command[-1:])
    directories = []
    for _ in range(3):
        directories.append(found_by.new_directory())
        directories[-1].mkdir(parents=True)
    assert len(set(directories)) == 3
    assert all(each.parent == tmp_path / "bnmonitor_runs" and each.name.startswith(f"{name}-2") for each in directories)
