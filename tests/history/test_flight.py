"""Writing the flight record, against plain float64 sums: its errors, its budget, and what is left after a kill."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from bnmonitor.history.flight import budget as sizes
from bnmonitor.history.flight import writer as writing
from bnmonitor.history.flight.codes import decode, encode
from bnmonitor.history.flight.layout import STATISTICS, Blocks, Layout, Part
from bnmonitor.history.flight.reader import Flight
from bnmonitor.history.flight.writer import size_of
from tests.history.flight_records import SMALL, WIDE, a_course, add, begin, check, settled, truth


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
from tests.history.flight_records import WIDE, add, begin, truth
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
    before = Flight(tmp_path).series("net.bn1", "batch_var")
    assert tails(tmp_path)
    begin(tmp_path, WIDE, budget=2**23).close()
    assert not tails(tmp_path)
    after = Flight(tmp_path).series("net.bn1", "batch_var")
    assert after.last.tolist() == before.last.tolist()
    np.testing.assert_allclose(after.mean, before.mean, rtol=0.06)


def tails(folder: Path) -> list[Path]:
    return [part.path for path in folder.iterdir() if (part := Part.of(path)) and part.kind == "tail"]


@pytest.mark.parametrize("damage", ["a value", "everything"])
def test_a_later_session_keeps_what_is_sound_of_the_tail_of_a_killed_one(tmp_path: Path, damage: str) -> None:
    rows = truth(SMALL, range(50))
    writer = begin(tmp_path / "alive", SMALL)
    add(writer, rows, range(50))
    settled(writer)
    shutil.copytree(tmp_path / "alive", tmp_path / "killed")
    writer.close()
    [tail] = tails(tmp_path / "killed")
    data = bytearray(tail.read_bytes())
    data[-1 if damage == "a value" else 0] ^= 255
    tail.write_bytes(data)
    begin(tmp_path / "killed", SMALL).close()
    assert not tails(tmp_path / "killed")
    flight = Flight(tmp_path / "killed")
    if damage == "everything":
        assert not len(flight.course()["last"])
    else:
        assert flight.series("net.bn1", "gamma").last.tolist() == list(range(40)), "the last ten are one record"


def test_single_steps_take_an_eighth_of_the_budget_and_the_newest_stay(tmp_path: Path) -> None:
    rows, budget = truth(WIDE, range(1000)), sizes.least(500)
    writer = begin(tmp_path, WIDE, budget)
    for start in range(0, 1000, 20):
        steps = range(start, start + 20)
        some = {name: rows[name][start : start + 20] for name in STATISTICS}
        writer.add(list(steps), some, a_course(steps))
        writer.detail([1], list(steps), some, a_course(steps))
    writer.close()
    assert writer.failures() == []
    details = [part.path for path in tmp_path.iterdir() if (part := Part.of(path)) and part.kind == "detail"]
    assert 1 < len(details) < 50
    assert sum(path.stat().st_size for path in details) <= budget // 8
    found = Flight(tmp_path).series("net.bn2", "batch_mean")
    single = found.last[found.first == found.last]
    assert single[-1] == 999
    assert len(single) == 20 * len(details)


def test_pages_that_cannot_be_read_make_room_first(tmp_path: Path) -> None:
    rows, budget = truth(WIDE, range(1000)), sizes.least(500)
    for session in range(2):
        writer = begin(tmp_path, WIDE, budget)
        for start in range(0, 5000, 1000):
            add(writer, rows, range(5000 * session + start, 5000 * session + start + 1000), every=250)
            settled(writer)
        writer.close()
        assert writer.failures() == []
        if not session:
            for path in tmp_path.iterdir():
                if (part := Part.of(path)) and part.kind == "page":
                    path.write_bytes(b"no page" + path.read_bytes()[7:])
    assert size_of(tmp_path) <= budget
    assert Flight(tmp_path).series("net.bn1", "gamma").last[-1] == 9_999


def test_a_disk_that_is_too_slow_costs_blocks_and_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = truth(SMALL, range(50))
    writer = begin(tmp_path, SMALL)
    add(writer, rows, range(10))
    settled(writer)
    with monkeypatch.context() as patched:
        patched.setattr(writing, "_WAITING", 0)
        add(writer, rows, range(10, 30), at=10)
    add(writer, rows, range(30, 50), at=30)
    writer.close()
    assert writer.left_out == 2
    assert writer.failures() == []
    assert Flight(tmp_path).series("net.bn1", "gamma").last.tolist() == [*range(10), *range(30, 50)]
