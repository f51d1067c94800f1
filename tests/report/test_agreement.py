"""Every reader shows the same severity for each layer, and a run without incidents shows no amber and no red."""

from __future__ import annotations

import colorsys
import io
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rich.console
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bnmonitor import Monitor
from bnmonitor.display import health_table
from bnmonitor.history.run import open_history
from bnmonitor.report.compare import compare
from bnmonitor.report.page import page
from bnmonitor.report.read import Report, read
from bnmonitor.results import Severity, health_severity
from bnmonitor.sinks import TensorBoard
from tests.histories import Writer, an_alert, an_incident, course
from tests.report.test_page import block, content_of
from tests.tensorboard_plugin.test_server import Asked

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NAMES = tuple(f"layer{i}" for i in range(6))
STEPS = range(0, 200, 10)
MARKS = {Severity.ERROR: "✗", Severity.WARNING: "!"}
HEALTHS = (5.0, 20.0, 40.0, 60.0, 65.0, 99.0)
"""What a frame may have recorded before its incidents were known, or after they were over."""

Spec = tuple[int, frozenset[int], bool, bool]
"""First step, layers, whether it is an error, whether it is over."""

SPECS = st.lists(
    st.tuples(
        st.integers(0, 19).map(lambda i: STEPS[i]),
        st.frozensets(st.integers(0, len(NAMES) - 1), min_size=1, max_size=4),
        st.booleans(),
        st.booleans(),
    ),
    max_size=4,
)
FIXED: dict[str, list[Spec]] = {
    "healthy": [],
    "warning": [(50, frozenset({1, 4}), False, False)],
    "error": [(120, frozenset({0, 1, 2}), True, False), (30, frozenset({2, 3}), False, False)],
    "resolved": [(20, frozenset({5}), True, True)],
    "mixed": [
        (0, frozenset({3}), False, False),
        (90, frozenset({3, 0}), True, True),
        (190, frozenset({5}), True, False),
    ],
}


def write(log_dir: Path, specs: list[Spec], health: np.ndarray[Any, Any]) -> None:
    """A run with some incidents; health is recorded as it may be."""
    table = course(len(NAMES), len(STEPS))
    table[:, :, 0] = health
    with Writer(log_dir, NAMES, 4) as writer:
        writer.frames(STEPS, table)
        writer.course(STEPS, [1.0] * len(STEPS), [[0.1]] * len(STEPS))
        writer.alert(an_alert(NAMES[0], 3, code="BN801", severity="info", layers=list(NAMES)))
        for index, (first, layers, is_error, over) in enumerate(specs):
            names = [NAMES[i] for i in sorted(layers)]
            alert = an_alert(
                names[0],
                first,
                layers=names,
                code=f"BN10{index}",
                severity="error" if is_error else "warning",
                state="cleared" if over else "open",
                last_step=min(first + 30, STEPS[-2]) if over else STEPS[-1],
            )
            writer.incident(an_incident(alert, index=index, of_layers=len(NAMES), title=f"fault {index}"), STEPS[-1])


def recorded(seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).choice(HEALTHS, (len(STEPS), len(NAMES)))


def truth(report: Report) -> dict[str, Severity]:
    """The worst severity that is open in each layer at the last step."""
    found = dict.fromkeys((row.name for row in report.rows), Severity.INFO)
    for incident in report.incidents:
        for name in incident.layers if incident.state == "open" else ():
            found[name] = max(found[name], incident.severity)
    return found


def in_table(report: Report) -> dict[str, Severity]:
    """What the marks in the table of the terminal say; only of layers that have a line of their own."""
    file = io.StringIO()
    rich.console.Console(file=file, width=200).print(health_table(report, rows=100, well=True))
    lines = {line.split()[0]: line for line in file.getvalue().splitlines() if line.strip()}
    found = {}
    for row in report.rows:
        if row.name in lines:
            found[row.name] = next((s for s, mark in MARKS.items() if f" {mark} " in lines[row.name]), Severity.INFO)
    return found


def of_health(values: Mapping[str, float]) -> dict[str, Severity]:
    return {name: health_severity(float(value)) for name, value in values.items()}


def surfaces(log_dir: Path) -> dict[str, dict[str, Severity]]:
    """What each reader shows of each layer at the last step."""
    history = open_history(log_dir)
    [report] = read(log_dir)
    frames = history.run(".").frames
    content, numbers = content_of(page(history, "."))
    of_page = block(content["layers"], numbers)[content["layers"]["sheets"].index("health"), :, -1]
    _, of_tab = Asked(log_dir).slice("/slice", run=".", statistic="health")
    ill = {row.name for row in report.ill()}
    return {
        "report": {row.name: health_severity(row.health) for row in report.rows},
        "frames": of_health(dict(zip(frames.layers, frames.of("health")[:, -1].tolist(), strict=True))),
        "page": of_health(dict(zip(frames.layers, of_page.tolist(), strict=True))),
        "tab": of_health(dict(zip(frames.layers, of_tab[:, -1].tolist(), strict=True))),
        "ill": {name: max(s, Severity.WARNING) if name in ill else Severity.INFO for name, s in truth(report).items()},
        "table": in_table(report),
    }


def disagreeing(log_dir: Path) -> list[str]:
    """The readers that show something else than the open incidents; all but the table show every layer."""
    [report] = read(log_dir)
    expected = truth(report)
    wrong = [
        name
        for name, shown in surfaces(log_dir).items()
        if shown != {layer: expected[layer] for layer in (shown if name == "table" else expected)}
    ]
    worst = max((incident.severity for incident in report.open_incidents()), default=None)
    if report.headline().split()[1] != ("✓" if worst is None else MARKS[worst]):
        wrong.append("headline")
    history = open_history(log_dir)
    same = compare((history, "."), (history, "."))
    if [i.index for i in same.stayed] != [i.index for i in report.incidents]:
        wrong.append("comparison")
    return wrong


@settings(max_examples=25, deadline=None)
@given(specs=SPECS, seed=st.integers(0, 99))
def test_every_reader_shows_the_open_incidents_and_nothing_else(specs: list[Spec], seed: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        write(Path(place), specs, recorded(seed))
        assert disagreeing(Path(place)) == []


@settings(max_examples=25, deadline=None)
@given(specs=SPECS, seed=st.integers(0, 99))
def test_the_map_shows_a_severity_at_the_steps_of_its_incidents(specs: list[Spec], seed: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        write(Path(place), specs, recorded(seed))
        run = open_history(place).run(".")
        expected = np.zeros((len(NAMES), len(STEPS)), int)
        for incident in run.incidents:
            last = STEPS[-1] if incident.state == "open" else incident.last_step
            for name in incident.layers:
                at = slice(incident.first_step // 10, last // 10 + 1)
                row = expected[NAMES.index(name)]
                row[at] = np.maximum(row[at], int(incident.severity))
        shown = [[int(health_severity(float(v))) for v in row] for row in run.frames.of("health")]
        np.testing.assert_array_equal(np.array(shown), np.maximum(expected, int(Severity.INFO)))


def train(log_dir: Path, rate: float, *, momentum: float = 0.1, scale: float = 1.0) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16, momentum=momentum), nn.ReLU(), nn.Linear(16, 3))
    model.append(nn.BatchNorm1d(3))
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    sinks = [TensorBoard(log_dir)]
    with Monitor(model, optimizer=optimizer, log_every_n_steps=7, on_alert="log", sinks=sinks) as monitor:
        for step in range(120):
            loss = (model(scale * torch.randn(32, 4) + (step > 60) * (scale - 1)) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(loss=loss)


@pytest.mark.parametrize(
    "given", [{"rate": 0.05}, {"rate": 1e4}, {"rate": 0.05, "momentum": 0.99}, {"rate": 0.05, "scale": 9.0}]
)
def test_every_reader_agrees_on_a_run_that_was_trained(tmp_path: Path, given: dict[str, float]) -> None:
    train(tmp_path, **given)
    assert disagreeing(tmp_path) == []


# -- in a browser ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no chromium to look at the page with; on Debian: apt install chromium")
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def opened(browser: Any, log_dir: Path, file: Path, **options: Any) -> Any:
    file.write_text(page(open_history(log_dir), "."), encoding="utf-8")
    view = browser.new_page(viewport={"width": 1280, "height": 800}, **options)
    view.goto(file.as_uri())
    view.wait_for_function("document.documentElement.dataset.drawn", timeout=120_000)
    return view


LAST_COLUMN = """() => {
  const canvas = document.querySelector('.maps .map-scroll canvas'), rows = ROWS, context = canvas.getContext('2d');
  const ramp = getComputedStyle(document.documentElement).getPropertyValue('--health').trim().split(/\\s+/);
  const at = (i) => context.getImageData(canvas.width - 3, Math.round(canvas.height * (i + 0.4) / rows), 1, 1).data;
  const hex = (c) => '#' + [c[0], c[1], c[2]].map((v) => v.toString(16).padStart(2, '0')).join('');
  return Array.from({ length: rows }, (_, i) => ({ [ramp[0]]: 30, [ramp[1]]: 20 })[hex(at(i))] ?? 10);
}""".replace("ROWS", str(len(NAMES)))

CLASSES = """(selector) => [...document.querySelectorAll(selector)].map(({ classList: c }) =>
  [c.contains('error') ? 30 : c.contains('warning') ? 20 : 10, !c.contains('resolved')])"""


@pytest.mark.parametrize("name", FIXED)
def test_what_a_browser_draws_agrees_with_the_incidents(browser: Any, tmp_path: Path, name: str) -> None:
    write(tmp_path / "run", FIXED[name], recorded(len(name)))
    [report] = read(tmp_path / "run")
    view = opened(browser, tmp_path / "run", tmp_path / "page.html")
    assert view.evaluate(LAST_COLUMN) == [int(severity) for severity in truth(report).values()]
    worst = report.open_incidents()[:1]
    verdict = view.locator(".verdict").first
    assert verdict.inner_text().split()[0] == (MARKS[worst[0].severity] if worst else "✓")
    assert all(incident.title in verdict.inner_text() for incident in worst)
    incidents = sorted((int(i.severity), i.state == "open") for i in report.incidents)
    for selector in (".incidents .incident", ".bar-incident", "article.said"):
        assert sorted(map(tuple, view.evaluate(CLASSES, selector))) == incidents, selector
    present = {int(i.severity) for i in report.incidents}
    known = [key for key in view.locator(".bar .band-key").all_inner_texts() if key in ("✗ error", "! warning")]
    assert known == [f"{MARKS[s]} {s}" for s in (Severity.ERROR, Severity.WARNING) if int(s) in present]
    view.close()


def alarming(shot: bytes) -> int:
    """Count the pixels in a picture that are amber or red."""
    image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
    pixels = image.open(io.BytesIO(shot)).convert("RGB")
    found = 0
    for amount, (red, green, blue) in pixels.getcolors(pixels.width * pixels.height):
        hue, saturation, value = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)
        degrees = 360 * hue
        if saturation > 0.3 and value > 0.25 and (degrees <= 46 or degrees >= 340):
            found += amount
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_run_without_incidents_has_no_amber_and_no_red_pixel(browser: Any, tmp_path: Path, scheme: str) -> None:
    near = np.linspace(60, 75, len(STEPS) * len(NAMES)).reshape(len(STEPS), len(NAMES))
    write(tmp_path / "near", [], near)
    train(tmp_path / "trained", 0.05)
    assert not read(tmp_path / "trained")[0].incidents
    for name in ("near", "trained"):
        view = opened(browser, tmp_path / name, tmp_path / "page.html", color_scheme=scheme)
        for statistic in ("health", "batch_var", "mean_lag", "var_gap", "dead"):
            view.evaluate(f"delete {DRAWN}")
            view.locator("#bn-statistic").select_option(statistic)
            view.wait_for_function(DRAWN, timeout=120_000)
            assert alarming(view.screenshot(full_page=True)) == 0, (name, statistic)
        view.evaluate(f"delete {DRAWN}")
        view.locator(".now button").first.click()
        view.wait_for_function(DRAWN, timeout=120_000)
        assert alarming(view.screenshot(full_page=True)) == 0, (name, "a layer")
        view.close()
    write(tmp_path / "ill", FIXED["warning"], near)  # the same course, with an incident
    view = opened(browser, tmp_path / "ill", tmp_path / "page.html", color_scheme=scheme)
    assert alarming(view.screenshot(full_page=True)) > 10_000, "it would see them"
    view.close()


DRAWN = "document.documentElement.dataset.drawn"
