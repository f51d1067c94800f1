"""Reading the flight record: any span of it, what is damaged, and what is not there; its alerts and incidents."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnmonitor.history.flight import budget as sizes
from bnmonitor.history.flight.layout import FOLDER, STATISTICS
from bnmonitor.history.flight.notes import Notes, notes_name
from bnmonitor.history.flight.notes import read as read_notes
from bnmonitor.history.flight.pages import Page
from bnmonitor.history.flight.reader import Flight
from tests.history.flight_records import SMALL, WIDE, a_course, add, begin, settled, truth


@pytest.mark.parametrize("kind", ["page", "blocks", "json"])
def test_a_damaged_file_is_left_out_and_named(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    steps = range(5000)
    rows = truth(SMALL, range(1000))
    writer = begin(tmp_path, SMALL)
    for start in range(0, len(steps), 1000):
        add(writer, rows, steps[start : start + 1000])
    settled(writer)
    file = sorted(tmp_path.glob(f"*.{kind}"))[0]
    whole = file.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(40):
        damaged = bytearray(whole)
        place = int(random.integers(len(damaged)))
        damaged[place : place + int(random.integers(1, 9))] = random.bytes(3)
        file.write_bytes(damaged[: len(damaged) if random.random() < 0.5 else place])
        flight = Flight(tmp_path)
        for statistic in STATISTICS if flight.layers.get("net.bn1") == 5 else ():
            found = flight.series("net.bn1", statistic)
            assert found.mean.shape == (len(found), 5)
        assert isinstance(flight.course()["last"], np.ndarray)
    writer.close()
    if kind == "page":
        file.write_bytes(b"BNFLIGHT" + bytes(100))
        with caplog.at_level(logging.WARNING, logger="bnmonitor"):
            Flight(tmp_path).series("net.bn1", "gamma")
        assert file.name in caplog.text


def test_a_damaged_chunk_costs_its_blocks_and_no_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = truth(SMALL, range(10_000))
    writer = begin(tmp_path, SMALL)
    add(writer, rows, range(10_000), every=1000)
    writer.close()
    second = sorted(tmp_path.glob("*.page"))[1]
    layout = next(iter(Flight(tmp_path)._layouts.values()))
    with Page(second, layout) as page:
        chunk, first, last = page.chunk(0, "gamma"), int(page.header.first[0]), int(page.header.last[-1])
    whole = second.read_bytes()
    second.write_bytes(whole.replace(chunk, chunk[:-1] + bytes([chunk[-1] ^ 1])))
    with caplog.at_level(logging.WARNING, logger="bnmonitor"):
        found = Flight(tmp_path).series("net.bn1", "gamma")
    assert second.name in caplog.text
    assert found.last.tolist() == [*range(first), *range(last + 1, 10_000)]
    exact = np.concatenate([rows["gamma"][:first, :5], rows["gamma"][last + 1 :, :5]])
    assert np.abs(found.mean - exact).max() < 0.01
    assert len(Flight(tmp_path).series("net.bn1", "beta")) == len(Flight(tmp_path).series("net.bn2", "gamma")) == 10_000


@pytest.mark.parametrize("layers", [SMALL, WIDE])
@pytest.mark.parametrize("span", [(None, None), (700, None), (130, 2990), (145, 146), (9000, 9100)])
def test_the_history_is_the_mean_of_the_series(
    tmp_path: Path, layers: dict[str, int], span: tuple[int | None, int | None]
) -> None:
    rows = truth(layers, range(3000))
    writer = begin(tmp_path, layers, budget=max(2**22, sizes.least(sum(layers.values()))))
    add(writer, rows, range(3000))
    writer.detail([1], list(range(140, 150)), {n: rows[n][140:150] for n in STATISTICS}, a_course(range(140, 150)))
    settled(writer)
    flight = Flight(tmp_path)
    for layer in layers:
        for statistic in ("batch_mean", "batch_var"):
            series = flight.series(layer, statistic, *span)
            last, mean = flight.history(layer, statistic, *span)
            assert last.tolist() == series.last.tolist() == sorted(last.tolist())
            np.testing.assert_array_equal(mean, series.mean)
            kept = (series.last >= (span[0] or 0)) & (series.first <= (3000 if span[1] is None else span[1]))
            assert kept.all()
            assert len(series) == 0 or series.last[-1] >= min(2999, span[1] or 2999) - 16
            assert (len(series) == 0) == (span[0] == 9000)
    writer.close()


def test_only_a_part_of_the_run_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = truth(SMALL, range(1000))
    read: list[str] = []
    writer = begin(tmp_path, SMALL)
    for start in range(0, 10_000, 1000):
        add(writer, rows, range(start, start + 1000))
    writer.close()
    real = Page.chunk

    def noted(page: Page, *asked: Any) -> bytes:
        read.append(page.path.name)
        return real(page, *asked)

    monkeypatch.setattr(Page, "chunk", noted)
    found = Flight(tmp_path).series("net.bn2", "gamma", 6100, 6120)
    assert found.last.tolist() == list(range(6100, 6121))
    assert len(read) == 1


def test_an_unknown_name_says_the_nearest(tmp_path: Path) -> None:
    writer = begin(tmp_path, SMALL)
    writer.close()
    flight = Flight(tmp_path)
    with pytest.raises(KeyError, match=r"no layer 'net.bn'; did you mean 'net.bn"):
        flight.series("net.bn", "gamma")
    with pytest.raises(KeyError, match=r"no statistic 'batch_variance'.*batch_var"):
        flight.series("net.bn1", "batch_variance")
    assert len(flight.series("net.bn1", "gamma")) == 0


def test_a_budget_that_is_too_small_says_the_least(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"500 channels needs at least {sizes.least(500):,} bytes, got 1,000"):
        begin(tmp_path, WIDE, budget=1000)


def test_single_steps_of_a_layer_are_kept_where_it_asks(tmp_path: Path) -> None:
    steps = range(200)
    rows = truth(WIDE, steps)
    writer = begin(tmp_path, WIDE)
    add(writer, rows, steps)
    some = {name: rows[name][100:120] for name in STATISTICS}
    writer.detail([1], list(range(100, 120)), some, a_course(range(100, 120)))
    writer.close()
    flight = Flight(tmp_path)
    found = flight.series("net.bn2", "batch_mean")
    single = found.mean[(found.first == found.last)]
    assert len(single) == 20
    error = 0.05 * np.sqrt(rows["batch_var"][:, 300:].max(0))
    assert (np.abs(single - rows["batch_mean"][100:120, 300:]) <= error).all()
    assert not (flight.series("net.bn1", "batch_mean").first == flight.series("net.bn1", "batch_mean").last).any()
    assert len(flight.course()["last"]) == len(flight.series("net.bn1", "gamma"))


def test_a_directory_without_a_record_has_none(tmp_path: Path) -> None:
    assert Flight.of(tmp_path) is None
    (tmp_path / FOLDER).mkdir(parents=True)
    assert Flight.of(tmp_path) is None


def test_of_many_notes_the_last_states_are_kept_within_the_space(tmp_path: Path) -> None:
    notes = Notes(tmp_path / notes_name(1), 2000)
    for i in range(300):
        notes.add(f"alert {i % 7}", {"alert": {"number": i % 7, "value": i}})
        assert notes.size == notes.path.stat().st_size <= 2000
    last = {note["alert"]["number"]: note["alert"]["value"] for _, note in read_notes(tmp_path)}
    assert last == {i % 7: i for i in range(293, 300)}


def test_a_damaged_note_is_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    notes = Notes(tmp_path / notes_name(2), 2000)
    for i in range(3):
        notes.add(str(i), {"alert": i})
    lines = notes.path.read_bytes().splitlines(keepends=True)
    notes.path.write_bytes(lines[0] + lines[1].replace(b"1}", b"7}") + lines[2] + lines[2][:-4])
    with caplog.at_level(logging.WARNING, logger="bnmonitor"):
        assert list(read_notes(tmp_path)) == [(2, {"alert": 0}), (2, {"alert": 2})]
    assert [record.getMessage().split()[1] for record in caplog.records] == ["2", "4"]
