"""What was written is read back: whole, from several files, and as far as it goes from damaged ones."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from tensorboard.compat.proto.summary_pb2 import Summary as SummaryProto
from torch import nn

from bnmonitor import Monitor, Summary
from bnmonitor.history import black_boxes as boxes
from bnmonitor.history.event_files import _ours
from bnmonitor.history.run import Frames, Run, merge, open_history
from bnmonitor.history.schema import ABOUT, Schema
from bnmonitor.history.source import Record
from bnmonitor.history.thin import extent, pool
from bnmonitor.sinks import Run as Opened
from bnmonitor.sinks import TensorBoard
from bnmonitor.sinks.channel_detail import STATISTICS
from bnmonitor.summary import METRICS
from bnmonitor.testing import RecordingSink
from tests.sinks.test_sinks import ERROR, WARNING, a_summary, an_alert


def write(log_dir: Path, summaries: list[Summary], **more: Any) -> None:
    sink = TensorBoard(log_dir, **more)
    sink.open(Opened(layers=summaries[0].layers))
    for summary in summaries:
        sink.frame(summary)
    sink.close(summaries[-1])


def read(log_dir: Path) -> Run:
    return open_history(log_dir).run(".")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Summary], Monitor]:
    log_dir = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6, bias=False), nn.BatchNorm1d(6)
    )
    sink = RecordingSink()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    monitor = Monitor(model, optimizer=optimizer, log_every_n_steps=2, sinks=[TensorBoard(log_dir), sink])
    with monitor:
        for _ in range(30):
            model(torch.randn(32, 4)).square().mean().backward()
            optimizer.step()
            monitor.step()
    return log_dir, [s for what, s in sink.events if what == "frame"], monitor


def test_a_run_is_read_back_frame_by_frame(trained: tuple[Path, list[Summary], Monitor]) -> None:
    log_dir, summaries, _ = trained
    run = read(log_dir)
    assert run.frames.layers == ("1", "4")
    assert run.frames.channels == (8, 6)
    assert run.frames.metrics == METRICS
    assert run.frames.steps.tolist() == [s.step for s in summaries]
    table = np.stack([s.table.numpy() for s in summaries])
    np.testing.assert_array_equal(run.frames.values, table.transpose(2, 1, 0))
    np.testing.assert_array_equal(run.frames.of("health"), table[:, :, 0].T)
    assert np.isnan(run.frames.of("no such")).all()
    assert run.alerts == ()


def test_facts_say_what_each_layer_is_and_is_next_to(trained: tuple[Path, list[Summary], Monitor]) -> None:
    facts = read(trained[0]).facts
    assert list(facts) == ["1", "4"]
    first = facts["1"]
    assert (first["kind"], first["channels"], first["eps"], first["momentum"]) == ("BatchNorm1d", 8, 1e-5, 0.1)
    assert first["training"] is first["trains"] is first["affine"] is True
    assert first["consumers"] == ["relu"]
    assert first["producer"] == "0 (linear)"


def test_channel_detail_holds_the_last_step_of_each_channel(trained: tuple[Path, list[Summary], Monitor]) -> None:
    log_dir, _, monitor = trained
    run = read(log_dir)
    assert run.detailed == {"1", "4"}
    detail = run.channels("4")
    assert detail is not None
    assert detail.statistics == STATISTICS
    assert detail.values.shape == (len(STATISTICS), 6, len(detail.steps))
    step = int(detail.steps[-1])
    row = monitor.steps.index(step)
    for name in ("batch_mean", "running_var", "gamma"):
        np.testing.assert_array_equal(detail.of(name)[:, -1], monitor.history("4", name)[row].numpy())
    assert run.channels("2") is None


def test_the_reader_needs_neither_torch_nor_lightning(trained: tuple[Path, list[Summary], Monitor]) -> None:
    code = (
        "import sys; from bnmonitor.history.run import open_history\n"
        f"run = open_history({str(trained[0])!r}).run('.'); run.frames, run.facts, run.channels('1'), run.alerts\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'lightning', 'pytorch_lightning', 'rich'}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert out.stdout.strip() == "[]"


def test_alerts_are_read_in_their_last_state(tmp_path: Path) -> None:
    summary = a_summary()
    sink = TensorBoard(tmp_path)
    sink.open(Opened(layers=summary.layers))
    hostile = '<img src=x onerror="alert(1)">' + "ü" * 60
    late = an_alert("layer2", first_step=45, last_step=55, value=math.nan, message=hostile)
    sink.alert(late)
    sink.alert(an_alert("layer1", severity=ERROR))
    sink.alert(replace(late, state="cleared"))
    sink.close(summary)
    first, second = read(tmp_path).alerts
    assert first == an_alert("layer1", severity=ERROR).to_dict()
    assert second == replace(late, state="cleared").to_dict()
    assert second["value"] == "nan"
    assert second["message"] == hostile


def test_a_layer_that_joins_an_open_alert_is_written_with_the_next_frame(tmp_path: Path) -> None:
    alert = an_alert("layer1")
    sink = TensorBoard(tmp_path)
    sink.open(Opened(layers=a_summary().layers))
    sink.alert(alert)
    sink.frame(a_summary(replace(alert, layers=("layer1", "layer4"), last_step=60)))
    sink.close(a_summary(replace(alert, layers=("layer1", "layer4"), last_step=90)))
    [found] = read(tmp_path).alerts
    assert found["layers"] == ["layer1", "layer4"]
    assert found["last_step"] == 90


def test_a_resumed_run_with_other_layers_is_one_run(tmp_path: Path) -> None:
    before, after = a_summary(names=("a", "b", "gone")), a_summary(names=("new", "b", "a"))
    write(tmp_path, [replace(before, step=step) for step in (10, 20, 30)])
    write(tmp_path, [replace(after, step=step, table=after.table + 1) for step in (20, 40)])
    frames = read(tmp_path).frames
    assert frames.layers == ("new", "b", "a", "gone")
    assert frames.steps.tolist() == [10, 20, 40]
    health = frames.of("health")
    np.testing.assert_array_equal(np.isnan(health), np.array([[1, 0, 0], [0, 0, 0], [0, 0, 0], [0, 1, 1]], bool))
    assert health[1].tolist() == [100, 101, 101]


def test_a_directory_of_runs_with_foreign_and_damaged_files(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    steps = [replace(a_summary(names=("a", "b")), step=step) for step in range(8)]
    write(tmp_path / "x" / "one", steps)
    write(tmp_path / "two", steps)
    with SummaryWriter(str(tmp_path / "other")) as writer:
        writer.add_scalar("loss", 1.0, 0)
        writer.add_text("bnmonitor/not-ours", "text", 0)
    (tmp_path / "two" / "events.out.tfevents.9.garbage").write_bytes(b"\x00" * 999 + b"bnmonitor")
    (tmp_path / "two" / "notes.txt").write_text("bnmonitor")
    [file] = (tmp_path / "x" / "one").glob("*tfevents*")
    file.write_bytes(file.read_bytes()[:-700])
    history = open_history(tmp_path)
    assert history.names == ("two", "x/one")
    assert len(history.run("two").frames) == 8
    assert 1 <= len(history.run("x/one").frames) < 8
    with pytest.raises(KeyError, match="there are two, x/one"):
        history.run("three")
    with pytest.raises(FileNotFoundError, match="no file or directory"):
        open_history(tmp_path / "nowhere")
    [good] = (tmp_path / "two").glob("*tfevents.1*")
    assert len(open_history(good).run(".").frames) == 8


def test_the_channel_budget_bounds_the_bytes_and_flagged_layers_come_first(tmp_path: Path) -> None:
    names = tuple(f"layer{i}" for i in range(12))
    cost = 4 * 6 * len(STATISTICS)
    summaries = [replace(a_summary(an_alert("layer7"), names=names), step=step) for step in range(1, 21)]
    write(tmp_path, summaries, channel_bytes=2 * cost)
    run = read(tmp_path)
    detail = {name: run.channels(name) for name in names}
    count = {name: 0 if found is None else len(found.steps) for name, found in detail.items()}
    assert sum(count.values()) <= 2 * 20
    assert count["layer7"] >= 4 * max(n for name, n in count.items() if name != "layer7")
    assert min(count.values()) >= 1
    quiet = tmp_path / "quiet"
    write(quiet, summaries, channel_bytes=0)
    assert not read(quiet).detailed
    with pytest.raises(ValueError, match="channel_bytes=-1 must be 0"):
        TensorBoard(channel_bytes=-1)


def test_with_many_layers_only_those_with_an_alert_have_scalars(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    names = tuple(f"layer{i}" for i in range(80))
    write(tmp_path, [a_summary(an_alert("layer7", severity=WARNING), names=names)])
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    tags = {tag for tag in events.Tags()["scalars"] if tag.startswith("bn_")}
    assert {tag.split("/")[1] for tag in tags} == {"layer7"}
    assert len(read(tmp_path).frames.layers) == 80


# -- merging -----------------------------------------------------------------------------------------------------------


def test_frames_that_do_not_fit_their_description_are_left_out() -> None:
    schema = Schema(("a", "b"), (3, 3), ("health", "own"))
    good, bad = np.ones((2, 2), np.float32), np.ones((3, 2), np.float32)
    frames = merge([(schema, [Record(1, 1.0, good), Record(2, 2.0, bad), Record(3, 3.0, "text")])])
    assert frames.steps.tolist() == [1]
    assert frames.metrics == ("health", "own")
    assert len(merge([])) == 0


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"layers": 3}', b"\xff"])
def test_a_description_that_is_none_is_none(content: bytes) -> None:
    assert Schema.decode(content) is None


# -- pooling -----------------------------------------------------------------------------------------------------------


def slow_pool(values: np.ndarray[Any, Any], bins: int) -> np.ndarray[Any, Any]:
    rows = []
    for row in values:
        finite = sorted(v for v in row if math.isfinite(v))
        usual = finite[(len(finite) - 1) // 2] if finite else 0
        out = []
        for b in range(bins):
            cell = row[b * len(row) // bins : (b + 1) * len(row) // bins]
            known = [v for v in cell if not math.isnan(v)]
            out.append(max(known, key=lambda v: abs(v - usual)) if known else math.nan)
        rows.append(out)
    return np.array(rows, np.float32)


def test_pooling_is_what_the_obvious_way_gives() -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=(5, 237)).astype(np.float32)
    values[0, 100] = np.inf
    values[1, 30:80] = np.nan
    values[2] = np.nan
    for bins in (1, 7, 40, 236):
        got, edges = pool(values, bins)
        np.testing.assert_array_equal(got, slow_pool(values, bins))
        assert edges[0] == 0
        assert edges[-1] == 237
    assert pool(values, 237)[0] is values


@pytest.mark.parametrize("logarithmic", [False, True])
def test_a_spike_of_one_step_survives_any_thinning(logarithmic: bool) -> None:
    values = np.ones((2, 5000), np.float32)
    values[1, 3210] = 1e-9 if logarithmic else -4
    for bins in (1, 3, 99, 1500):
        thin, edges = pool(values, bins, logarithmic=logarithmic)
        [place] = np.flatnonzero(thin[1] != 1)
        assert edges[place] <= 3210 < edges[place + 1]
        assert (thin[0] == 1).all()


def test_the_extent_leaves_out_what_is_rare_and_what_is_no_number() -> None:
    values = np.linspace(0, 1, 1001, dtype=np.float32)
    values[-1] = 1e9
    assert extent(np.append(values, [np.nan, np.inf])) == pytest.approx((0.01, 0.99), abs=2e-3)
    assert extent(np.array([0.0, -1.0]), logarithmic=True) is None
    assert extent(np.array([np.nan])) is None


def test_frames_without_a_metric_say_so_with_nan() -> None:
    frames = Frames(("a",), (1,), (), np.array([1]), np.array([0.0]), np.zeros((0, 1, 1), np.float32))
    assert np.isnan(frames.of("health")).all()


# -- black boxes -------------------------------------------------------------------------------------------------------


def test_a_black_box_is_read_layer_by_layer(tmp_path: Path) -> None:
    from bnmonitor.sinks import BlackBox
    from bnmonitor.testing import make_window

    window = make_window(channels=(2, 3), steps=5, gamma=[1.0, 2.0, 3.0, 4.0, 5.0])
    box = BlackBox(tmp_path)
    path = box.write(window, an_alert("layer1", ERROR))
    box.close()
    assert path is not None
    (path.parent / "step1.npz.part").write_text("x")
    assert boxes.listing(tmp_path) == [path]
    assert boxes.listing(tmp_path / "nowhere") == []
    assert boxes.about(path)["alert"] == json.loads(json.dumps(an_alert("layer1", ERROR).to_dict()))
    found = boxes.load(path, ("gamma",))
    assert boxes.of_layer(found, "layer1", "gamma").tolist() == [[3.0] * 5, [4.0] * 5, [5.0] * 5]
    path.write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(ValueError, match="is not a black box"):
        boxes.about(path)


@hypothesis.given(
    st.lists(st.sampled_from([ABOUT, "bnmonitor/frame/1", "bn_health/a", "other/bnmonitor/x"]), max_size=9)
)
def test_bnmonitors_values_are_found_in_their_order_wherever_they_are_in_an_event(tags: list[str]) -> None:
    summary = SummaryProto(value=[SummaryProto.Value(tag=tag, simple_value=at) for at, tag in enumerate(tags)])
    expected = [(at, tag) for at, tag in enumerate(tags) if tag.startswith("bnmonitor/")]
    most = summary.SerializeToString().count(b"bnmonitor/")
    assert [(value.simple_value, value.tag) for value in _ours(summary.value, most)] == expected
