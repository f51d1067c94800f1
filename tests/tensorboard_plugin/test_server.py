"""The tab's server side, asked as TensorBoard asks it, without a browser."""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote, urlencode

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from tensorboard.backend.event_processing.data_ingester import LocalDataIngester
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import plugin_data_pb2
from werkzeug.test import Client
from werkzeug.wrappers import Response

from bnmonitor import tensorboard_plugin, viewer
from bnmonitor.diagnosis import CAUSES, cause_url
from bnmonitor.history import encode
from bnmonitor.history.flight.layout import FOLDER
from bnmonitor.history.schema import FRAME, alert_tag
from bnmonitor.rules import Docstring, all_rules
from bnmonitor.tensorboard_plugin import table
from bnmonitor.tensorboard_plugin.cache import Cache
from bnmonitor.tensorboard_plugin.files import box_files
from bnmonitor.tensorboard_plugin.loader import BatchNormLoader
from bnmonitor.tensorboard_plugin.plugin import COLUMNS, BatchNormPlugin
from bnmonitor.tensorboard_plugin.wire import LONGEST, MOST_COLUMNS, Query
from bnmonitor.viewer import bundle
from tests import histories
from tests.histories import HOSTILE, METRICS, STATISTICS, Writer, course, recorded, write

if sys.version_info >= (3, 11):
    import tomllib

NAMES = ("backbone.0", "backbone.1", "head")
STEPS = range(9, 2009, 10)


def flags(logdir: Path | None, **more: Any) -> argparse.Namespace:
    given = {
        "logdir": str(logdir or ""),
        "logdir_spec": "",
        "samples_per_plugin": {"bnmonitor": 5000},
        "purge_orphaned_data": True,
        "max_reload_threads": 1,
        "reload_multifile": False,
        "reload_multifile_inactive_secs": 86400,
        "detect_file_replacement": None,
        "reload_interval": 0,
        "reload_task": "blocking",
        "generic_data": "auto",
    }
    return argparse.Namespace(**{**given, **more})


class Asked:
    """The plugin over a log directory, and a way to ask it."""

    def __init__(self, logdir: Path) -> None:
        self.flags = flags(logdir)
        self.ingester = LocalDataIngester(self.flags)
        self.ingester.start()
        self.provider = self.ingester.data_provider
        context = SimpleNamespace(logdir=str(logdir), flags=self.flags, data_provider=self.provider)
        self.plugin = BatchNormPlugin(context)
        self.apps = self.plugin.get_plugin_apps()

    def reload(self) -> None:
        fresh = LocalDataIngester(self.flags)
        fresh.start()
        self.plugin._context.data_provider = fresh.data_provider

    def ask(self, route: str, **query: Any) -> Any:
        return Client(self.apps[route], Response).get(route, query_string={k: str(v) for k, v in query.items()})

    def json(self, route: str, **query: Any) -> Any:
        answer = self.ask(route, **query)
        assert answer.status_code == 200, answer.get_data(as_text=True)
        assert answer.mimetype == "application/json"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        return json.loads(plain(answer))

    def slice(self, route: str, **query: Any) -> tuple[dict[str, Any], Any]:
        answer = self.ask(route, **query)
        assert answer.status_code == 200, answer.get_data(as_text=True)
        data = plain(answer)
        (length,) = struct.unpack("<I", data[:4])
        assert (4 + length) % 4 == 0
        header = json.loads(data[4 : 4 + length])
        return header, np.frombuffer(data, "<f4", offset=4 + length).reshape(header["shape"])


def plain(answer: Any) -> bytes:
    data: bytes = answer.get_data()
    return gzip.decompress(data) if answer.headers.get("Content-Encoding") == "gzip" else data


@pytest.fixture(scope="module")
def logdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    logs = tmp_path_factory.mktemp("logs")
    write(logs / "a" / "sick", NAMES, STEPS, sick=(1,), channels=8, detailed=(1, 2))
    write(logs / "hostile", HOSTILE, range(5), sick=(0,), channels=4)
    return logs


@pytest.fixture(scope="module")
def tab(logdir: Path) -> Asked:
    return Asked(logdir)


SICK = "a/sick"


def test_runs_are_listed_with_what_the_page_needs_to_choose(tab: Asked) -> None:
    index = tab.json("/runs")
    assert [(run["name"], run["layers"], run["last"]) for run in index["runs"]] == [(SICK, 3, 1999), ("hostile", 5, 4)]
    assert [s["name"] for s in index["statistics"]] == list(METRICS)
    assert [s["name"] for s in index["channelStatistics"]] == list(STATISTICS)
    assert {"label", "unit", "scale", "meaning"} <= index["statistics"][0].keys()


def test_runs_are_a_table_with_verdict_first_incident_health_loss_and_settings(tmp_path: Path) -> None:
    write(tmp_path / "sick", NAMES, STEPS, sick=(1,), channels=8, detailed=())
    write(tmp_path / "well", NAMES, range(3), channels=8, detailed=())
    start = plugin_data_pb2.SessionStartInfo()
    start.hparams["lr"].number_value, start.hparams["name"].string_value = 0.3, "sgd"
    content = plugin_data_pb2.HParamsPluginData(version=0, session_start_info=start).SerializeToString()
    for place in (("sick",), ("well", "1234.5")):  # Lightning writes into the run, `add_hparams` below it
        value = Summary.Value(tag="_hparams_/session_start_info")
        value.metadata.plugin_data.plugin_name, value.metadata.plugin_data.content = "hparams", content
        with Writer(tmp_path.joinpath(*place), NAMES) as writer:
            writer.add(0, 1e9, value)
    tab = Asked(tmp_path)
    table = tab.json("/table")
    assert table["of"] == 2
    sick, well = table["runs"]
    assert (sick["verdict"], sick["severity"], sick["open"]) == ("variance explosion", "error", 1)
    assert sick["first"] == {"title": "stale statistics", "severity": "warning", "step": 509, "layer": "head"}
    assert len(sick["health"]) == 48
    assert min(sick["health"]) == sick["lowest"] == sick["health"][-1] == 20
    assert sick["loss"] == pytest.approx(tab.slice("/course", run="sick")[1][0, -1])
    assert (sick["steps"], sick["layers"]) == ([9, 1999], 3)
    assert sick["settings"] == well["settings"] == {"lr": 0.3, "name": "sgd", "highest learning rate": 0.1}
    assert (well["severity"], well["first"], len(well["health"])) == ("", None, 3)
    assert tab.json("/table", first=1, most=1)["runs"] == [well]
    assert tab.json("/table", first=2)["runs"] == []
    assert tab.ask("/table", first=-1).status_code == 400


def test_many_runs_of_the_table_are_read_with_few_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(12):
        write(tmp_path / f"run{i:02d}", NAMES[: 1 + i % 3], range(3 + i), sick=(0,) * (i % 2), channels=2, detailed=())
    reads: list[int] = []

    def asked() -> Asked:
        tab = Asked(tmp_path)
        provider = tab.plugin._context.data_provider
        real = provider.read_tensors

        def read(*args: Any, run_tag_filter: Any, **more: Any) -> Any:
            reads.append(len(run_tag_filter.runs))
            return real(*args, run_tag_filter=run_tag_filter, **more)

        monkeypatch.setattr(provider, "read_tensors", read)
        return tab

    tab = asked()
    rows = tab.json("/table")["runs"]
    assert reads == [12]
    assert tab.json("/table")["runs"] == rows
    assert reads == [12], "what was read is kept"
    reads.clear()
    monkeypatch.setattr(table, "MOST_BYTES", 1)
    assert asked().json("/table")["runs"] == rows
    assert max(reads) == 1, "runs that are too large to be read at once are read one by one"
    monkeypatch.undo()
    with Writer(tmp_path / "run03", NAMES[:1], 2) as writer:
        broken = encode.floats(FRAME + writer.schema.key, np.ones((1, len(METRICS)), np.float32), b"")
        broken.tensor.tensor_content = b"123"
        writer.add(99, 1e9, broken)
    after = {row["name"]: row for row in Asked(tmp_path).json("/table")["runs"]}
    assert [row["name"] for row in rows if row != after[row["name"]]] == ["run03"], "it costs its own run alone"


def test_pages_of_the_manual_come_with_the_package(tab: Asked) -> None:
    for rule in all_rules():
        page = tab.json("/manual", name=rule.code)
        doc = Docstring.of(type(rule))
        assert page["title"] == f"{rule.code} {rule.name}"
        assert page["summary"] == doc.sentence
        titles = [section["title"] for section in page["sections"]]
        assert set(titles) >= {title for title, _ in doc.shown()}
        values = [b for s in page["sections"] for kind, b in s["blocks"] if kind == "values"]
        assert [name for each in values for name in each] == [field.name for field in dataclasses.fields(rule)]
    for cause in CAUSES:
        assert tab.json("/manual", name=cause.name)["url"] == cause_url(cause)
    assert tab.ask("/manual", name="../BN704").status_code == 404


def test_a_run_comes_with_layers_facts_and_alerts(tab: Asked) -> None:
    run = tab.json("/run", run=SICK)
    assert [layer["name"] for layer in run["layers"]] == list(NAMES)
    assert [layer["detailed"] for layer in run["layers"]] == [False, True, True]
    assert run["layers"][0]["consumers"] == ["relu"]
    assert run["steps"] == [9, 1999]
    assert run["frames"] == 200
    assert [alert["code"] for alert in run["alerts"]] == ["BN304", "BN106"]
    late, early = (next(i for i in run["incidents"] if i["code"] == code) for code in ("BN106", "BN304"))
    assert (late["state"], late["layers"], late["evidence"][0]["code"]) == ("open", [NAMES[1]], "BN106")
    assert (early["state"], early["last_step"]) == ("resolved", 669)
    assert run["boxes"] == []


def test_the_course_of_a_run_is_a_slice_and_empty_where_it_is_not_known(tab: Asked, tmp_path: Path) -> None:
    header, values = tab.slice("/course", run=SICK, bins=500)
    assert header["statistics"] == ["loss", "lr 0", "epoch", "seconds"]
    assert header["ends"] == list(STEPS)
    assert values[0, 0] == np.float32(2.32)
    assert values[1, [0, -1]].tolist() == [np.float32(0.1), np.float32(0.01)]
    write(tmp_path / "old", NAMES, range(10), channels=4, incidents=False)
    header, values = Asked(tmp_path).slice("/course", run="old")
    assert (header["statistics"], values.tolist()) == (["seconds"], [list(range(10))])


def test_the_gradient_norm_is_the_one_that_the_training_logged(tmp_path: Path) -> None:
    with Writer(tmp_path / "run", NAMES, 4) as writer:
        writer.frames(range(0, 100, 10), course(3, 10))
        writer.scalars("grad_2.0_norm/weight", range(100), [5.0] * 100)  # of one parameter
        writer.scalars("train/loss", range(100), [6.0] * 100)
    tab = Asked(tmp_path)
    assert "gradient norm" not in tab.slice("/course", run="run")[0]["statistics"]
    with Writer(tmp_path / "run", NAMES, 4) as writer:
        writer.scalars("grad_2.0_norm_total", range(25, 95, 20), [1.0, 2.0, 3.0, 4.0])
    tab.reload()
    header, values = tab.slice("/course", run="run")
    norm = values[header["statistics"].index("gradient norm")]
    np.testing.assert_array_equal(norm, [np.nan, np.nan, np.nan, 1, 1, 2, 2, 3, 3, 4])


def test_a_run_without_incidents_has_one_for_each_warning_and_error(tmp_path: Path) -> None:
    write(tmp_path / "old", NAMES, STEPS, sick=(1,), channels=4, incidents=False)
    run = Asked(tmp_path).json("/run", run="old")
    assert [(i["index"], i["title"], i["state"]) for i in run["incidents"]] == [
        (0, "stale statistics", "resolved"),
        (1, "variance explosion", "open"),
    ]


def test_a_slice_is_what_was_written(tab: Asked) -> None:
    header, values = tab.slice("/slice", run=SICK, statistic="batch_var", bins=500)
    truth = course(3, 200, sick=(1,))[:, :, METRICS.index("batch_var")].T
    np.testing.assert_array_equal(values, truth)
    assert header["ends"] == list(STEPS)
    assert header["before"] == -1
    assert header["frames"] == 200
    low, high = header["extent"]
    assert truth.min() <= low < high <= truth.max()


def test_a_thinned_slice_keeps_the_greatest_deviation_and_says_what_it_thinned(tab: Asked) -> None:
    header, values = tab.slice("/slice", run=SICK, statistic="batch_var", bins=20)
    truth = course(3, 200, sick=(1,))[:, :, METRICS.index("batch_var")].T
    assert values.shape == (3, 20)
    assert header["frames"] == 200
    assert header["ends"] == list(STEPS)[9::10]
    assert values[1].max() == truth[1].max()


def test_a_range_of_steps_is_cut_with_a_column_on_either_side(tab: Asked) -> None:
    header, values = tab.slice("/slice", run=SICK, statistic="health", bins=500, **{"from": 500, "to": 600})
    assert header["ends"] == list(range(499, 610 + 1, 10))
    assert header["before"] == 489
    assert values.shape == (3, len(header["ends"]))


def test_a_layer_a_channel_map_and_a_channel(tab: Asked) -> None:
    header, values = tab.slice("/layer", run=SICK, layer="backbone.1", bins=400)
    assert header["statistics"] == list(METRICS)
    np.testing.assert_array_equal(values[1:], course(3, 200, sick=(1,))[:, 1, 1:].T)
    assert ((values[0] == 20) == (np.array(STEPS) >= STEPS[133])).all(), "red from where the incident began"
    truth = histories.detail(200, 8, sick=True)
    header, values = tab.slice("/channels", run=SICK, layer="backbone.1", statistic="gamma", bins=400)
    np.testing.assert_array_equal(values, truth[:, STATISTICS.index("gamma")].T)
    header, values = tab.slice("/channel", run=SICK, layer="backbone.1", channel=3, bins=400)
    assert header["statistics"] == list(STATISTICS)
    np.testing.assert_array_equal(values, truth[:, :, 3].T)
    assert tab.ask("/channels", run=SICK, layer="backbone.0", statistic="gamma").status_code == 404
    assert tab.ask("/bands", run=SICK, layer="backbone.0", statistic="gamma").status_code == 404
    assert tab.ask("/at", run=SICK, layer="backbone.0").status_code == 404


def test_the_first_answer_is_those_that_the_page_draws_at_first(tab: Asked, tmp_path: Path) -> None:
    def bundle(asked: Asked, **query: Any) -> list[bytes]:
        return unbundled(asked.ask("/first", **query))

    for given, name in (
        ({"run": SICK, "statistic": "gamma"}, SICK),
        ({"run": "no such", "statistic": "<b>"}, "a/sick"),
    ):
        index, run, slice_, course = bundle(tab, **given, bins=10**9)
        assert json.loads(index) == tab.json("/runs")
        assert json.loads(run) == tab.json("/run", run=name)
        statistic = "gamma" if given["statistic"] == "gamma" else "health"
        assert slice_ == plain(tab.ask("/slice", run=name, statistic=statistic, bins=MOST_COLUMNS))
        assert course == plain(tab.ask("/course", run=name, bins=MOST_COLUMNS))
    (tmp_path / "empty").mkdir()
    [index] = bundle(Asked(tmp_path))
    assert json.loads(index)["runs"] == []


def unbundled(answer: Any) -> list[bytes]:
    data, parts = plain(answer), []
    while data:
        (length,) = struct.unpack("<I", data[:4])
        assert length % 4 == 0
        parts.append(data[4 : 4 + length])
        data = data[4 + length :]
    return parts


def test_several_slices_come_in_one_answer_each_with_its_status(tab: Asked) -> None:
    layer = {"run": SICK, "layer": "backbone.1", "bins": 50}
    asks = [
        "layer?" + urlencode(layer),
        "channels?" + urlencode({**layer, "statistic": "gamma"}),
        "bands?" + urlencode({**layer, "layer": "backbone.0", "statistic": "gamma"}),
        "at?" + urlencode({"run": SICK, "layer": "backbone.1", "step": "x"}),
    ]
    provider, listings = tab.plugin._context.data_provider, []
    real = provider.list_tensors
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(provider, "list_tensors", lambda *a, **k: listings.append(1) or real(*a, **k))
        client = Client(tab.apps["/several"], Response)
        states, *parts = unbundled(client.get("/several", query_string={"ask": asks}))
        assert len(listings) == 1, "the runs are listed once for all of them"
    assert json.loads(states) == [200, 200, 404, 400]
    assert parts[0] == plain(tab.ask("/layer", **layer))
    assert parts[1] == plain(tab.ask("/channels", **layer, statistic="gamma"))
    assert parts[2].decode().strip() == "no channels of that layer were written yet"
    assert "must be an int" in parts[3].decode()
    for wrong in ([], ["run?run=x"], ["several?ask=x"], ["at?x=1"] * 65):
        assert client.get("/several", query_string={"ask": wrong}).status_code == 400


def test_percentiles_of_the_channels_and_all_of_them_at_a_step(tab: Asked) -> None:
    truth = histories.detail(200, 8, sick=True)
    var = truth[:, STATISTICS.index("batch_var")].T
    header, values = tab.slice("/bands", run=SICK, layer="backbone.1", statistic="batch_var", bins=400)
    assert header["percentiles"] == [5, 25, 50, 75, 95]
    np.testing.assert_allclose(values, np.percentile(var, header["percentiles"], axis=0), rtol=1e-5)
    thin_header, thin = tab.slice("/bands", run=SICK, layer="backbone.1", statistic="batch_var", bins=20)
    assert thin_header["ends"] == list(STEPS)[9::10]
    np.testing.assert_allclose(thin[2], values[2].reshape(20, 10).mean(1), rtol=1e-5)
    np.testing.assert_array_equal(thin[[0, 4]], [values[0].reshape(20, 10).min(1), values[4].reshape(20, 10).max(1)])
    assert (np.diff(thin, axis=0) >= 0).all(), "percentiles stay in order"
    for step, place in ((STEPS[40], 40), (STEPS[40] + 3, 40), (10**6, -1)):
        header, values = tab.slice("/at", run=SICK, layer="backbone.1", step=step)
        assert (header["statistics"], header["channels"], header["ends"]) == (list(STATISTICS), 8, [STEPS[place]])
        np.testing.assert_array_equal(values.reshape(-1, 8), truth[place])


def test_every_channel_of_the_whole_run_comes_from_its_flight_record(tmp_path: Path) -> None:
    write(tmp_path / "run", NAMES, range(0, 100, 10), channels=4, detailed=(1,))
    truth = recorded(tmp_path / "run", NAMES, channels=4, steps=50)
    tab = Asked(tmp_path)
    assert all(layer["detailed"] for layer in tab.json("/run", run="run")["layers"])
    for layer, name in enumerate(NAMES):
        header, values = tab.slice("/channels", run="run", layer=name, statistic="gamma", bins=400)
        assert (header["ends"], header["frames"]) == (list(range(50)), 50)
        np.testing.assert_allclose(values, truth[:, layer].T, atol=0.02)
    header, values = tab.slice("/at", run="run", layer=NAMES[1], step=20)
    assert header["statistics"] == list(STATISTICS), "what the record does not hold comes from the event files"
    gamma = values.reshape(-1, 4)[STATISTICS.index("gamma")]
    np.testing.assert_allclose(gamma, truth[20, 1], atol=0.02)
    header, values = tab.slice("/channel", run="run", layer=NAMES[1], channel=2, bins=400)
    np.testing.assert_allclose(values[header["statistics"].index("gamma")], truth[:, 1, 2], atol=0.02)
    shutil.rmtree(tmp_path / "run" / FOLDER)
    header, _ = tab.slice("/channels", run="run", layer=NAMES[1], statistic="gamma", bins=400)
    assert len(header["ends"]) == 10, "without it the event files are read"
    assert tab.ask("/channels", run="run", layer=NAMES[0], statistic="gamma").status_code == 404


@pytest.mark.parametrize(
    ("route", "query", "code", "says"),
    [
        ("/run", {}, 400, "the parameter 'run' is missing"),
        ("/run", {"run": "x" * 5000}, 400, "has 5000 characters, at most 4096"),
        ("/run", {"run": "../../etc"}, 404, "no run named"),
        ("/slice", {"run": SICK}, 400, "'statistic' is missing"),
        ("/slice", {"run": SICK, "statistic": "health", "bins": 0}, 400, "must be an int from 1 to 4096"),
        ("/slice", {"run": SICK, "statistic": "health", "bins": "9" * 4000}, 400, "must be an int from 1 to 4096"),
        ("/slice", {"run": SICK, "statistic": "health", "from": "now"}, 400, "'from' must be an int"),
        ("/layer", {"run": SICK, "layer": "<b>"}, 404, "does not have a layer of that name"),
        ("/channel", {"run": SICK, "layer": "head", "channel": 8}, 400, "from 0 to 7"),
        ("/box", {"run": SICK, "file": "../../x.npz", "layer": "head"}, 404, "does not have a black box of that name"),
    ],
)
def test_what_cannot_be_answered_is_one_sentence(
    tab: Asked, route: str, query: dict[str, Any], code: int, says: str
) -> None:
    answer = tab.ask(route, **query)
    assert answer.status_code == code
    assert answer.mimetype == "text/plain"
    text = plain(answer).decode()
    assert says in text
    assert len(text.splitlines()) == 1


def test_a_range_without_frames_and_an_unknown_statistic_are_no_errors(tab: Asked) -> None:
    _, values = tab.slice("/slice", run=SICK, statistic="no such")
    assert np.isnan(values).all()
    header, _ = tab.slice("/slice", run=SICK, statistic="health", **{"from": 50_000, "to": 60_000})
    assert header["ends"] == [1999]
    header, _ = tab.slice("/slice", run=SICK, statistic="health", **{"from": 100, "to": 50})
    assert len(header["ends"]) <= 2


def test_hostile_names_come_through_as_they_are(tab: Asked) -> None:
    run = tab.json("/run", run="hostile")
    assert [layer["name"] for layer in run["layers"]] == list(HOSTILE)
    for name in HOSTILE:
        assert tab.slice("/layer", run="hostile", layer=name)[1].shape == (len(METRICS), 5)


def test_what_was_read_is_kept_until_something_is_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Any] = []

    def count(real: Any) -> Any:
        return lambda *a, **k: (reads.append(k), real(*a, **k))[1]

    # One file: TensorBoard orders two files of the same second by their names, so not always as they were written.
    with Writer(tmp_path / "run", NAMES, 4) as writer:
        writer.frames(range(10), course(3, 10))
        writer.flush()
        tab = Asked(tmp_path)
        monkeypatch.setattr(tab.provider, "read_tensors", count(tab.provider.read_tensors))
        for statistic in ("health", "batch_var", "gamma"):
            tab.slice("/slice", run="run", statistic=statistic)
        assert len(reads) == 1
        writer.frames(range(10, 15), course(3, 5))
        writer.flush()
        tab.reload()
        assert tab.slice("/slice", run="run", statistic="health")[0]["ends"][-1] == 14


def test_the_cache_keeps_what_was_used_last_within_its_bounds() -> None:
    cache, made = Cache(most=7000), []

    def make(name: str) -> Any:
        return lambda: made.append(name) or SimpleNamespace(values=np.zeros(500, np.float32))

    for name in ("a", "b", "a", "c", "a", "b"):
        cache.get(name, 1, make(name))
    assert made == ["a", "b", "c", "b"]
    cache.get("a", 2, make("a again"))
    assert made[-1] == "a again"


# -- files -------------------------------------------------------------------------------------------------------------


def a_box(run: Path) -> str:
    from bnmonitor.sinks import BlackBox
    from bnmonitor.testing import make_window
    from tests.sinks.test_sinks import ERROR, an_alert

    box = BlackBox(run)
    path = box.write(
        make_window(channels=(2, 3), steps=5, batch_var=[1.0, 2.0, 3.0, 4.0, 5.0]), an_alert("layer1", ERROR)
    )
    box.close()
    assert path is not None
    return path.name


def test_the_black_box_of_an_error_can_be_opened(tmp_path: Path) -> None:
    write(tmp_path / "run", ("layer0", "layer1"), range(10), channels=4)
    name = a_box(tmp_path / "run")
    tab = Asked(tmp_path)
    [box] = tab.json("/run", run="run")["boxes"]
    assert box == {"file": name, "code": "BN106", "layer": "layer1", "first_step": 41}
    header, values = tab.slice("/box", run="run", file=name, layer="layer1", statistic="batch_var")
    assert header["layers"] == ["layer0", "layer1"]
    assert values.tolist() == [[3.0] * 5, [4.0] * 5, [5.0] * 5]
    assert tab.ask("/box", run="run", file=name, layer="layer9").status_code == 404
    assert tab.ask("/box", run="run", file=name, layer="layer1", statistic="alert").status_code == 404


def test_black_boxes_come_from_the_runs_own_folder_only(tmp_path: Path) -> None:
    logs, secret = tmp_path / "logs", tmp_path / "elsewhere"
    name = a_box(secret)
    (logs / "linked" / "plugins").mkdir(parents=True)
    (logs / "linked" / "plugins" / "bnmonitor").symlink_to(secret / "plugins" / "bnmonitor")
    context = SimpleNamespace(logdir=str(logs), flags=flags(logs))
    assert box_files(context, "linked") == {}
    assert box_files(context, "../elsewhere") == {}
    assert box_files(context, str(secret)) == {}
    assert box_files(context, "no\0such") == {}
    real = a_box(logs / "real")
    assert list(box_files(context, "real")) == [real] == [name]
    spec = SimpleNamespace(logdir="", flags=flags(None, logdir_spec=f"other:/nowhere,mine:{logs}"))
    assert list(box_files(spec, "mine/real")) == [real]
    assert box_files(spec, "other/real") == {}
    assert box_files(SimpleNamespace(logdir="gs://bucket/logs", flags=flags(logs)), "real") == {}


def test_every_file_of_the_page_is_served_and_no_other(tab: Asked) -> None:
    served = {route for route in tab.apps if "." in route}
    assert served == {f"/{viewer.version()}/{name}" for name in ("index.js", "tab.js", "tab.css")}
    answer = tab.ask(f"/{viewer.version()}/index.js")
    assert "max-age=86400" in answer.headers["Cache-Control"], "its address is that of this very text"
    assert "no-cache" in tab.ask("/runs").headers["Cache-Control"]
    assert answer.mimetype == "text/javascript"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert plain(answer).decode() == bundle.sent(bundle.DIRECTORY / "index.js")
    colors, rules = (bundle.DIRECTORY / name for name in ("palette.css", "style.css"))
    assert plain(tab.ask(f"/{viewer.version()}/tab.css")) == colors.read_bytes() + rules.read_bytes()
    assert not any("*" in route for route in tab.apps)


def test_each_module_is_in_the_tab_or_the_page_once_after_those_that_it_imports() -> None:
    names = {path.stem for path in bundle.DIRECTORY.glob("*.js")} - {"index", "types"}
    scripts = {"tab": viewer.files()["tab.js"], "page": viewer.page()}
    inside = {name: re.findall(r"^// (\w+)\.js$", text, flags=re.M) for name, text in scripts.items()}
    assert sorted(inside["tab"]) == sorted(names - {"report"})
    assert sorted(inside["page"]) == sorted(names - {"server"})
    for name, text in scripts.items():
        assert not re.search(r"^(import|export (?!\{))", text, flags=re.M), "nothing is left to load"
        for module in inside[name]:
            own = (bundle.DIRECTORY / f"{module}.js").read_text(encoding="utf-8")
            for other in re.findall(r'from "\./(\w+)\.js"', own):
                assert inside[name].index(other) < inside[name].index(module)
            lines = text.split(f"// {module}.js\n")[1].splitlines()
            begins = [re.match(r"export ((?:async )?\w+ \w+)", line) for line in own.splitlines()]
            assert all(begin[1] in line for begin, line in zip(begins, lines, strict=False) if begin), (
                "an error is as many lines below the name as in the file"
            )
    assert "</script" not in viewer.page()
    assert "<!--" not in viewer.page()


def test_the_page_is_small_and_makes_no_markup_of_data(tab: Asked) -> None:
    sources = {path: path.read_text(encoding="utf-8") for path in bundle.DIRECTORY.glob("*.[jc]s*")}
    sent_bytes = 0
    for name, text in viewer.files().items():
        route = f"/{viewer.version()}/{name}"
        answer = Client(tab.apps[route], Response).get(route, headers={"Accept-Encoding": "gzip"})
        assert plain(answer).decode() == text
        sent_bytes += len(answer.get_data())
    assert sent_bytes < 58_000
    for path, text in sources.items():
        sent = bundle.sent(path)
        assert path.suffix == ".css" or "/**" not in sent, path.name
        assert sent.count("\n") == text.count("\n"), path.name
        assert path.suffix == ".css" or all(line.count("`") % 2 == 0 for line in sent.splitlines()), (
            "a text over lines would lose its indentation"
        )
        for word in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "http://",
        ):
            # The name of SVG looks like an address, and nothing is loaded from it.
            assert word not in text.replace("http://www.w3.org/2000/svg", ""), f"{path.name} uses {word}"


# -- the loader --------------------------------------------------------------------------------------------------------


def test_the_loader_asks_for_enough_samples_unless_the_user_said_how_many() -> None:
    loader = BatchNormLoader()
    for given, expected in (({}, 5000), ({"bnmonitor": 7}, 7), ({"bnmonitor": 0}, 0)):
        some = argparse.Namespace(samples_per_plugin=dict(given))
        loader.fix_flags(some)
        assert some.samples_per_plugin["bnmonitor"] == expected
    loader.fix_flags(argparse.Namespace())
    parser = argparse.ArgumentParser()
    loader.define_flags(parser)
    assert len(parser._actions) == 1


def test_the_plugin_declares_a_tab_and_never_looks_for_data_by_itself(tab: Asked) -> None:
    metadata = tab.plugin.frontend_metadata()
    assert (metadata.es_module_path, metadata.tab_name) == (f"/{viewer.version()}/index.js", "BatchNorm")
    assert not tab.plugin.is_active()


def loaded(statement: str) -> set[str]:
    code = f"{statement}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    return set(json.loads(out.stdout.splitlines()[-1]))


def test_the_entry_point_loads_next_to_nothing_and_the_plugin_no_torch() -> None:
    before = loaded("from tensorboard.plugins import base_plugin")
    found = loaded("from bnmonitor.tensorboard_plugin.loader import BatchNormLoader")
    own = {name for name in found - before if name.split(".")[0] not in sys.stdlib_module_names}
    assert own == {
        "bnmonitor",
        "bnmonitor._version",
        "bnmonitor.history",
        "bnmonitor.history.schema",
        "bnmonitor.tensorboard_plugin",
        "bnmonitor.tensorboard_plugin.loader",
    }
    whole = loaded("import bnmonitor.tensorboard_plugin.plugin")
    assert not {name.split(".")[0] for name in whole} & {"torch", "lightning", "pytorch_lightning", "rich"}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is in Python 3.11 and later")
def test_the_package_declares_the_entry_point_and_carries_the_page() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    [(name, target)] = project["project"]["entry-points"]["tensorboard_plugins"].items()
    assert (name, target) == ("bnmonitor", f"{BatchNormLoader.__module__}:{BatchNormLoader.__name__}")
    data = project["tool"]["setuptools"]["package-data"]["bnmonitor"]
    assert {"viewer/*", "tensorboard_plugin/*.md"} <= set(data)


# -- the description of the routes -------------------------------------------------------------------------------------

API = Path(tensorboard_plugin.__file__).with_name("http_api.md")


def described() -> dict[str, str]:
    """The part of the description that each route has."""
    parts = re.split(r"^## (/\w+)$", API.read_text(encoding="utf-8"), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def in_tables(part: str, head: str) -> set[str]:
    """The names in the first column of the tables with a head."""
    tables = re.findall(rf"^\| {head} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", part, flags=re.M)
    return {name for rows in tables for row in rows.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])}


def test_every_route_is_described_and_no_other(tab: Asked) -> None:
    assert set(described()) == {route for route in tab.apps if "." not in route}


def test_a_route_takes_the_parameters_and_gives_the_answer_that_are_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = a_box(tmp_path / "run")
    write(tmp_path / "run", ("layer0", "layer1"), range(5), sick=(1,), channels=4, detailed=(1,))
    tab, asked = Asked(tmp_path), set()
    text, texts = Query.text, Query.texts
    monkeypatch.setattr(Query, "texts", lambda query, name, most: asked.add(name) or texts(query, name, most))

    def noted(query: Query, name: str, default: str | None = None) -> str:
        asked.add(name)
        return text(query, name, default)

    monkeypatch.setattr(Query, "text", noted)
    given = {"run": "run", "layer": "layer1", "statistic": "batch_var", "file": file, "channel": 1, "name": "BN106"}
    every = in_tables(API.read_text(encoding="utf-8"), "key")
    common = {"shape", "ends", "before", "frames"}
    for route, part in described().items():
        asked.clear()
        if route in ("/first", "/several"):
            assert tab.ask(route, **given, ask="slice?run=run&statistic=health").status_code == 200
        elif route in ("/runs", "/table", "/manual", "/run"):
            assert set(tab.json(route, **given)) == in_tables(part, "key")
        else:
            header, values = tab.slice(route, **given)
            assert common < set(header)
            assert common < every
            assert all(f"`{key}`" in part for key in header.keys() - common)
            assert values.shape == tuple(header["shape"])
        # What the routes within it take.
        inner = {"/first": {"from", "to"}, "/several": asked - {"ask"}}.get(route, set())
        assert asked - inner == in_tables(part, "parameter"), route


def test_the_description_says_the_bounds_that_the_server_keeps(tab: Asked) -> None:
    text = API.read_text(encoding="utf-8")
    assert f"longer than {LONGEST} characters" in text
    assert f"| {COLUMNS} |" in text
    assert tab.json("/runs")["columns"] == MOST_COLUMNS


@pytest.fixture
def long_run(tmp_path: Path) -> Asked:
    write(tmp_path / "run", histories.resnet(53), range(0, 75_000, 50), metrics=METRICS[:6])
    return Asked(tmp_path)


def test_a_slice_of_a_run_that_was_read_once_reads_nothing_again(
    long_run: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    for name in ("read_tensors", "read_blob_sequences", "read_scalars"):
        original = getattr(long_run.provider, name)
        monkeypatch.setattr(
            long_run.provider, name, lambda *a, o=original, n=name, **k: (read.append(n), o(*a, **k))[1]
        )
    long_run.slice("/slice", run="run", statistic="health")
    assert read
    read.clear()
    header, _ = long_run.slice("/slice", run="run", statistic="batch_var", bins=1500)
    assert header["shape"] == [53, 1500]
    assert read == []


# -- odd requests ------------------------------------------------------------------------------------------------------

ODD = (
    *("", " ", "0", "-0", "-1", "1", "+5", "1_0", "٣", "1e3", "1.5", "nan", "inf", "-inf", "None", "true", "[1,2]"),
    *(str(2**53), str(-(2**53)), str(2**63 - 1), str(2**63), str(-(2**64)), "9" * 19, "9" * 5000, "0x10", "{}"),
    *("health", "training", "layers", "mean_lag", "head", SICK, "../..", "a\0b", "\ud83d", "слой", "%00", "\u202e"),
)
PARAMETERS = ("run", "statistic", "layer", "channel", "file", "from", "to", "bins", "unknown")


@pytest.fixture(scope="module")
def boxed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Asked, str]:
    logs = tmp_path_factory.mktemp("boxed")
    write(logs / "run", NAMES, range(40), sick=(1,), channels=8, detailed=(1, 2))
    (logs / "run" / "plugins" / "bnmonitor").mkdir(parents=True, exist_ok=True)
    name = a_box(logs / "run")
    return Asked(logs), name


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(st.data())
def test_no_request_makes_the_server_fail(boxed: tuple[Asked, str], data: st.DataObject) -> None:
    tab, name = boxed
    usual = {"run": "run", "statistic": "batch_var", "layer": NAMES[1], "file": name}
    route = data.draw(st.sampled_from(["/runs", "/run", "/slice", "/layer", "/channels", "/channel", "/box"]))
    odd = st.one_of(st.sampled_from(ODD), st.text(max_size=20), st.integers().map(str), st.floats().map(str))
    extra = data.draw(st.lists(st.tuples(st.sampled_from(PARAMETERS), odd), max_size=5))
    kept = data.draw(st.sets(st.sampled_from(sorted(usual))) | st.just(set(usual)))
    pairs = [*extra, *((key, usual[key]) for key in sorted(kept))]
    query = "&".join(f"{key}={quote(value, errors='surrogatepass')}" for key, value in pairs)
    answer = Client(tab.apps[route], Response).get(f"{route}?{query}")
    assert answer.status_code in (200, 400, 404), plain(answer)


def test_an_empty_statistic_is_not_confused_with_the_frames(boxed: tuple[Asked, str]) -> None:
    header, values = boxed[0].slice("/slice", run="run", statistic="")
    assert header["extent"] is None
    assert np.isnan(values).all()


@pytest.mark.parametrize("statistic", ["layers", "steps", "training", "updates", "alert"])
def test_a_box_answers_numbers_per_channel_only(boxed: tuple[Asked, str], statistic: str) -> None:
    tab, name = boxed
    assert tab.ask("/box", run="run", file=name, layer="layer1", statistic=statistic).status_code == 404


def test_damaged_times_and_tensors_hide_neither_their_run_nor_another(tmp_path: Path) -> None:
    write(tmp_path / "healthy", NAMES, range(5), channels=8)
    with Writer(tmp_path / "damaged", ("a",)) as writer:
        tag, table = FRAME + writer.schema.key, np.ones((1, len(writer.schema.metrics)), np.float32)
        for step, wall in enumerate((float("nan"), float("inf"))):
            writer.add(step, wall, encode.floats(tag, table, writer.schema.encode()))
        broken = encode.floats(alert_tag(("x",)), table)
        broken.tensor.tensor_content = b"\0" * 3
        writer.add(2, 1.0, broken)
    tab = Asked(tmp_path)
    assert {run["name"]: run["layers"] for run in tab.json("/runs")["runs"]} == {"healthy": len(NAMES), "damaged": 1}
    run = tab.json("/run", run="damaged")
    assert (run["frames"], run["walls"], run["alerts"]) == (2, [0, 0], [])


def test_a_damaged_run_does_not_hide_the_table_of_the_others(tmp_path: Path) -> None:
    write(tmp_path / "healthy", NAMES, range(5))
    with Writer(tmp_path / "damaged", NAMES) as writer:
        writer.frames(range(5), np.full((5, len(NAMES), len(writer.schema.metrics)), np.inf, np.float32))
    found = {row["name"]: row["health"] for row in Asked(tmp_path).json("/table")["runs"]}
    assert found["damaged"] == [None] * 5
    assert None not in found["healthy"]
