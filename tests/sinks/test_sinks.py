"""What the sinks show and write."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import rich.console
import torch
from tensorboard.plugins.custom_scalar import layout_pb2
from torch import nn

from bnmonitor import Alert, Incident, Monitor, Severity, Summary
from bnmonitor.display import final_summary, show, sparkline
from bnmonitor.history.incidents import replay
from bnmonitor.history.statistics import LAYER
from bnmonitor.lightning.progress_bar import beside_bar
from bnmonitor.sinks import Console, JsonLines, Loggers, Run, TensorBoard
from bnmonitor.summary import METRICS, empty, summarize
from bnmonitor.testing import RecordingSink, make_window
from bnmonitor.window import Recovery, Window
from tests.watching import Windows

INFO, WARNING, ERROR = Severity.INFO, Severity.WARNING, Severity.ERROR
LONG = "backbone.features.stage3.block11.downsample.normalization.bn2"


def an_alert(layer: str | None = "layer1", severity: Severity = WARNING, **more: Any) -> Alert:
    given: dict[str, Any] = {
        "code": "BN106",
        "rule": "variance-explosion",
        "severity": severity,
        "layer": layer,
        "layers": () if layer is None else (layer,),
        "channels": (3, 5),
        "first_step": 41,
        "last_step": 49,
        "state": "open",
        "value": 250.0,
        "threshold": 100.0,
        "message": "batch variance of 2 channels is up to 250 times its own baseline; lr = 0.4",
        "advice": "lower the peak learning rate or clip gradients: Trainer(gradient_clip_val=1.0)",
        "url": "https://somewhere/BN106.md",
    }
    return Alert(**{**given, **more})


def an_incident(*evidence: Alert, **more: Any) -> Incident:
    lead = evidence[0]
    given: dict[str, Any] = {
        "severity": max(alert.severity for alert in evidence),
        "title": "the batch variance exploded",
        "detail": "batch variance ×250; loss 2.3 → 8.1",
        "layers": tuple(dict.fromkeys(name for alert in evidence for name in alert.layers)),
        "of_layers": 12,
        "evidence": evidence,
    }
    return replace(Incident.of(lead), **{**given, **more})


def a_window(*names: str) -> Window:
    window = make_window(channels=(6,) * max(len(names), 1))
    return replace(window, layers=replace(window.layers, names=names)) if names else window


def a_summary(*alerts: Alert, names: tuple[str, ...] = (), **skipped: str) -> Summary:
    """Twelve layers, and an incident for each warning and error."""
    window = a_window(*(names or [f"layer{i}" for i in range(12)]))
    serious = [alert for alert in alerts if alert.severity > INFO]
    incidents = [an_incident(alert, index=i) for i, alert in enumerate(serious)]
    return summarize(window, alerts, skipped, epoch=3, incidents=incidents)


def explained(summary: Summary) -> Summary:
    """The same with an incident for each warning and each error."""
    return replace(summary, incidents=replay([], {}, [alert.to_dict() for alert in summary.alerts]))


class Screen:
    """A rich console that writes to memory."""

    def __init__(self, width: int = 80, *, terminal: bool = False) -> None:
        self.file = io.StringIO()
        self.console = rich.console.Console(
            file=self.file, width=width, force_terminal=terminal, color_system="truecolor" if terminal else None
        )

    def sink(self, summary: Summary, **options: Any) -> Console:
        sink = Console(**options)
        sink.open(Run(layers=summary.layers, emit=lambda renderable: show(renderable, self.console)))
        return sink

    @property
    def text(self) -> str:
        return self.file.getvalue()

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.text.splitlines()]

    def table(self, summary: Summary, **options: Any) -> list[str]:
        """The lines of a table, without the headline."""
        self.console.print(final_summary(summary, **options))
        return self.lines[1:]


# -- console -----------------------------------------------------------------------------------------------------------


def test_healthy_epoch_is_one_line() -> None:
    screen, summary = Screen(), a_summary()
    screen.sink(summary).epoch(summary)
    assert screen.text == "BatchNorm ✓ 12 layers, 72 channels healthy · epoch 3 · step 63\n"


def test_notes_and_resolved_incidents_leave_it_at_one_line() -> None:
    screen, summary = Screen(100), a_summary(an_alert(severity=INFO), an_alert(severity=ERROR, state="cleared"))
    screen.sink(summary).epoch(summary)
    assert screen.text == "BatchNorm ✓ 12 layers, 72 channels healthy · epoch 3 · step 63\n"
    screen.sink(summary).close(summary)
    assert screen.lines[1] == "BatchNorm ✓ 12 layers, 72 channels healthy · 1 incident, resolved · step 63"


def test_ill_epoch_is_one_line_that_names_the_worst_incident() -> None:
    screen = Screen(120)
    summary = a_summary(an_alert("layer2"), an_alert("layer7", ERROR), an_alert("layer9", INFO))
    screen.sink(summary).epoch(summary)
    assert screen.lines == [
        "BatchNorm ✗ the batch variance exploded, since step 41 (layer7), 1 more incident · epoch 3 · step 63"
    ]


def test_a_narrow_line_gives_up_the_extent_before_the_step() -> None:
    alert = an_alert("layer1", layers=("layer1", "layer2"))
    summary = a_summary(alert)
    for width, line in (
        (91, "BatchNorm ! the batch variance exploded, since step 41 (2 of 12 layers) · epoch 3 · step 63"),
        (81, "BatchNorm ! the batch variance exploded, since step 41 (2 of 12 layers) · step 63"),
        (80, "BatchNorm ! the batch variance exploded, since step 41 · epoch 3 · step 63"),
        (70, "BatchNorm ! the batch variance exploded, since step 41 · step 63"),
        (60, "BatchNorm ! the batch variance exploded, since step 41"),
    ):
        screen = Screen(width, terminal=True)
        screen.sink(summary).epoch(summary)
        assert re.sub(r"\x1b\[[\d;]*m", "", screen.text) == f"{line}\n"


def test_it_is_not_called_healthy_where_nothing_is_known() -> None:
    window = a_window(*(f"net.bn{i}" for i in range(20)))
    recovery = window.recovery.clone()
    recovery[:, 3], recovery[:, 5] = Recovery.PRECISION, Recovery.NO_UPDATE
    seen = summarize(replace(window, recovery=recovery), [], {})
    assert seen.headline() == (
        "BatchNorm ✓ 18 of 20 layers healthy, 2 not seen: net.bn3, net.bn5 "
        "(rounding of the running statistics hides the batch: too small a momentum or batch variance) · step 63"
    )
    recovery[:] = Recovery.NO_MOMENTUM
    blind = summarize(replace(window, recovery=recovery), [], {})
    assert blind.headline() == (
        "BatchNorm · nothing is known of 20 layers: momentum is 0: the running statistics carry nothing of the batch "
        "· step 63"
    )
    assert empty(window.layers, (), {}).headline() == (
        "BatchNorm · nothing is known of 20 layers: no step was recorded yet"
    )
    assert empty(window.layers, (), {"every rule": "stopped"}).headline().endswith("of 20 layers: stopped")
    frozen = replace(window, recovery=recovery, training=torch.zeros_like(window.training))
    assert "20 layers, 120 channels healthy" in summarize(frozen, [], {}).headline(), "a frozen layer is known"


def test_table_shows_the_worst_layer_first_and_counts_the_rest() -> None:
    summary = a_summary(an_alert("layer2"), an_alert("layer7", ERROR), an_alert("layer9", INFO))
    head, *rows = Screen(120).table(summary)
    assert head.split() == [
        "layer",
        "batch",
        "σ²",
        "(64",
        "steps)",
        "running",
        "gap",
        "γ",
        "min",
        "dead",
        "since",
        "what",
    ]
    assert [row.split()[:2] for row in rows[:2]] == [["layer7", "✗"], ["layer2", "!"]]
    assert all(row.endswith("41  variance-explosion") for row in rows[:2])
    assert rows[2] == "10 more layers ✓"


def test_table_stops_at_the_rows_asked_for_and_says_how_many_ill_layers_it_left_out() -> None:
    alerts = [an_alert(f"layer{i}", first_step=40 + i) for i in range(5)]
    screen = Screen(120)
    assert "10 more layers, 3 with an incident" in screen.table(a_summary(*alerts), rows=2)
    assert "layer2" not in "".join(screen.lines[:4])


def test_layers_that_are_alike_share_the_row_of_the_one_where_it_began() -> None:
    alert = an_alert("layer5", ERROR, layers=("layer5", *(f"layer{i}" for i in range(12) if i not in (1, 5))))
    other = an_alert("layer1", layers=("layer1",), first_step=7)
    table = Screen(80).table(a_summary(alert, other))
    assert [row.split()[:2] for row in (table[1], table[3])] == [["layer5", "✗"], ["layer1", "!"]]
    assert table[2] == "10 layers, the same since 41"
    assert table[4] == "", "no layer is left"


@pytest.mark.parametrize("rows", [1, 2])
def test_the_layer_where_an_incident_began_is_always_among_the_rows(rows: int) -> None:
    late = [an_alert(f"layer{i}", first_step=50 + i) for i in range(4)]
    worst = an_incident(an_alert("layer9", ERROR), *late)
    summary = summarize(a_window(*(f"layer{i}" for i in range(12))), [], {}, incidents=[worst])
    assert Screen(80).table(summary, rows=rows)[1].startswith("layer9")


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_numbers_stay_and_the_words_are_cut(width: int) -> None:
    names = (LONG, *(f"{LONG}.{i}" for i in range(3)))
    alerts = [
        an_alert(name, rule="a-rule-with-a-name-that-is-long", first_step=1000 + i) for i, name in enumerate(names)
    ]
    window = a_window(*names)
    sample = torch.full_like(window.variance, 3.4e4)
    summary = summarize(replace(window, variance=sample), alerts, {}, incidents=[an_incident(*alerts)])
    screen = Screen(width)
    table = screen.table(summary)[1:5]
    for i, row in enumerate(table):
        assert len(row) <= width
        for number in ("3.4e+04", "0.00σ", "1.00", f"1 00{i}"):
            assert number in row
        assert ("…" in row.split(f"1 00{i}")[1]) is (width < 160)


def test_a_lag_near_its_limit_has_a_word_and_a_hue_of_its_own() -> None:
    for lag, near in ((0.095, True), (0.02, False)):
        summary = summarize(make_window(channels=(6,), batch_mean=lag), [], {})
        assert summary.rows[0].health > 60, "the cap of a warning is for incidents"
        screen = Screen(120, terminal=True)
        row = screen.table(summary, well=True)[1]
        assert ("near its limit" in row) is near
        assert re.findall(r"\x1b\[(3\d)m", row) == ["36", "36"] * near
    beyond = summarize(make_window(channels=(6,), batch_mean=5.0), [], {})
    assert beyond.rows[0].health > 60


def test_a_layer_that_is_too_young_for_a_lag_says_so_in_its_row() -> None:
    young = summarize(make_window(channels=(6,), seen=5, steps=2), [], {})
    assert Screen(120).table(young, well=True)[1].endswith("  warming up")
    assert young.headline() == "BatchNorm ✓ 1 layer, 6 channels healthy · step 1"


def test_a_note_lowers_no_health() -> None:
    assert {row.health for row in a_summary(an_alert("layer1", INFO)).rows} == {100.0}


def test_an_incident_without_open_alerts_still_counts_in_every_layer_that_it_names() -> None:
    gone = an_alert("layer2", ERROR, state="cleared", layers=("layer2", "layer3"))
    lost = an_incident(gone, state="open")
    summary = summarize(a_window(*(f"layer{i}" for i in range(12))), [gone], {}, incidents=[lost])
    assert [row.name for row in summary.rows if row.health <= 20] == ["layer2", "layer3"]
    assert [row.name for row in summary.ill()] == ["layer2", "layer3"]


def test_without_incidents_each_open_warning_and_error_is_one() -> None:
    alerts = [an_alert("layer1"), an_alert("layer2", INFO), an_alert("layer3", ERROR, state="cleared")]
    summary = summarize(a_window("layer1", "layer2", "layer3"), alerts, {})
    assert [(i.title, i.state) for i in summary.explained] == [
        ("variance explosion", "open"),
        ("variance explosion", "resolved"),
    ]
    assert "! variance explosion, since step 41 (layer1)" in summary.headline()
    assert [alert.layer for alert in summary.notes] == ["layer2"]


def test_an_incident_that_belongs_to_no_layer_draws_no_empty_table() -> None:
    summary = a_summary(an_alert(None, code="BN002", rule="sink-error", channels=()))
    screen = Screen()
    table = screen.table(summary)
    assert screen.lines[0] == "BatchNorm ! the batch variance exploded, since step 41 · epoch 3 · step 63"
    assert not any("γ" in line for line in table)


def test_nothing_is_shown_of_a_run_without_a_step() -> None:
    screen, window = Screen(), a_window()
    summary = empty(window.layers, (), {})
    screen.sink(summary).close(summary)
    assert screen.text == ""


def test_verbose_tells_what_was_not_checked_what_could_not_be_recovered_and_the_notes() -> None:
    window = a_window("a", "b")
    recovery = window.recovery.clone()
    recovery[:, 1] = Recovery.NO_BUFFERS
    alerts = [an_alert("a"), an_alert("b", state="cleared"), an_alert("a", INFO, code="BN9", message="only a note")]
    summary = summarize(
        replace(window, recovery=recovery),
        alerts,
        {"small-batch": "needs activation samples"},
        incidents=[an_incident(alerts[0], of_layers=2), an_incident(alerts[1], index=1, of_layers=2)],
    )
    text = {verbose: "\n".join(Screen(200).table(summary, verbose=verbose)) for verbose in (False, True)}
    for shown in text.values():
        assert "fix: lower the peak learning rate" in shown
        assert "✓ resolved: the batch variance exploded · last seen at step 49" in shown
    hidden = ("not checked: small-batch: needs activation samples", "no batch σ²: b: the layer keeps no", "only a note")
    evidence = "! warning BN106 variance-explosion · a · channels 3, 5 · since step 41"
    assert all(part in text[True] for part in (*hidden, evidence))
    assert not any(part in text[False] for part in (*hidden, evidence))
    assert "--verbose shows 1 note and 1 rule not checked" in text[False]


def test_two_incidents_of_the_monitor_itself_are_both_told_in_full() -> None:
    screen = Screen(200)
    sink = screen.sink(a_summary())
    for i, who in enumerate(("sink A", "sink B")):
        alert = an_alert(None, code="BN002", rule="sink-error", channels=())
        sink.incident(an_incident(alert, index=i, detail=f"{who} raised OSError"))
    assert screen.text.count("fix:") == 2
    assert "→" not in screen.text.replace("2.3 → 8.1", "")


@pytest.mark.parametrize("terminal", [False, True])
def test_escape_codes_are_for_terminals_only(terminal: bool) -> None:
    screen, summary = Screen(terminal=terminal), a_summary(an_alert(severity=ERROR))
    sink = screen.sink(summary)
    sink.incident(summary.incidents[0])
    sink.epoch(summary)
    sink.close(summary)
    assert ("\x1b[" in screen.text) is terminal


def told(screen: Screen, name: str) -> None:
    """Everything that the console and the report say of an incident in a layer with a name."""
    alert = an_alert(name, message=f"see {name}", advice=f"mend {name}")
    incident = an_incident(alert, detail=f"see {name}")
    summary = summarize(a_window(name, "other"), [alert], {}, epoch=3, incidents=[incident])
    sink = screen.sink(summary, verbosity="full")
    for change in (incident, replace(incident, severity=ERROR), replace(incident, state="resolved")):
        sink.incident(change)
    sink.epoch(summary)
    sink.close(summary)
    screen.console.print(final_summary(summary, verbose=True))


@pytest.mark.parametrize("name", ["[red]x[/red]", "a[0].bn", "[/]", ":warning:.bn", "[link=x]y"])
def test_markup_in_a_layer_name_is_shown_as_it_is(name: str) -> None:
    screen = Screen(200)
    told(screen, name)
    assert f"since step 41 · {name}\n" in screen.text
    assert f"see {name}" in screen.text
    assert f"mend {name}" in screen.text
    assert f"({name})" in screen.text
    assert any(line.startswith(name) for line in screen.lines)


@pytest.mark.parametrize("terminal", [False, True])
def test_control_characters_in_a_name_are_shown_and_not_obeyed(terminal: bool) -> None:
    screen = Screen(200, terminal=terminal)
    told(screen, "bn\x1b[2J\x07\x9b31m\u202e")
    assert not [part for part in ("\x1b[2J", "\x07", "\x9b", "\u202e") if part in screen.text]
    assert r"bn\x1b[2J\x07\x9b31m\u202e" in screen.text


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_no_line_is_longer_than_the_terminal_and_the_essentials_are_still_there(width: int) -> None:
    screen = Screen(width, terminal=True)
    names = (LONG, *(f"{LONG}.{i}" for i in range(5)))
    alerts = [
        an_alert(LONG, ERROR, layers=names),
        an_alert(names[2], WARNING, rule="stale-statistics", code="BN304", channels=tuple(range(500))),
    ]
    summary = a_summary(*alerts, names=names, **{"small-batch": "needs activation samples"})
    sink = screen.sink(summary, verbosity="full")
    for incident in summary.incidents:
        sink.incident(incident)
    sink.epoch(summary)
    sink.close(summary)
    plain = re.sub(r"\x1b\[[\d;]*m", "", screen.text)
    assert max(rich.console.Text(line).cell_len for line in plain.splitlines()) <= width
    flat = re.sub(r"\s+", "", plain)
    assert "✗thebatchvarianceexploded" in flat
    assert "fix:lowerthepeaklearningrateorclipgradients:Trainer(gradient_clip_val=1.0)" in flat


def test_a_line_in_a_file_is_in_one_piece() -> None:
    screen, summary = Screen(40), a_summary(an_alert(LONG, ERROR), names=(LONG, "other"))
    screen.sink(summary).incident(summary.incidents[0])
    assert screen.lines == str(summary.incidents[0]).splitlines()


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_terminal_that_lacks_our_signs_gets_something_rather_than_an_error(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    monkeypatch.setattr(rich, "_console", rich.console.Console(file=file, width=100))
    sink, summary = Console(), a_summary(an_alert())
    sink.open(Run(layers=summary.layers))
    sink.incident(summary.incidents[0])
    sink.epoch(summary)
    sink.close(summary)
    assert b"the batch variance exploded" in raw.getvalue()
    assert b"loss 2.3 > 8.1" in raw.getvalue()


def test_console_prints_to_whatever_stdout_is_at_the_time(capsys: pytest.CaptureFixture[str]) -> None:
    sink, summary = Console(), a_summary()
    sink.open(Run(layers=summary.layers))
    sink.epoch(summary)
    assert "12 layers" in capsys.readouterr().out


def test_beside_a_tqdm_bar_the_text_goes_through_tqdm(capsys: pytest.CaptureFixture[str]) -> None:
    class TQDMProgressBar:
        pass

    class Trainer:
        progress_bar_callback = TQDMProgressBar()

    tqdm = pytest.importorskip("tqdm")
    written: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tqdm.tqdm, "write", written.append)
        beside_bar(Trainer())("all is well")
    assert written == ["all is well"]
    assert capsys.readouterr().out == ""
    Trainer.progress_bar_callback = None  # type: ignore[assignment]
    beside_bar(Trainer())("all is well")
    assert capsys.readouterr().out == "all is well\n"


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ((), ""),
        ((math.nan, math.nan), ""),
        ((0.0, -1.0, math.inf), ""),
        ((5.0,), "▁"),
        ((1.0, math.nan, 100.0), "▁ █"),
        ((1.0,) * 100, "▁" * 12),
    ],
)
def test_sparkline_draws_what_can_be_drawn(values: tuple[float, ...], line: str) -> None:
    assert sparkline(values) == line


def test_sparkline_keeps_the_spike_when_it_has_to_thin_out() -> None:
    values = [1.0] * 64
    values[30] = 1e6
    line = sparkline(tuple(values))
    assert len(line) <= 12
    assert line.count("█") == 1


# -- JSON lines --------------------------------------------------------------------------------------------------------


def test_json_lines_holds_one_event_a_line(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "alerts.jsonl"
    sink = JsonLines(path)
    sink.open(Run(layers=a_window().layers))
    assert path.read_text() == ""
    events = [
        an_alert("µ|[x]\n"),
        an_alert(severity=ERROR, value=math.inf, threshold=math.nan),
        an_alert(severity=ERROR, state="cleared"),
    ]
    for alert in events:
        sink.alert(alert)
        assert path.read_bytes().endswith(b"\n"), "a line is on disk when alert() returns"

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    lines = path.read_text(encoding="utf-8").splitlines()
    read = [json.loads(line, parse_constant=refuse) for line in lines]
    assert [(r["state"], r["severity"]) for r in read] == [("open", "warning"), ("open", "error"), ("cleared", "error")]
    assert [repr(Alert.from_dict(r)) for r in read] == [repr(e) for e in events]


def test_json_lines_goes_on_in_a_file_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "alerts.jsonl"
    for _ in range(2):
        sink = JsonLines(str(path))
        sink.open(Run(layers=a_window().layers))
        sink.alert(an_alert())
    assert len(path.read_text().splitlines()) == 2


# -- TensorBoard -------------------------------------------------------------------------------------------------------


def events(log_dir: Path) -> Iterator[tuple[int, Any]]:
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    for path in sorted(log_dir.glob("events.out.tfevents.*")):
        for raw in RawEventFileLoader(str(path)).Load():
            event = Event.FromString(raw)
            for value in event.summary.value:
                yield event.step, value


def frames(log_dir: Path) -> list[tuple[int, Any]]:
    return [(step, value) for step, value in events(log_dir) if value.tag.startswith("bnmonitor/frame/")]


def table_of(value: Any) -> torch.Tensor:
    shape = [d.size for d in value.tensor.tensor_shape.dim]
    return torch.frombuffer(bytearray(value.tensor.tensor_content), dtype=torch.float32).reshape(shape)


def test_tensorboard_frame_holds_the_whole_table_and_describes_itself_once(tmp_path: Path) -> None:
    from tensorboard.compat.proto import summary_pb2, types_pb2

    summary = a_summary(an_alert())
    sink = TensorBoard(tmp_path)
    sink.open(Run(layers=summary.layers))
    for step in (63, 73):
        sink.frame(replace(summary, step=step))
    sink.close(summary)
    found = frames(tmp_path)
    assert [step for step, _ in found] == [63, 73]
    first, second = (value for _, value in found)
    assert first.tag == second.tag
    assert json.loads(first.metadata.plugin_data.content) == {
        "v": 2,
        "layers": list(summary.layers.names),
        "channels": list(summary.layers.channels),
        "metrics": list(METRICS),
    }
    assert second.metadata.plugin_data.content == b""
    assert first.metadata.data_class == second.metadata.data_class == summary_pb2.DATA_CLASS_TENSOR
    assert first.tensor.dtype == types_pb2.DT_FLOAT
    assert torch.equal(table_of(first).nan_to_num(-7), summary.table.nan_to_num(-7))


def test_tensorboard_scalars_have_the_grouped_tags_and_the_values_of_the_table(tmp_path: Path) -> None:
    summary = explained(a_summary(an_alert("layer1", ERROR), an_alert("layer2"), an_alert("layer2", code="BN304")))
    sink = TensorBoard(tmp_path)
    sink.open(Run(layers=summary.layers))
    sink.frame(summary)
    sink.close(summary)
    scalars = {v.tag: v.simple_value for _, v in events(tmp_path) if v.HasField("simple_value")}
    assert scalars["bnmonitor/health"] == 20.0
    assert scalars["bnmonitor/errors"] == 1.0
    assert scalars["bnmonitor/warnings"] == 2.0
    assert scalars["bn_health/layer1"] == 20.0
    assert scalars["bn_health/layer3"] == 100.0
    assert scalars["bn_batch_var/layer3"] == pytest.approx(1.0, rel=1e-4)
    assert scalars["bn_running_gap/layer3"] == 0.0
    assert {tag.split("/")[0] for tag in scalars} == {"bnmonitor", "bn_health", "bn_batch_var", "bn_running_gap"}


def test_tensorboard_writes_no_scalar_where_there_is_no_number(tmp_path: Path) -> None:
    window = a_window("a", "b")
    variance = window.variance.clone()
    variance[:, 0] = math.nan
    summary = summarize(replace(window, variance=variance), [], {})
    sink = TensorBoard(tmp_path)
    sink.open(Run(layers=summary.layers))
    sink.frame(summary)
    sink.close(summary)
    tags = {v.tag for _, v in events(tmp_path)}
    assert "bn_batch_var/b" in tags
    assert "bn_batch_var/a" not in tags


def test_tensorboard_alerts_are_one_cumulative_list_that_markdown_cannot_break(tmp_path: Path) -> None:
    summary = a_summary()
    sink = TensorBoard(tmp_path)
    sink.open(Run(layers=summary.layers))
    sink.alert(an_alert("a|b", message="<b>bad</b> | *worse*\nworst"))
    sink.alert(an_alert("layer2", first_step=45, last_step=55))
    sink.alert(an_alert("layer2", first_step=45, last_step=55, state="cleared"))
    for who in ("sink A", "sink B"):
        sink.alert(an_alert(None, code="BN002", channels=(), message=f"{who} raised", first_step=50))
    sink.close(summary)
    texts = [
        (step, value.tensor.string_val[0].decode())
        for step, value in events(tmp_path)
        if value.tag.startswith("bnmonitor/alerts/")
    ]
    assert [step for step, _ in texts] == [49, 55, 55, 55, 55]
    rows = [row for row in texts[-1][1].splitlines() if row]
    assert len(rows) == 4
    assert all(row.startswith("- BN") for row in rows)
    assert all(sign not in texts[-1][1] for sign in ("<b>", "|", "*"))
    assert "cleared, last seen at step 55" in texts[-1][1]
    assert "sink A" in texts[-1][1]
    assert "sink B" in texts[-1][1]


def test_tensorboard_has_few_charts_of_its_own_and_leaves_a_layout_of_the_user_alone(tmp_path: Path) -> None:
    def layouts(path: Path) -> list[bytes]:
        return [v.tensor.string_val[0] for _, v in events(path) if v.tag == "custom_scalars__config__"]

    summary = a_summary(names=tuple(f"layer{i}" for i in range(20)))
    for _ in range(2):  # a resumed run has one already
        sink = TensorBoard(tmp_path / "own")
        sink.open(Run(layers=summary.layers))
        sink.frame(summary)
        sink.close(summary)
    [found] = layouts(tmp_path / "own")
    charts = layout_pb2.Layout.FromString(found).category[0].chart
    assert 3 <= len(charts) <= 12
    tags = [v.tag for _, v in events(tmp_path / "own")]
    for pattern in (tag for chart in charts for tag in chart.multiline.tag):
        assert any(re.fullmatch(pattern, tag) for tag in tags), pattern
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "events.out.tfevents.1.a").write_bytes(b"custom_scalars__config__")
    sink = TensorBoard(tmp_path / "theirs")
    sink.open(Run(layers=summary.layers))
    sink.close(summary)
    [mine] = [p for p in (tmp_path / "theirs").glob("*tfevents*") if p.name != "events.out.tfevents.1.a"]
    assert b"custom_scalars" not in mine.read_bytes()


def test_tensorboard_gives_other_layers_another_tag_and_the_old_ones_their_old_tag(tmp_path: Path) -> None:
    one, other = a_summary(names=("a", "b")), a_summary(names=("a", "b", "c"))
    sink = TensorBoard(tmp_path)
    sink.open(Run(layers=one.layers))
    for summary in (one, other, one):
        sink.frame(summary)
    sink.close(one)
    tags = [value.tag for _, value in frames(tmp_path)]
    assert tags[0] == tags[2] != tags[1]
    assert all(re.fullmatch(r"bnmonitor/frame/[0-9a-f]{8}", tag) for tag in tags)
    first = {}
    for _, value in frames(tmp_path):
        if about := value.metadata.plugin_data.content:
            first.setdefault(value.tag, json.loads(about)["layers"])
    assert first == {tags[0]: ["a", "b"], tags[1]: ["a", "b", "c"]}


def test_tensorboard_can_be_opened_again_after_it_was_closed(tmp_path: Path) -> None:
    summary = a_summary()
    sink = TensorBoard(tmp_path)
    for step in (1, 2):
        sink.open(Run(layers=summary.layers))
        sink.frame(replace(summary, step=step))
        sink.close(summary)
    assert [step for step, _ in frames(tmp_path)] == [1, 2]


def test_tensorboard_without_a_directory_or_a_logger_writes_nothing(tmp_path: Path) -> None:
    class CSVLogger:
        @property
        def experiment(self) -> object:
            raise AssertionError("not a TensorBoard logger: hands off")

    summary = a_summary()
    sink = TensorBoard()
    sink.open(Run(layers=summary.layers, loggers=[CSVLogger()]))
    sink.alert(an_alert())
    sink.frame(summary)
    sink.epoch(summary)
    sink.close(summary)
    assert list(tmp_path.iterdir()) == []


# -- other loggers -----------------------------------------------------------------------------------------------------


def test_csv_logger_gets_the_numbers_of_the_whole_model(tmp_path: Path) -> None:
    from pytorch_lightning.loggers import CSVLogger

    logger = CSVLogger(str(tmp_path), flush_logs_every_n_steps=1)
    summary = explained(a_summary(an_alert("layer1", ERROR), an_alert("layer2"), an_alert("layer3", INFO)))
    sink = Loggers()
    sink.open(Run(layers=summary.layers, loggers=[logger]))
    sink.frame(summary)
    logger.save()
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        [row] = csv.DictReader(file)
    found = {name: float(value) for name, value in row.items()}
    assert {name: value for name, value in found.items() if "/" not in name or name.startswith("bnmonitor/")} == {
        "step": 63.0,
        "bnmonitor/health": 20.0,
        "bnmonitor/errors": 1.0,
        "bnmonitor/warnings": 1.0,
    }
    layers = {name.partition("/")[2] for name in found if name.startswith("bn_")}
    assert layers == {"layer1", "layer2"}
    assert {name.partition("/")[0] for name in found if name.startswith("bn_")} == {s.tag for s in LAYER if s.tag}


def test_loggers_that_were_given_win_over_those_of_the_trainer() -> None:
    class Logger:
        def __init__(self) -> None:
            self.steps: list[int] = []

        def log_metrics(self, metrics: dict[str, float], step: int) -> None:
            self.steps.append(step)

    summary, mine, theirs = a_summary(), Logger(), Logger()
    sink = Loggers([mine])
    sink.open(Run(layers=summary.layers, loggers=[theirs]))
    sink.frame(summary)
    assert (mine.steps, theirs.steps) == ([63], [])


def test_broken_tensorboard_logger_does_not_keep_the_numbers_from_the_others() -> None:
    class TensorBoardLogger:
        @property
        def experiment(self) -> object:
            raise OSError("no space left")

    class Logger:
        steps: ClassVar[list[int]] = []

        def log_metrics(self, metrics: dict[str, float], step: int) -> None:
            self.steps.append(step)

    summary = a_summary()
    sink = Loggers()
    sink.open(Run(layers=summary.layers, loggers=[TensorBoardLogger(), Logger()]))
    sink.frame(summary)
    assert Logger.steps == [63]


# -- through the monitor -----------------------------------------------------------------------------------------------


def train(monitor: Monitor, model: nn.Module, steps: int) -> None:
    for _ in range(steps):
        model(torch.randn(32, 3)).sum().backward()
        monitor.step()


def a_model(momentum: float = 0.1) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4, momentum=momentum), nn.ReLU(), nn.Linear(4, 2))


def test_sinks_are_told_in_order_what_happens() -> None:
    sink, model = RecordingSink(), a_model(0.99)
    with Monitor(model, sinks=[sink], log_every_n_steps=4, on_alert="log") as monitor:
        train(monitor, model, 8)
        monitor.end_epoch(0)
    assert [what for what, _ in sink.events] == ["open", "alert", "frame", "frame", "frame", "epoch", "close"]
    kinds = {"open": Run, "alert": Alert, "frame": Summary, "epoch": Summary, "close": Summary}
    assert all(isinstance(argument, kinds[what]) for what, argument in sink.events)
    assert [s.step for what, s in sink.events if what == "frame"] == [0, 3, 7]
    assert next(s.epoch for what, s in sink.events if what == "epoch") == 0


def test_sinks_open_and_close_with_every_start() -> None:
    sink, model = RecordingSink(), a_model()
    monitor = Monitor(model, sinks=[sink], log_every_n_steps=0)
    for _ in range(2):
        with monitor:
            train(monitor, model, 1)
        monitor.close()
    assert [what for what, _ in sink.events] == ["open", "close"] * 2


def test_monitor_writes_its_history_to_log_dir_and_nothing_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = a_model()
        with Monitor(model) as monitor:
            train(monitor, model, 2)
        assert list(tmp_path.iterdir()) == []
        with Monitor(model, log_dir=tmp_path / "run") as monitor:
            train(monitor, model, 2)
    assert [step for step, _ in frames(tmp_path / "run")] == [0, 1], "the first step, and the state at the end"


def test_frame_in_a_step_with_a_check_shows_the_window_that_was_judged_and_makes_none_of_its_own() -> None:
    model = nn.Sequential(nn.Linear(4, 200), nn.BatchNorm1d(200), nn.ReLU(), nn.Linear(200, 2))
    sink, rule = RecordingSink(), Windows()
    with Monitor(model, sinks=[sink], rules=[rule], check_every_n_steps=5, log_every_n_steps=10) as monitor:
        for step in range(1, 21):
            model(torch.randn(16, 4)).sum().backward()
            monitor.step()
            if step in (10, 20):
                frame = sink.events[-1][1]
                assert frame.window is rule.seen[-1]
                torch.testing.assert_close(frame.table, monitor.summary().table, equal_nan=True)
    assert [window.steps[-1] for window in rule.seen] == [0, 4, 9, 14, 19]
    assert [summary.step for what, summary in sink.events if what == "frame"] == [0, 9, 19]


def test_the_last_frame_shows_what_a_last_evaluation_has_changed() -> None:
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sink = RecordingSink()
    with Monitor(model, optimizer=optimizer, sinks=[sink], on_alert="log", log_every_n_steps=20) as monitor:
        for _ in range(40):
            optimizer.zero_grad()
            model(torch.randn(32, 4)).square().mean().backward()
            optimizer.step()
            monitor.step()
        with monitor.evaluation(), torch.no_grad():
            model(torch.randn(32, 4))  # in training mode
    assert "BN406" in {alert.code for alert in monitor.alerts if alert.severity is Severity.WARNING}
    frames = [summary for what, summary in sink.events if what == "frame"]
    assert [frame.step for frame in frames] == [0, 19, 39, 39]
    assert [frame.rows[0].health for frame in frames[2:]] == [100.0, 60.0]
