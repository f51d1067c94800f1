"""What a monitor shows in a notebook while it trains: tables, plots, short texts and HTML."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

import bnmonitor
from bnmonitor import Monitor
from bnmonitor.history.statistics import BY_NAME
from bnmonitor.runs.notebook import health_map
from tests.watching import diverging


def trained(log_dir: Path | None = None, *, steps: int = 150) -> Monitor:
    return diverging([] if log_dir is None else None, log_dir, steps=steps)


@pytest.fixture(scope="module")
def diverged() -> Monitor:
    return trained()


def test_without_a_directory_the_table_is_that_of_the_window(diverged: Monitor) -> None:
    pytest.importorskip("pandas")
    frame = diverged.to_frame()
    assert frame["step"].unique().tolist() == list(diverged.steps)
    assert frame["layer"].unique().tolist() == ["1", "4"]
    first = frame[(frame["step"] == diverged.steps[0]) & (frame["layer"] == "1")].iloc[0]
    assert first["batch_var"] == pytest.approx(diverged.history("1", "batch_var")[0].mean().item())
    channels = diverged.to_frame("4", "gamma")
    assert channels.shape == (64, 16)
    np.testing.assert_array_equal(channels.to_numpy(), diverged.history("4", "gamma").numpy())


def test_with_a_directory_the_table_is_that_of_the_whole_run(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    monitor = trained(tmp_path)
    assert monitor.to_frame("4", "gamma").shape == (150, 16)
    assert "health" in monitor.to_frame()


def test_a_plot_is_drawn_on_the_axes_that_are_passed(diverged: Monitor) -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    ax = figure.subplots()
    assert diverged.plot("1", "gamma", ax=ax) is ax
    assert ax.get_title(loc="left") == "1"
    every = figure.add_subplot()
    diverged.plot(ax=every)
    assert len([line for line in every.lines if len(line.get_xdata()) == 64]) == 2


def test_an_unknown_name_is_answered_by_the_nearest(diverged: Monitor) -> None:
    pytest.importorskip("pandas")
    with pytest.raises(KeyError, match="has no layer '11'; did you mean '1'"):
        diverged.to_frame("11")
    with pytest.raises(KeyError, match="did you mean 'gamma'"):
        diverged.to_frame("1", "gama")


def test_before_anything_is_written_there_is_nothing_to_draw(tmp_path: Path) -> None:
    from bnmonitor.monitor.live import recorded

    assert recorded(None) is None
    assert recorded(tmp_path / "nothing") is None
    (tmp_path / "empty").mkdir()
    assert recorded(tmp_path / "empty") is None


@pytest.mark.parametrize("what", ["to_frame", "plot"])
def test_a_missing_library_is_one_sentence(diverged: Monitor, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pandas", "matplotlib", "matplotlib.pyplot"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"needs (pandas|matplotlib): pip install 'bnmonitor\[tables\]'"):
        getattr(diverged, what)()


def test_texts_are_short_and_html_has_the_verdict(diverged: Monitor) -> None:
    [incident] = [i for i in diverged.incidents if i.cause == "learning-rate-too-high"]
    for thing in (diverged, diverged.layers, diverged.summary(), incident, incident.evidence[0]):
        assert len(repr(thing)) < 160
        assert repr(thing).startswith(f"<{type(thing).__name__}")
    for thing in (diverged, incident):
        assert incident.title in thing._repr_html_()
    assert "BatchNorm1d" in diverged.layers._repr_html_()
    assert incident.evidence[0].code in incident.evidence[0]._repr_html_()


def test_names_are_escaped_in_html() -> None:
    picture = health_map(["<b>"], [0, 1], [[100.0], [20.0]])
    assert "<b>" not in picture
    assert "&lt;b&gt;" in picture


def test_a_map_has_the_colors_of_the_limits() -> None:
    limits = BY_NAME["health"].limits
    levels = [100.0, limits["near"], limits["warning"], limits["error"]]
    picture = health_map(["a"], range(4), [[level] for level in levels])
    colors = [part.split('"')[0] for part in picture.split('fill="#')[1:]]
    assert colors == ["e4edee", "7f8fd6", "eda63a", "b8242a"]


def test_a_long_map_shows_the_worst_of_the_steps_of_a_column() -> None:
    health = [[100.0]] * 1000
    health[500] = [10.0]
    picture = health_map(["a"], range(1000), health)
    assert picture.count("<rect") == 80
    assert picture.count("#b8242a") == 1


def test_a_map_is_even_in_steps_however_they_were_logged() -> None:
    steps = [0, 1, 2, 3, 100]
    picture = health_map(["a"], steps, [[100.0], [100.0], [100.0], [10.0], [100.0]])
    shown = re.findall(r"step (\d+): (\d+)", picture)
    assert shown == [("0", "10"), ("3", "10"), ("3", "10"), ("3", "10"), ("100", "100")]


def test_a_map_of_many_layers_has_the_worst() -> None:
    picture = health_map([f"layer{i}" for i in range(100)], [0], [[float(i != 99) * 100 for i in range(100)]])
    assert "layer99, step 0: 0" in picture
    assert "and 40 more layers, none worse" in picture


def test_layers_are_found_by_name_and_position(diverged: Monitor) -> None:
    layers = diverged.layers
    assert [layer.name for layer in layers] == ["1", "4"] == list(layers.names)
    assert layers["4"] == layers[1] == layers[-1]
    assert (layers["4"].channels, layers["4"].kind) == (16, "BatchNorm1d")
    assert "1" in layers
    assert "2" not in layers
    with pytest.raises(KeyError, match="no BatchNorm layer is named '2'"):
        layers["2"]
    with pytest.raises(IndexError):
        layers[2]


def test_dir_shows_what_is_public(diverged: Monitor, tmp_path: Path) -> None:
    things = [diverged, bnmonitor.open(trained(tmp_path, steps=20).log_dir or tmp_path)]
    for thing in [*things, things[1]["."]]:
        names = [name for name in dir(thing) if not name.startswith("__")]
        assert not [name for name in names if name.startswith("_")]
        assert names
