"""Hundreds of runs in a directory, and runs that lie elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bnmonitor
from bnmonitor.runs import runs as module
from bnmonitor.runs.index import entries
from tests.histories import write
from tests.runs.test_monitor_views import trained


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    return place


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the event files that were read."""
    seen: list[str] = []
    source = module.Files

    def spy(path: Path, files: Any) -> Any:
        seen.extend(name for name, _ in files)
        return source(path, files)

    monkeypatch.setattr(module, "Files", spy)
    return seen


def some_runs(logs: Path, count: int = 6) -> None:
    for i in range(count):
        write(logs / f"run-{i}", ("a", "b"), range(0, 50, 5), sick=(1,) if i % 2 else (), channels=4)


def test_runs_that_have_not_changed_are_listed_without_reading_them(tmp_path: Path, read: list[str]) -> None:
    some_runs(tmp_path)
    first = repr(bnmonitor.open(tmp_path))
    assert sorted(set(read)) == [f"run-{i}" for i in range(6)]
    read.clear()
    assert repr(bnmonitor.open(tmp_path)) == first
    assert read == []
    write(tmp_path / "run-3", ("a", "b"), range(50, 100, 5), channels=4)
    write(tmp_path / "run-9", ("a",), range(0, 10, 5), channels=4)
    again = bnmonitor.open(tmp_path)
    assert "'run-3': 2 layers, last step 95" in repr(again)
    assert sorted(set(read)) == ["run-3", "run-9"]
    shutil.rmtree(tmp_path / "run-0")
    assert "run-0" not in bnmonitor.open(tmp_path)


def test_what_is_listed_is_what_the_run_says(tmp_path: Path) -> None:
    some_runs(tmp_path)
    bnmonitor.open(tmp_path)._repr_html_()
    runs = bnmonitor.open(tmp_path)
    listed = entries(tmp_path, runs._files, lambda name: pytest.fail(f"{name} was read again"))
    assert {name: each.verdict for name, each in listed.items()} == {name: run.verdict for name, run in runs.items()}
    assert all(listed[name].last_step == run.steps[-1] for name, run in runs.items())


@pytest.mark.parametrize("damage", [b"", b"{", b'{"version": 1}', b'{"version": "0", "runs": {}}', b"[]", b"\xff"])
def test_a_damaged_index_is_made_anew(tmp_path: Path, cache: Path, damage: bytes) -> None:
    some_runs(tmp_path, 2)
    said = repr(bnmonitor.open(tmp_path))
    [index] = (cache / "bnmonitor").iterdir()
    index.write_bytes(damage)
    assert repr(bnmonitor.open(tmp_path)) == said
    assert repr(bnmonitor.open(tmp_path)) == said


def test_a_single_run_is_opened_without_an_index(tmp_path: Path, cache: Path, read: list[str]) -> None:
    some_runs(tmp_path)
    runs = bnmonitor.open(tmp_path)
    assert "run-1" in runs
    assert "run-7" not in runs
    assert runs["run-1"].verdict
    assert read == ["run-1"]
    assert not list(cache.iterdir())


def test_without_a_place_for_the_index_runs_are_listed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some_runs(tmp_path / "logs", 2)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(bnmonitor.open(tmp_path / "logs")) == 2


def test_a_run_elsewhere_is_read_as_one_here(tmp_path: Path, cache: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    trained(tmp_path / "one")
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path), "/logs", recursive=True)
    here = bnmonitor.open(tmp_path)["one"]
    there = bnmonitor.open("memory://logs")["one"]
    assert there.verdict == here.verdict
    np.testing.assert_array_equal(there.loss, here.loss)
    assert not list((there.directory).rglob("*.page"))
    assert "'one': 2 layers" in repr(bnmonitor.open("memory://logs"))
    assert not list(cache.iterdir())
    for got, want in zip(there.history("1", "gamma"), here.history("1", "gamma"), strict=True):
        np.testing.assert_array_equal(got, want)


def test_an_address_that_leads_nowhere_is_one_sentence() -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(FileNotFoundError, match="there is no file or directory 'memory://nothing'"):
        bnmonitor.open("memory://nothing")
    with pytest.raises(ValueError, match="foo"):
        bnmonitor.open("foo://logs")
