"""The flight record against plain float64 sums: its errors, its budget, and what is left of it after a kill."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from bnmonitor.history.flight import budget as sizes
from bnmonitor.history.flight.codes import decode, encode
from bnmonitor.history.flight.layout import COURSE, FOLDER, STATISTICS, Blocks, Layout, Part, columns
from bnmonitor.history.flight.notes import Notes, notes_name
from bnmonitor.history.flight.notes import read as read_notes
from bnmonitor.history.flight.pages import Page
from bnmonitor.history.flight.reader import Flight
from bnmonitor.history.flight.series import Series
from bnmonitor.history.flight.writer import FlightWriter, size_of

Array = np.ndarray[Any, Any]

SMALL = {"net.bn1": 5, "net.bn2": 3}
WIDE = {"net.bn1": 300, "net.bn2": 200}


def a_course(steps: range, groups: int = 1) -> Array:
    course = np.full((len(steps), len(columns(groups))), np.nan)
    course[:, 0] = [1e9 + step for step in steps]
    course[:, COURSE.index("loss")] = [1 / (1 + step) for step in steps]
    course[:, -groups:] = 0.1
    return course


def truth(layers: dict[str, int], steps: range, seed: int = 0) -> dict[str, Array]:
    """``[T, C]`` of each statistic, as a training has them."""
    random, total = np.random.default_rng(seed), sum(layers.values())
    scale = np.exp(random.normal(size=total))
    mean = random.normal(size=total) * scale
    noise = random.normal(size=(len(steps), total))
    drift = np.array(steps)[:, None] / 1000
    plain = {
        "batch_mean": mean + noise * scale * 0.1 + drift,
        "batch_var": scale**2 * np.exp(noise * 0.2),
        "running_mean": mean + drift,
        "running_var": scale**2 * (1 + drift),
        "gamma": 1 + 0.1 * random.normal(size=total) + drift / 10,
        "beta": 0.1 * random.normal(size=total) - drift / 10,
    }
    return {name: np.broadcast_to(value, noise.shape).astype(np.float32) for name, value in plain.items()}


def begin(folder: Path, layers: dict[str, int], budget: int = 2**26, error: float = 0.05) -> FlightWriter:
    writer = FlightWriter(folder, budget)
    errors = [error] * len(layers)
    writer.begin(list(layers), list(layers.values()), groups=1, mean_error=errors, variance_error=errors)
    return writer


def add(writer: FlightWriter, rows: dict[str, Array], steps: range, at: int = 0, every: int = 10) -> None:
    for start in range(0, len(steps), every):
        some = slice(at + start, at + start + every)
        now = steps[start : start + every]
        writer.add(list(now), {name: rows[name][some] for name in STATISTICS}, a_course(now))


def settled(writer: FlightWriter) -> None:
    """Wait until all that was added is on the disk."""
    while writer.waiting and not writer._failed:
        time.sleep(0.01)


def check(found: Series, rows: Array, steps: range, statistic: str, error: float, scale: Array) -> None:
    """Compare blocks with the rows that they are of."""
    index = {step: place for place, step in enumerate(steps)}
    for first, last, low, mean, high in zip(
        found.first, found.last, found.minimum, found.mean, found.maximum, strict=True
    ):
        some = rows[index[first] : index[last] + 1].astype(np.float64)
        slow = some[::-1][::10][::-1] if statistic not in ("batch_mean", "batch_var") and first < last else some
        for got, want in ((low, slow.min(0)), (mean, slow.mean(0)), (high, slow.max(0))):
            # The slow statistics are read on some of the steps, between which they hardly move.
            between = np.abs(some[-1] - some[0]) if slow is not some else 0.0
            allowed = error * (np.abs(want) if statistic.endswith("var") else scale) * 1.001 + between
            assert (np.abs(got - want) <= allowed + 1e-6).all(), (statistic, first, last)


@pytest.mark.parametrize("layers", [SMALL, WIDE], ids=["each step", "blocks"])
def test_every_channel_of_every_step_is_there_within_the_stated_error(tmp_path: Path, layers: dict[str, int]) -> None:
    steps = range(3, 1203)
    rows = truth(layers, steps)
    writer = begin(tmp_path, layers)
    add(writer, rows, steps)
    writer.close()
    assert writer.failures() == []
    flight, start = Flight(tmp_path), 0
    assert flight.layers == layers
    for layer, channels in layers.items():
        own = slice(start, start + channels)
        start += channels
        deviation = np.sqrt(rows["batch_var"][:, own].max(0))
        gamma = np.full(channels, np.median(np.abs(rows["gamma"][:, own])) * 1.2)
        for statistic in STATISTICS:
            found = flight.series(layer, statistic)
            assert found.first[0] == 3
            assert found.last[-1] == 1202
            assert (found.first[1:] == found.last[:-1] + 1).all()
            assert (len(found) == len(steps)) == (layers is SMALL)
            scale = gamma if statistic in ("gamma", "beta") else deviation
            check(found, rows[statistic][:, own], steps, statistic, flight.error(layer, statistic), scale)


values = st.floats(-1e6, 1e6, width=32) | st.sampled_from([0.0, np.nan, np.inf, -np.inf, 1e-30, 3e38])


@hypothesis.given(
    st.integers(1, 6), st.integers(1, 4), st.booleans(), st.booleans(), st.data(), st.sampled_from([1e-6, 0.01, 1.0])
)
@hypothesis.settings(deadline=None, max_examples=200)
def test_a_chunk_of_any_values_comes_back(
    blocks: int, channels: int, three: bool, logarithmic: bool, data: st.DataObject, step: float
) -> None:
    plain = data.draw(st.lists(values, min_size=blocks * channels, max_size=blocks * channels))
    mean = np.array(plain, np.float32).reshape(blocks, channels)
    mean = np.abs(mean) if logarithmic else mean
    with np.errstate(over="ignore"):
        given = np.stack([mean, mean / 2, mean * 1.5], axis=1) if three else mean[:, None]
    grid = np.full(channels, step, np.float32)
    found = decode(encode(given, grid, logarithmic=logarithmic), given.shape, logarithmic=logarithmic)
    means = decode(encode(given, grid, logarithmic=logarithmic), given.shape, logarithmic=logarithmic, parts=1)
    np.testing.assert_array_equal(means, found[:, :1])
    np.testing.assert_array_equal(np.isnan(found), np.isnan(given))
    known = np.isfinite(given)
    np.testing.assert_array_equal(found[~known], given[~known])
    error = np.abs(found[known] - given[known])
    allowed = np.expm1(step / 2) * given[known] + 1e-37 if logarithmic else step / 2
    assert (error <= allowed * 1.01 + np.abs(given[known]) * 1e-5).all()


@pytest.mark.parametrize("factor", [1e3, 1e9, 1e15])
@pytest.mark.parametrize("layers", [SMALL, WIDE])
def test_what_was_before_a_divergence_stays_exact(tmp_path: Path, layers: dict[str, int], factor: float) -> None:
    steps, error = range(300), 0.05
    rows = truth(layers, steps)
    rows["gamma"][:20, ::2] = 0.0
    sigma = np.sqrt(rows["batch_var"].mean(0))
    for name, grown in rows.items():
        grown[40:] *= factor**2 if "var" in name else factor
    writer = begin(tmp_path, layers, error=error)
    add(writer, rows, steps, every=8)
    writer.close()
    flight, start = Flight(tmp_path), 0
    for layer, count in layers.items():
        span = slice(start, start + count)
        start += count
        for name in STATISTICS:
            found = flight.series(layer, name, last=39)
            calm = found.last < 40
            assert calm.any()
            for first, last, mean in zip(found.first[calm], found.last[calm], found.mean[calm], strict=True):
                exact = rows[name][first : last + 1, span].astype(np.float64)
                wanted = exact.mean(0) if name.startswith("batch") else exact[::-1][::10].mean(0)
                scale = wanted if "var" in name else sigma[span] if "mean" in name else 0.1
                assert (np.abs(mean - wanted) <= 1.2 * error * scale).all(), (layer, name, first)


def test_what_is_not_known_does_not_count(tmp_path: Path) -> None:
    steps = range(64)
    rows = {name: value.copy() for name, value in truth(WIDE, steps).items()}
    rows["batch_mean"][5:9, :300] = np.nan
    rows["batch_mean"][:, 300:] = np.nan
    rows["gamma"][:] = np.nan
    writer = begin(tmp_path, WIDE)
    add(writer, rows, steps)
    writer.close()
    flight = Flight(tmp_path)
    found = flight.series("net.bn1", "batch_mean")
    first = found.last[0] + 1
    error = 0.05 * np.sqrt(rows["batch_var"][:, :300].max(0))
    assert (np.abs(found.mean[0] - np.nanmean(rows["batch_mean"][:first, :300], axis=0)) <= error).all()
    assert np.isnan(flight.series("net.bn2", "batch_mean").mean).all()
    assert np.isnan(flight.series("net.bn1", "gamma").mean).all()
    assert np.isfinite(flight.series("net.bn1", "beta").mean).all()


def test_the_budget_is_kept_at_all_times_and_the_oldest_blocks_are_the_longest(tmp_path: Path) -> None:
    steps, budget = range(16_000), sizes.least(500)
    rows = truth(WIDE, range(1000))
    writer = begin(tmp_path, WIDE, budget)
    largest = 0
    for start in range(0, len(steps), 1000):
        add(writer, rows, steps[start : start + 1000], every=250)
        settled(writer)
        largest = max(largest, size_of(tmp_path))
    writer.close()
    assert writer.failures() == []
    assert budget / 4 < max(largest, size_of(tmp_path)) <= budget
    found = Flight(tmp_path).series("net.bn2", "batch_mean")
    assert (found.first[0], found.last[-1]) == (0, 15_999)
    assert (found.first[1:] == found.last[:-1] + 1).all()
    lengths = (found.last - found.first + 1)[:-1]
    assert (np.diff(lengths) <= 0).all()
    assert lengths[0] > lengths[-1]
    some = rows["batch_mean"][np.arange(lengths[0]) % 1000, 300:]
    low, high = some.min(0), some.max(0)
    allowed = 2 * 0.05 * np.sqrt(rows["batch_var"][:, 300:].max(0))
    np.testing.assert_array_less(np.abs(found.minimum[0] - low), allowed)
    np.testing.assert_array_less(np.abs(found.maximum[0] - high), allowed)


def test_in_a_long_run_new_blocks_have_twice_as_many_steps(tmp_path: Path) -> None:
    steps = range(2500)
    rows = truth(WIDE, steps)
    writer = begin(tmp_path, WIDE)
    add(writer, rows, steps)
    writer.close()
    found = Flight(tmp_path).series("net.bn1", "batch_var")
    lengths = (found.last - found.first + 1)[:-1].tolist()
    assert lengths == [8] * 256 + [16] * ((2500 - 2048) // 16)
    assert (found.first[1:] == found.last[:-1] + 1).all()
    check(found, rows["batch_var"][:, :300], steps, "batch_var", 0.05, np.ones(300))


def test_pages_with_shorter_blocks_than_newer_ones_are_joined_first() -> None:
    layout = Layout(1, 0, ("bn",), (500,), block=8, page=16)
    pages = [
        Part(1, 0, number << level, level, "page", Path("p"))
        for level, number in [(1, 0), *((0, n) for n in range(2, 24))]
    ]
    lengths = {page: sizes.length_of(page, layout) for page in pages}
    assert [lengths[page] for page in pages] == [16] + [8] * 14 + [16] * 8
    while len(set(lengths.values())) > 1:
        one, two = sizes.to_join(lengths)
        assert lengths.pop(one) == lengths.pop(two) == 8
        lengths[Part(1, 0, one.number, one.level + 1, "page", Path("p"))] = 16
    assert len(lengths) == 1 + 7 + 8
    assert [page.number for page in sizes.to_join(lengths)] == [0, 2]


@pytest.mark.parametrize("unknown", [[], [(3, 7)], [(0, 7), (9, 7)]])
def test_adding_steps_returns_the_range_of_each_batch_mean(tmp_path: Path, unknown: list[tuple[int, int]]) -> None:
    rows = {name: value.copy() for name, value in truth(WIDE, range(40)).items()}
    for row, channel in unknown:
        rows["batch_mean"][row::10, channel] = np.nan
    writer = begin(tmp_path, WIDE)  # with blocks of 8 steps, so that each check is split between two
    for start in range(0, 40, 10):
        some = {name: value[start : start + 10] for name, value in rows.items()}
        found = writer.add(list(range(start, start + 10)), some, a_course(range(start, start + 10)))
        means = some["batch_mean"].astype(np.float64)
        assert found is not None
        np.testing.assert_allclose(found, np.nanmax(means, axis=0) - np.nanmin(means, axis=0), rtol=1e-4)
    writer.close()


def test_joined_blocks_have_the_extremes_of_both_and_the_mean_of_all_steps() -> None:
    values = np.array([[1.0, 0, 2], [4, 3, 7], [np.nan] * 3, [5, 5, 5], [6, 6, 6]], np.float32)[:, :, None, None]
    ends = np.array([9, 19, 29, 39, 44])
    blocks = Blocks(np.array([0, 10, 20, 30, 40]), ends, np.repeat(values, 6, 2), np.zeros((5, 6)))
    found = blocks.halved()
    assert found.first.tolist() == [0, 20, 40]
    assert found.last.tolist() == [19, 39, 44]
    np.testing.assert_allclose(found.values[:, :, 0, 0], np.array([[2.5, 0, 7], [5, 5, 5], [6, 6, 6]]))


def test_a_later_session_replaces_the_steps_from_its_first_on(tmp_path: Path) -> None:
    rows = truth(SMALL, range(100))
    for session, (start, end) in enumerate([(0, 60), (40, 90)]):
        writer = begin(tmp_path, SMALL)
        shifted = {name: value + session * (name == "running_mean") for name, value in rows.items()}
        add(writer, shifted, range(start, end), at=start)
        writer.close()
    flight = Flight(tmp_path)
    found = flight.series("net.bn1", "running_mean")
    assert found.last.tolist() == list(range(90))
    want = rows["running_mean"][:90, :5] + (np.arange(90) >= 40)[:, None]
    assert np.abs(found.mean - want).max() < 0.5
    course = flight.course()
    assert course["last"].tolist() == list(range(90))
    np.testing.assert_allclose(course["loss"], 1 / (1 + np.arange(90)))
    np.testing.assert_allclose(course["lr 0"], 0.1)


def test_steps_that_go_back_within_a_session_replace_those_before(tmp_path: Path) -> None:
    rows = truth(SMALL, range(100))
    writer = begin(tmp_path, SMALL)
    add(writer, rows, range(60))
    add(writer, rows, range(30, 50), at=30)
    writer.close()
    assert Flight(tmp_path).series("net.bn2", "beta").last.tolist() == list(range(50))


def test_two_writers_in_one_directory_are_told_apart(tmp_path: Path) -> None:
    rows = truth(SMALL, range(50))
    one, two = begin(tmp_path, SMALL), begin(tmp_path, SMALL)
    add(one, rows, range(50))
    add(two, rows, range(50))
    one.close()
    two.close()
    assert one.failures() == two.failures() == []
    parts = [part for path in tmp_path.iterdir() if (part := Part.of(path))]
    assert sorted(part.session for part in parts) == [1, 2]
    assert Flight(tmp_path).series("net.bn1", "gamma").last.tolist() == list(range(50))


KILLED = """
import sys
from pathlib import Path
from tests.history.test_flight import WIDE, add, begin, truth
folder, start = Path(sys.argv[1]), int(sys.argv[2])
rows = truth(WIDE, range(1000))
writer = begin(folder, WIDE, budget=2**23)
at = start
while True:
    add(writer, rows, range(at, at + 100))
    while writer.waiting:
        pass
    at += 100
    print(at, flush=True)
"""


def test_a_killed_process_loses_the_block_that_was_not_full_and_nothing_else(tmp_path: Path) -> None:
    random, reached = np.random.default_rng(0), 0
    for _ in range(4):
        command = [sys.executable, "-c", KILLED, str(tmp_path), str(reached)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        said = reached
        for _ in range(int(random.integers(1, 30))):
            said = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        flight = Flight(tmp_path)
        found = flight.series("net.bn1", "batch_var")
        [block] = {layout.block for layout in flight._layouts.values()}
        assert found.last[-1] >= said - block
        assert (found.first[1:] <= found.last[:-1] + block + 1).all()
        assert np.isfinite(found.mean).all()
        reached = int(found.last[-1]) + 1
    assert size_of(tmp_path) <= 2**23
    assert reached > 100


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
