"""How the terminal looks: letter by letter at fixed widths, and beside real progress bars.

The expected texts are in ``golden/``. After a change that is meant, write them anew and read the difference::

    make golden && git diff tests/sinks/golden
"""

from __future__ import annotations

import io
import math
import os
import re
import sys
import threading
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import rich
import rich.console
import rich.live
import torch
from rich.cells import cell_len

from bnmonitor import Alert, BatchNormMonitor, Incident, Monitor, Severity, Summary
from bnmonitor.display import show
from bnmonitor.lightning.progress_bar import beside_bar, inside_bar
from bnmonitor.sinks import Console, JsonLines, Run, TensorBoard
from bnmonitor.summary import empty, summarize
from bnmonitor.testing import make_window
from bnmonitor.window import Recovery, Window

GOLDEN = Path(__file__).parent / "golden"
WIDTHS = (60, 80, 120, 200)
INFO, WARNING, ERROR = Severity.INFO, Severity.WARNING, Severity.ERROR

EXPLOSION = Alert(
    code="BN106",
    rule="variance-explosion",
    severity=ERROR,
    layer="backbone.layer3.0.bn1",
    layers=("backbone.layer3.0.bn1",),
    channels=(3, 17, 40, 41, 42, 43, 44, 45),
    first_step=41,
    last_step=63,
    state="open",
    value=250.0,
    threshold=100.0,
    message="batch variance of 8 channels is up to 210 times what it was (limit 100); lr = 0.8; 6 more layers affected",
    advice="lower the peak learning rate or clip gradients: Trainer(gradient_clip_val=1.0)",
    url="https://somewhere/BN106.md",
)
STALE = replace(
    EXPLOSION,
    code="BN304",
    rule="stale-statistics",
    severity=WARNING,
    layer="head.bn",
    layers=("head.bn", "backbone.stem.bn"),
    channels=(),
    first_step=12,
    message="running statistics lag behind the batches by 0.3 standard deviations",
    advice="recalibrate before you evaluate: bnmonitor.remedies.recalibrate(model, loader)",
)
MOMENTUM = replace(
    STALE,
    code="BN301",
    rule="momentum-convention",
    severity=INFO,
    first_step=0,
    message="momentum is 0.01: [PyTorch's](#) is one minus Keras's",
    advice="none, if it is meant",
    url="",
)
SKIPPED = {
    "skipped-step-poisoning": "needs a gradient scaler, which training in fp16 has (scaler=)",
    "unsynchronized-ranks": "needs several processes that train together, and there is one",
    "rank-divergence": "needs several processes that train together, and there is one",
}


def a_window(variance: float = 1.0) -> Window:
    """Six layers over 64 steps; the variance of one rises for the last 22 of them."""
    names = ("backbone.stem.bn", *(f"backbone.layer{i}.0.bn1" for i in range(1, 5)), "head.bn")
    window = make_window(channels=(64,) * 6)
    course = torch.ones(64, 6)
    course[42:, 3] = torch.logspace(0, math.log10(variance), 22)
    return replace(window, layers=replace(window.layers, names=names), variance=course)


def an_incident(*evidence: Alert, **changes: Any) -> Incident:
    """The incident of some alerts, the first of which leads it."""
    lead = evidence[0]
    given: dict[str, Any] = {
        "severity": max(alert.severity for alert in evidence),
        "title": "the batch variance exploded",
        "detail": "batch variance ×3.4e4 in 22 steps; loss 2.3 → 8.1e5",
        "layers": tuple(dict.fromkeys(name for alert in evidence for name in alert.layers)),
        "of_layers": 6,
        "evidence": evidence,
    }
    return replace(Incident.of(lead), **{**given, **changes})


LAG = an_incident(
    STALE, title="running statistics lag behind the batches", detail="running gap 0.3σ, always on one side", index=1
)
BANG = an_incident(EXPLOSION, severity=WARNING, of_layers=0)
LOST = an_incident(
    EXPLOSION, replace(STALE, first_step=50, layers=("backbone.layer4.0.bn1", "head.bn")), last_step=1170
)


def ill() -> Summary:
    """An open incident, a resolved one, a note; rules that were not checked, a layer without batch statistics."""
    window = a_window(34000.0)
    recovery = window.recovery.clone()
    recovery[:, 5] = Recovery.NO_BUFFERS
    gone = replace(STALE, state="cleared", last_step=30)
    incidents = [LOST, replace(LAG, state="resolved", last_step=30, evidence=(gone,))]
    alerts = [MOMENTUM, gone, *LOST.evidence]
    return summarize(replace(window, recovery=recovery), alerts, SKIPPED, epoch=3, incidents=incidents)


def healthy() -> Summary:
    return summarize(a_window(), [], {}, epoch=3)


class Screen:
    """A terminal of a fixed width, and the word in its progress bar."""

    def __init__(self, width: int, **options: Any) -> None:
        self.file = io.StringIO()
        given = {"force_terminal": True, "color_system": None, **options}
        self.console = rich.console.Console(file=self.file, width=width, **given)
        self.words: list[str] = []

    def open(self, console: Console, *, bar: bool = True) -> Console:
        history = TensorBoard("unused")
        history.history = ["runs/version_0"]
        console.open(
            Run(
                layers=healthy().layers,
                emit=lambda renderable: show(renderable, self.console),
                status=self.words.append if bar else None,
                sinks=[console, history],
            )
        )
        return console

    @property
    def text(self) -> str:
        return "".join(f"{line.rstrip()}\n" for line in self.file.getvalue().splitlines())


def a_fit(console: Console, *summaries: Summary) -> None:
    """What a sink is told during a fit of an epoch for each summary, at the end of which an incident was revised."""
    for i, summary in enumerate(summaries):
        console.frame(summary)
        if i == 1 and summary.open_incidents():
            for incident in (BANG, LAG, LOST, replace(LAG, state="resolved", last_step=30)):
                for alert in incident.evidence:
                    console.alert(alert)
                console.incident(incident)
        console.epoch(summary)
    console.close(summaries[-1])


SCENES: dict[str, Callable[[Screen], None]] = {
    "healthy": lambda screen: a_fit(screen.open(Console()), healthy()),
    "ill": lambda screen: a_fit(screen.open(Console()), healthy(), ill(), ill()),
    "quiet": lambda screen: a_fit(screen.open(Console(verbosity="quiet")), healthy(), ill(), ill()),
    "full": lambda screen: a_fit(screen.open(Console(verbosity="full", rows=3), bar=False), healthy(), ill()),
}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scene", SCENES)
def test_it_looks_letter_by_letter_as_it_should(scene: str, width: int) -> None:
    screen = Screen(width)
    SCENES[scene](screen)
    assert max(map(cell_len, screen.text.splitlines())) <= width
    file = GOLDEN / f"{scene}-{width}.txt"
    if os.environ.get("GOLDEN") == "write":
        file.write_text(screen.text, encoding="utf-8")
    assert screen.text == file.read_text(encoding="utf-8"), "if it is meant: make golden"


def test_every_golden_text_has_its_scene() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == {f"{scene}-{width}" for scene in SCENES for width in WIDTHS}


def test_the_word_in_the_bar_counts_what_is_open() -> None:
    screen = Screen(80)
    console = screen.open(Console())
    console.frame(healthy())
    for incident in (LAG, BANG, LOST, replace(LAG, severity=ERROR), replace(LOST, state="resolved")):
        console.incident(incident)
    assert screen.words == ["✓", "!1", "!2", "✗1 !1", "✗2", "✗1"]
    console.frame(ill())
    assert screen.words[-1] == "✗1", "what the summary says counts, as after a resume"


def test_an_incident_is_three_lines_and_each_change_of_it_is_one() -> None:
    screen = Screen(200)
    console = screen.open(Console())
    revised = replace(LOST, title="learning rate 3 is too high", cause="learning-rate-too-high")
    resolved = replace(revised, state="resolved")
    for incident, lines in ((BANG, 3), (LOST, 1), (revised, 1), (resolved, 1), (revised, 1)):
        before = screen.text.count("\n")
        console.incident(incident)
        assert screen.text.count("\n") - before == lines
    assert screen.text.splitlines() == [
        "! the batch variance exploded · since step 41 · backbone.layer3.0.bn1",
        "  batch variance ×3.4e4 in 22 steps; loss 2.3 → 8.1e5",
        f"  fix: {LOST.advice} · bnmonitor explain BN106",
        "! → ✗ the batch variance exploded · error at step 1 170 · batch variance ×3.4e4 in 22 steps; loss 2.3 → 8.1e5",
        f"✗ learning rate 3 is too high (shown before as: the batch variance exploded) · fix: {LOST.advice}",
        "✓ resolved: learning rate 3 is too high · last seen at step 1 170",
        "✗ again: learning rate 3 is too high · since step 41 · 3 of 6 layers, first backbone.layer3.0.bn1",
    ]


def test_an_incident_that_gets_worse_under_another_name_says_what_it_was_and_the_new_fix() -> None:
    screen = Screen(200)
    console = screen.open(Console())
    console.incident(BANG)
    console.incident(replace(LOST, title="learning rate 3 is too high", cause="learning-rate-too-high"))
    assert screen.text.splitlines()[3:] == [
        f"! → ✗ learning rate 3 is too high (shown before as: the batch variance exploded) · fix: {LOST.advice}"
    ]


def test_an_alert_prints_nothing_by_itself() -> None:
    screen = Screen(80)
    console = screen.open(Console(verbosity="full"))
    for alert in (MOMENTUM, STALE, EXPLOSION, replace(EXPLOSION, state="cleared")):
        console.alert(alert)
    assert screen.text == ""


def test_an_ill_run_of_three_epochs_takes_fifteen_lines_and_a_healthy_one_a_line_an_epoch_and_one() -> None:
    for width in WIDTHS:
        screen = Screen(width)
        a_fit(screen.open(Console()), *[healthy()] * 3)
        assert screen.text.count("\n") == 4
    for width in WIDTHS[1:]:
        screen = Screen(width)
        console = screen.open(Console())
        console.incident(BANG)
        console.incident(LOST)
        for _ in range(3):
            console.epoch(ill())
        console.close(ill())
        assert screen.text.count("\n") <= 15


def test_many_incidents_are_counted_at_the_end() -> None:
    every = [replace(LAG, index=i, first_step=10 + i) for i in range(12)]
    screen = Screen(120)
    screen.open(Console(rows=3)).close(summarize(a_window(), [STALE], {}, incidents=every))
    assert re.findall(r"since step (\d+)", screen.text) == ["10", "11", "12"]
    assert "9 more incidents\n" in screen.text


YELLOW_OR_RED = re.compile(r"\x1b\[[\d;]*?(?:3[13]|9[13])(?:;|m)")


@pytest.mark.parametrize("verbosity", ["normal", "full"])
def test_without_an_open_incident_nothing_is_yellow_or_red(verbosity: Any) -> None:
    note, gone = [MOMENTUM, replace(STALE, state="cleared")], [replace(LAG, state="resolved")]
    lagging = replace(a_window(), batch_mean=a_window().batch_mean + 0.099)
    for window in (a_window(), lagging):
        screen = Screen(120, color_system="standard")
        calm = summarize(window, note, SKIPPED, epoch=3, incidents=gone)
        a_fit(screen.open(Console(verbosity=verbosity)), calm)
        assert not YELLOW_OR_RED.search(screen.text)
    for severity, code in ((WARNING, "33"), (ERROR, "31")):
        screen = Screen(120, color_system="standard")
        found = [replace(BANG, severity=severity)]
        screen.open(Console(verbosity=verbosity)).epoch(summarize(a_window(), [EXPLOSION], {}, incidents=found))
        assert set(re.findall(r"\x1b\[1;(3\d)m", screen.text)) == {code}


def test_in_full_without_a_bar_each_frame_is_a_line_and_with_one_it_is_none() -> None:
    for bar, lines in ((False, 1), (True, 0)):
        screen = Screen(80)
        screen.open(Console(verbosity="full"), bar=bar).frame(healthy())
        assert screen.text.count("\n") == lines


def test_quiet_says_nothing_of_a_healthy_run() -> None:
    screen = Screen(80)
    a_fit(screen.open(Console(verbosity="quiet")), healthy(), summarize(a_window(), [MOMENTUM], SKIPPED, epoch=4))
    assert (screen.text, screen.words) == ("", [])


def test_full_shows_every_layer_at_the_end() -> None:
    screen = Screen(80)
    screen.open(Console(verbosity="full", rows=2)).close(healthy())
    assert screen.text.count(" ✓  ") == 6


def test_no_rows_is_no_table() -> None:
    screen = Screen(80)
    screen.open(Console(verbosity="full", rows=0)).epoch(ill())
    assert screen.text.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"verbosity": "ful"},
            r"^verbosity must be 'quiet', 'normal', 'full', got 'ful'; did you mean 'full'\?$",
        ),
        ({"verbosity": None}, "^verbosity must be .*, got None$"),
        ({"rows": -1}, "^rows must be an int of at least 0, .*, got -1$"),
        ({"rows": True}, "^rows must be .*, got True$"),
    ],
)
def test_an_argument_that_is_none_gets_a_sentence(given: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Console(**given)


def test_no_color_leaves_the_words_and_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    colors = re.compile(r"\x1b\[[\d;]*?(?:3[0-7]|9[0-7]|38)[\d;]*m")
    shown = {}
    for no_color in ("", "1"):
        monkeypatch.setenv("NO_COLOR", no_color)
        screen = Screen(80, force_terminal=True, color_system="truecolor")
        a_fit(screen.open(Console()), healthy(), ill())
        shown[no_color] = screen.text
    assert colors.search(shown[""])
    assert not colors.search(shown["1"])
    plain = [re.sub(r"\x1b\[[\d;]*m", "", text) for text in shown.values()]
    assert plain[0] == plain[1]


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is displayed as HTML, in a notebook as rich takes it to be."""
    displayed: list[str] = []
    module = types.ModuleType("IPython.display")
    module.display = lambda renderable: displayed.append(renderable._repr_mimebundle_([], [])["text/html"])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr(rich, "_console", rich.console.Console(force_jupyter=True))
    return displayed


def test_in_a_notebook_it_is_displayed_and_markup_stays_text(notebook: list[str]) -> None:
    console = Console()
    console.open(Run(layers=healthy().layers))
    console.incident(replace(BANG, layer="<b>[red]x[/red]"))
    shown = "".join(notebook)
    assert "the batch variance exploded" in shown
    assert "&lt;b&gt;[red]x[/red]" in shown
    assert "<b>" not in shown


def test_beside_a_bar_of_widgets_nothing_is_written_to_standard_output(
    notebook: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    class TQDMProgressBar:
        pass

    beside_bar(_Trainer(TQDMProgressBar()))("x" * 300)
    (shown,) = notebook
    assert capsys.readouterr().out == ""
    assert max(map(len, re.findall("x+", shown))) == 100, "a line that is wider makes the cell scroll"


def test_a_summary_shows_itself_as_the_table(notebook: list[str]) -> None:
    summary = ill()
    summary._ipython_display_()  # type: ignore[no-untyped-call, unused-ignore]
    (shown,) = notebook
    assert "variance-explosion" in shown
    assert "head.bn" in shown, "layers that are healthy are shown, too"
    screen = Screen(100)
    screen.console.print(summary)
    assert "variance-explosion" in screen.text
    assert repr(summary) == f"<Summary: {summary.headline()}>"


def test_the_end_says_how_to_open_the_history_and_only_if_there_is_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rich, "_console", rich.console.Console(width=200))
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))
    for name, sinks in {
        "my run": None,
        "other": [Console(), JsonLines(tmp_path / "a"), TensorBoard(tmp_path / "else")],
        "none": [Console()],
    }.items():
        with Monitor(model, sinks=sinks, log_dir=None if name == "none" else tmp_path / name) as monitor:
            model(torch.randn(16, 4)).sum().backward()
            monitor.step()
        shown = capsys.readouterr().out
        place = {"my run": "'my run'", "other": "else", "none": ""}[name]
        assert shown.endswith(f" · step 0 · bnmonitor report {place}\n" if place else " · 0 incidents · step 0\n")


def test_without_a_step_there_is_nothing_to_sum_up() -> None:
    screen = Screen(80)
    screen.open(Console(verbosity="full")).close(empty(healthy().layers, (), SKIPPED))
    assert screen.text == ""


class _Trainer:
    def __init__(self, bar: Any) -> None:
        self.progress_bar_callback, self.progress_bar_metrics = bar, {"loss": 1.0}


def test_the_word_joins_the_metrics_of_a_bar_in_signs_that_it_can_write(monkeypatch: pytest.MonkeyPatch) -> None:
    for encoding, word in (("utf-8", "✗1"), ("ascii", "x1")):
        file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(rich, "_console", rich.console.Console(file=file))
        trainer = _Trainer(object())
        status = inside_bar(trainer)
        assert status is not None
        status("✗1")
        assert list(trainer.progress_bar_metrics.items()) == [("bn", word), ("loss", 1.0)], "what is first is not cut"
    assert inside_bar(_Trainer(None)) is None
    assert inside_bar(_Trainer(types.SimpleNamespace(is_disabled=True))) is None


def test_rich_draws_no_bar_amid_a_print(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rich, "_console", rich.console.Console(file=io.StringIO(), force_terminal=True, width=60))
    live = rich.live.Live("a bar", console=rich.get_console(), auto_refresh=False)
    order: list[str] = []
    come = threading.Event()

    class Asked:
        """A lock that says who has to wait for it."""

        def __init__(self, lock: Any) -> None:
            self.lock = lock

        def __enter__(self) -> None:
            if not self.lock.acquire(blocking=False):
                order.append("bar waits")
                come.set()
                self.lock.acquire()

        def __exit__(self, *_: object) -> None:
            self.lock.release()

    def draw() -> None:
        live.refresh()
        order.append("bar drawn")
        come.set()

    class Slow:
        def __rich_console__(self, *_: object) -> Iterator[str]:
            thread.start()
            assert come.wait(120)
            order.append("printed")
            yield "printed"

    live._lock = Asked(live._lock)  # type: ignore[assignment]
    thread = threading.Thread(target=draw, daemon=True)
    with live:
        trainer = _Trainer(types.SimpleNamespace(progress=types.SimpleNamespace(live=live)))
        beside_bar(trainer)(Slow())  # type: ignore[arg-type]
        thread.join(120)
    assert order == ["bar waits", "printed", "bar drawn"]


# -- in a fit of Lightning ---------------------------------------------------------------------------------------------


def a_lightning_fit(root: Path, bar: str, momentum: float, capsys: pytest.CaptureFixture[str]) -> tuple[Any, str]:
    """Fit for two epochs, and return the Trainer with what was printed by us; the output is no terminal here."""
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import RichProgressBar, TQDMProgressBar

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8, momentum=momentum))

        def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
            loss: torch.Tensor = self.net(batch).square().mean()
            self.log("loss", loss, prog_bar=True)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    torch.manual_seed(0)
    bars = {"rich": [RichProgressBar()], "tqdm": [TQDMProgressBar()], "none": []}[bar]
    loader = torch.utils.data.DataLoader(torch.randn(640, 4), batch_size=32)
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        default_root_dir=root,
        enable_progress_bar=bar != "none",
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[*bars, BatchNormMonitor(sinks=[Console()])],
    )
    capsys.readouterr()
    trainer.fit(Module(), loader)
    said = capsys.readouterr().out
    return trainer, "".join(f"{line}\n" for line in said.splitlines() if "it/s" not in line and "━" not in line)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bar", ["rich", "tqdm", "none"])
def test_lightnings_bars_show_the_word_and_what_is_printed_beside_them_is_the_same(
    bar: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rich, "_console", None)
    monkeypatch.setenv("COLUMNS", "100")
    for momentum, word in ((0.1, "✓"), (0.99, "✗1")):
        trainer, said = a_lightning_fit(tmp_path, bar, momentum, capsys)
        metrics = trainer.progress_bar_metrics
        assert metrics.get("bn") == (None if bar == "none" else word)
        assert set(metrics) - {"bn"} == {"loss"}
        if bar == "none":
            _, again = a_lightning_fit(tmp_path, bar, momentum, capsys)
            assert said == again, "the same run prints the same lines"
        assert "\x1b" not in said
        ours = [line for line in said.splitlines() if line.startswith(("BatchNorm", "✗"))]
        assert [line.split(" ·")[0] for line in ours] == (
            ["BatchNorm ✓ 1 layer, 8 channels healthy"] * 3
            if momentum == 0.1
            else [
                "✗ momentum is too large",
                *["BatchNorm ✗ momentum is too large, since step 0 (net.1)"] * 2,
                "✗ momentum is too large",
            ]
        )
