"""Recorded runs in Python and as tables, from a real training."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bnmonitor
from bnmonitor import Monitor
from bnmonitor.cli import main
from bnmonitor.history.flight.layout import FOLDER, STATISTICS, columns
from bnmonitor.history.flight.writer import FlightWriter
from bnmonitor.runs import tables
from bnmonitor.runs.colors import HEALTH, LINE, SEVERITY, SIGNED, UNKNOWN
from bnmonitor.sinks import TensorBoard
from tests.histories import write

LAYERS = ("1", "4")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Monitor, dict[str, np.ndarray[Any, Any]]]:
    """A training with an inverted momentum, its monitor, and what it should have recorded, in float64."""
    torch.manual_seed(0)
    logs = tmp_path_factory.mktemp("logs")
    model = nn.Sequential(
        nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4), nn.BatchNorm1d(4, momentum=0.9), nn.Linear(4, 1)
    ).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    truth: dict[str, list[Any]] = {"batch_mean": [], "running_var": [], "gamma": [], "loss": []}
    layer = model[4]
    with Monitor(
        model, optimizer=optimizer, log_dir=logs / "one", sinks=[TensorBoard(logs / "one")], on_alert="log"
    ) as monitor:
        for _ in range(130):
            x = torch.randn(16, 6, dtype=torch.float64)
            inputs: list[torch.Tensor] = []
            hook = layer.register_forward_pre_hook(lambda _, args, kept=inputs: kept.append(args[0].detach()))
            loss = (model(x)[:, 0] - x[:, 0]).square().mean()
            hook.remove()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(loss=loss)
            truth["batch_mean"].append(inputs[0].mean(0).numpy())
            truth["running_var"].append(layer.running_var.clone().numpy())
            truth["gamma"].append(layer.weight.detach().clone().numpy())
            truth["loss"].append(loss.item())
    return logs, monitor, {name: np.array(rows) for name, rows in truth.items()}


def test_every_channel_of_every_step_is_as_it_was(trained: Any) -> None:
    logs, _, truth = trained
    run = bnmonitor.open(logs)["one"]
    assert run.layers == LAYERS
    deviation = np.sqrt(truth["running_var"].max())
    for statistic, error in (("batch_mean", 0.05 * deviation), ("running_var", None), ("gamma", 0.01)):
        steps, values = run.history("4", statistic)
        assert steps.tolist() == list(range(130))
        allowed = np.abs(truth[statistic]) * 0.05 if error is None else error
        assert (np.abs(values - truth[statistic]) <= allowed + 1e-6).all(), statistic
    assert run.steps[-1] == 129
    np.testing.assert_allclose(run.loss, truth["loss"][run.steps], rtol=1e-5)
    assert set(run.learning_rate.ravel().tolist()) == {0.05}
    assert len(run.wall_time) == len(run.epoch) == len(run.steps)


def test_incidents_and_alerts_are_those_of_the_monitor(trained: Any) -> None:
    logs, monitor, _ = trained
    run = bnmonitor.open(logs / "one").only
    assert run.name == "."
    assert [i.title for i in run.incidents] == [i.title for i in monitor.incidents]
    assert {a.key for a in run.alerts} == {a.key for a in monitor.alerts}
    assert repr(run).startswith("<Run '.': 2 layers, last step 129, ")
    assert run.verdict in run._repr_html_()
    assert "one" in bnmonitor.open(logs)._repr_html_()


def test_open_needs_no_torch(trained: Any) -> None:
    logs, _, _ = trained
    code = (
        "import bnmonitor, sys\nbnmonitor.open(sys.argv[1])['one'].history('1', 'gamma')\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(logs)], capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.returncode) == ("False", 0), done.stderr


def test_unknown_names_say_the_nearest(trained: Any) -> None:
    runs = bnmonitor.open(trained[0])
    with pytest.raises(KeyError, match=r"no run 'on'; did you mean 'one'\?"):
        runs["on"]
    run = runs["one"]
    with pytest.raises(KeyError, match="no layer 'x'"):
        run.history("x", "gamma")
    with pytest.raises(KeyError, match="did you mean 'batch_mean'"):
        run.history("1", "batch_meen")
    with pytest.raises(KeyError, match="did you mean 'health'"):
        run.table("healt")
    with pytest.raises(FileNotFoundError, match="give a run's log directory"):
        bnmonitor.open(trained[0] / "nowhere")


def test_a_run_without_a_flight_record_says_so(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Monitor(model, optimizer=optimizer, log_dir=tmp_path, flight_bytes=0) as monitor:
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(32, 3)).square().mean().backward()
            optimizer.step()
            monitor.step()
    run = bnmonitor.open(tmp_path).only
    with pytest.raises(LookupError, match="has no flight record"):
        run.history("1", "gamma")
    with pytest.raises(KeyError, match="there is no statistic 'gama'; did you mean 'gamma'"):
        run.history("1", "gama")
    assert run.table("gamma").shape == (len(run.steps), 1)


def test_a_run_without_an_event_file_is_read_from_its_flight_record(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=0.9), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for session in range(2):
        logs = tmp_path / "silent"
        with Monitor(model, optimizer=optimizer, log_dir=logs, sinks=[], on_alert=lambda alert: None) as monitor:
            losses = []
            for _ in range(150):
                optimizer.zero_grad()
                loss = model(torch.randn(32, 4)).square().mean()
                loss.backward()
                optimizer.step()
                monitor.step(loss=loss)
                losses.append(loss.item())
        listed = bnmonitor.open(tmp_path)
        assert listed._entries()["silent"].last_step == 149, "the index follows the record"
        assert list(listed) == ["silent"], session
    run = bnmonitor.open(tmp_path)["silent"]
    assert run.verdict == str(monitor.incidents[0].title)
    assert [incident.cause for incident in run.incidents] == [incident.cause for incident in monitor.incidents]
    assert [(a.key, a.state) for a in run.alerts] == [(a.key, a.state) for a in monitor.alerts]
    assert run.layers == ("1",)
    assert np.array_equal(run.steps, np.arange(150))
    np.testing.assert_allclose(run.loss, losses, rtol=1e-6)
    assert np.array_equal(run.learning_rate, np.full((150, 1), 0.01))
    assert run.history("1", "batch_mean")[1].shape == (150, 8)
    assert bnmonitor.open(tmp_path / "silent").only.layers == ("1",)
    with pytest.raises(KeyError, match="no statistic 'health' of layers"):
        run.table("health")


def test_frames_of_pandas(trained: Any) -> None:
    pytest.importorskip("pandas")
    run = bnmonitor.open(trained[0])["one"]
    plain = run.to_frame()
    assert len(plain) == len(run.steps) * 2
    assert {"step", "layer", "loss", "health", "lr 0"} <= set(plain.columns)
    channels = run.to_frame("*", "gamma")
    assert channels.shape == (130, 9)
    np.testing.assert_array_equal(channels["4"].to_numpy(), run.history("4", "gamma")[1])


def test_pictures_take_axes_and_return_them(trained: Any) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    run = bnmonitor.open(trained[0])["one"]
    _, axes = plt.subplots(2, 2)
    assert run.plot(ax=axes[0, 0]) is axes[0, 0]
    assert run.plot("4", "batch_var", ax=axes[0, 1]).get_yscale() == "log"
    assert [text.get_text() for text in run.plot_map(ax=axes[1, 0]).get_yticklabels()] == list(LAYERS)
    assert run.plot("1").get_title(loc="left") == "1"
    assert run.plot_map("gamma").get_figure().axes[1].get_ylabel() == "gamma"
    plt.close("all")


def test_maps_are_scaled_by_what_they_show(tmp_path: Path) -> None:
    """Numbers of both signs around 0, large ones by their logarithm, health from 0 to 100; one step is a map too."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.colors import LogNorm

    write(tmp_path / "many", [f"layer{number}" for number in range(12)], range(0, 60, 10))
    run = bnmonitor.open(tmp_path)["many"]
    signed = run.plot_map("beta").images[0].norm
    assert signed.vmin == -signed.vmax
    assert signed.vmax == pytest.approx(np.nanmax(np.abs(run.table("beta"))))
    assert isinstance(run.plot_map("batch_var").images[0].norm, LogNorm)
    assert run.plot_map("health").get_figure().axes[1].get_yticks()[0] == 0
    assert run.plot().get_legend() is None, "twelve names would hide the lines"
    write(tmp_path / "one", ["bn"], [7])
    assert bnmonitor.open(tmp_path)["one"].plot_map().images[0].get_extent()[:2] == [7, 8]
    plt.close("all")


@pytest.mark.parametrize("module", ["pandas", "matplotlib.pyplot"])
def test_a_missing_library_is_one_sentence(trained: Any, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    run = bnmonitor.open(trained[0])["one"]
    name = module.split(".")[0]
    with pytest.raises(ImportError, match=rf"needs {name}: pip install 'bnmonitor\[tables\]'"):
        run.to_frame() if name == "pandas" else run.plot()


def test_export_writes_what_the_run_holds(trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = bnmonitor.open(trained[0])["one"]
    path = str(trained[0] / "one")
    assert main(["export", path, "--csv"]) == 0
    read = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(read) == len(run.steps) * 2
    assert float(read[-1]["loss"]) == pytest.approx(run.loss[-1])
    assert main(["export", path, "--json", str(tmp_path / "x.json"), "--layer", "4", "--statistic", "gamma"]) == 0
    assert "520 rows written to" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "x.json").read_text("utf-8").splitlines()]
    assert [line["gamma"] for line in lines[:4]] == run.history("4", "gamma")[1][0].tolist()
    assert {line["layer"] for line in lines} == {"4"}


@pytest.mark.parametrize("form", ["csv", "json"])
def test_channels_are_written_block_by_block_as_row_by_row(form: str, tmp_path: Path) -> None:
    name = 'a, "b" 100 %'
    writer = FlightWriter(tmp_path / FOLDER, 2**24)
    writer.begin([name], [3], mean_error=[0.01], variance_error=[0.01])
    values = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32) ** 2 + 1
    values[7] = np.nan
    values[9, 1] = np.inf
    course = np.zeros((40, len(columns(0))))
    writer.add(list(range(40)), dict.fromkeys(STATISTICS, values), course)
    writer.close()
    run = bnmonitor.open(tmp_path).only
    fast, slow = io.StringIO(), io.StringIO()
    written = tables.write_channels(None, run, None, "batch_var", fast, form=form)
    write = tables.write_csv if form == "csv" else tables.write_json
    assert written == write(None, tables.rows(run, None, "batch_var"), slow) == 120
    if form == "json":
        assert fast.getvalue() == slow.getvalue()
    else:
        read = [list(csv.DictReader(io.StringIO(text.getvalue()))) for text in (fast, slow)]
        assert read[0] == read[1]
        assert {row["layer"] for row in read[0]} == {name}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--csv", "--layer", "nothing"], "no layer 'nothing'"),
        (["--csv", "--statistic", "gama"], "did you mean 'gamma'"),
        (["--csv", "/nowhere/x.csv"], "cannot write"),
        (["--csv", "--run", "two"], "'two'"),
        (["--parquet", "x.parquet", "--statistic", "gamma"], "pip install"),
    ],
)
def test_export_refuses_in_one_line(
    trained: Any, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(trained[0] / "one"), *arguments]) == 2
    captured = capsys.readouterr().err
    assert said in captured
    assert captured.count("\n") == 1


def test_of_several_runs_export_takes_the_one_that_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, [f"{name}.bn"], [0, 50])
    assert main(["export", str(tmp_path), "--csv"]) == 2
    assert "holds 2 runs: choose one by --run, such as --run a" in capsys.readouterr().err
    assert main(["export", str(tmp_path), "--csv", "--run", "b"]) == 0
    assert {row["layer"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out))} == {"b.bn"}
    assert main(["export", str(tmp_path / "nothing"), "--csv"]) == 2
    assert "no file or directory" in capsys.readouterr().err
    with pytest.raises(LookupError, match="there are 2 runs: a, b"):
        _ = bnmonitor.open(tmp_path).only
    (tmp_path / "empty").mkdir()
    with pytest.raises(LookupError, match="there is no run"):
        _ = bnmonitor.open(tmp_path / "empty").only


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_an_export_into_a_full_pipe_is_one_line(trained: Any) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "bnmonitor", "export", str(trained[0] / "one"), "--csv"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=300,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("bnmonitor: cannot write")
    assert done.stderr.count("\n") == 1


def test_rows_name_the_extremes_of_each_block(trained: Any) -> None:
    run = bnmonitor.open(trained[0])["one"]
    first = next(iter(tables.rows(run, "1", "batch_var")))
    assert list(first) == ["layer", "first_step", "last_step", "channel", "batch_var", "minimum", "maximum"]


def test_a_map_is_red_from_the_step_when_an_error_begins(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    steps = [0, 10, 20, 25, 40]
    write(tmp_path, ("a", "b"), steps, sick=(1,))
    run = bnmonitor.open(tmp_path).only
    from matplotlib.colors import to_rgba

    from bnmonitor.runs.plots import _even

    table = np.array([[1.0, 2.0, 9.0, np.nan, 3.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
    columns = _even(np.array(steps), table, "linear")
    assert columns.shape == (2, 1000)
    at = np.linspace(0, 40, 1000, endpoint=False)
    assert (columns[0, (at > 0.1) & (at < 9.9)] == 2).all(), "a frame stands for the steps since the one before"
    assert np.isnan(columns[0, (at > 20.1) & (at < 24.9)]).all()
    assert (columns[1, at > 25.1] == 1).all()
    picture = run.plot_map().images[0]
    assert picture.get_extent() == [0, 40, 1.5, -0.5]
    colors = {name: picture.cmap(picture.norm(value)) for name, value in {"error": 20.0, "warning": 60.0}.items()}
    assert colors == {name: to_rgba(HEALTH[name]) for name in colors}


def test_the_colors_are_those_of_the_tab() -> None:
    palette = (Path(bnmonitor.__file__).parent / "viewer" / "palette.css").read_text(encoding="utf-8").split(".dark")[0]
    for name, colors in {"signed": SIGNED, "health": HEALTH.values()}.items():
        assert f"--{name}: {' '.join(colors)};" in palette
    for name, color in {**SEVERITY, "gap": UNKNOWN, "accent": LINE}.items():
        assert f"--{name}: {color};" in palette


def test_a_table_of_a_large_model_has_the_single_steps_of_layers_that_differ(tmp_path: Path) -> None:
    random, layers, steps = np.random.default_rng(0), {"a": 300, "b": 40, "c": 60}, 64
    rows = {name: random.uniform(0.5, 1.5, (steps, 400)).astype(np.float32) for name in STATISTICS}
    writer = FlightWriter(tmp_path / FOLDER)
    writer.begin(list(layers), list(layers.values()), groups=1, mean_error=[0.01] * 3, variance_error=[0.01] * 3)
    course = np.zeros((steps, len(columns(1))))
    writer.add(list(range(steps)), rows, course)
    for layer, some in ((1, slice(7, 10)), (2, slice(20, 22))):
        writer.detail([layer], list(range(steps))[some], {n: row[some] for n, row in rows.items()}, course[some])
    writer.close()
    run = bnmonitor.open(tmp_path).only
    found = run.to_frame("[bc]", "batch_mean")
    assert found.index.tolist() == sorted({*range(3, 64, 4), 7, 8, 9, 20, 21})
    exact = rows["batch_mean"]
    np.testing.assert_allclose(found["b"].loc[7:9], exact[7:10, 300:340], atol=0.02)
    np.testing.assert_allclose(found["c"].loc[20:21], exact[20:22, 340:], atol=0.02)
    assert found["b"].loc[[20, 21]].isna().all(axis=None)
    np.testing.assert_allclose(found["c"].loc[7], exact[4:8, 340:].mean(0), atol=0.02)


def test_a_statistic_of_the_other_kind_says_how_it_is_read(tmp_path: Path) -> None:
    write(tmp_path, ["bn"], [0, 50])
    run = bnmonitor.open(tmp_path).only
    with pytest.raises(KeyError, match=r"'batch_mean' is a statistic of channels: read it with history\(layer, "):
        run.table("batch_mean")


def test_the_names_of_many_layers_do_not_overlap_on_a_map(tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    write(tmp_path, [f"layer{number}" for number in range(60)], range(0, 450_000, 50_000))
    axes = bnmonitor.open(tmp_path).only.plot_map()
    axes.figure.canvas.draw()
    for labels in (axes.get_yticklabels(), axes.get_xticklabels()):
        boxes = [label.get_window_extent() for label in labels if label.get_text()]
        assert len(boxes) >= 4
        assert not any(one.overlaps(two) for one, two in pairwise(boxes))
    plt.close(axes.figure)
