"""How much the tab does when it is opened and while the pointer moves: requests and drawings, counted."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.histories import resnet, write
from tests.tensorboard_plugin.test_browser import (
    CHROMIUM,
    MODULE,
    READY,
    Tab,
    browser,
    entry_point,
    playwright,
    tensorboard,
)

__all__ = ["browser", "entry_point"]
assert playwright
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium to look at the tab with")

COUNTS = """
  const counts = window.counts = { rows: 0, most: 0, canvas: 0, around: 0 };
  const paint = CanvasRenderingContext2D.prototype.putImageData;
  CanvasRenderingContext2D.prototype.putImageData = function (...given) {
    counts.rows += 1;
    return paint.apply(this, given);
  };
  // Every drawing begins with an empty canvas.
  const clear = CanvasRenderingContext2D.prototype.clearRect;
  const cleared = new Map();
  CanvasRenderingContext2D.prototype.clearRect = function (...given) {
    counts.canvas += 1;
    cleared.set(this, (cleared.get(this) ?? 0) + 1);
    counts.most = Math.max(counts.most, cleared.get(this));
    return clear.apply(this, given);
  };
  const tick = () => {
    cleared.clear();
    requestAnimationFrame(tick);
  };
  requestAnimationFrame(tick);
"""
"""Counts drawings of rows, drawings of any canvas, and the most drawings of one canvas between two frames."""

AROUND = """() => {
  const seen = new MutationObserver((changes) => (window.counts.around += changes.length));
  for (const name of [".panel", ".map-bar", ".answer", ".bar .field", ".scale"])
    for (const el of document.querySelectorAll(name))
      seen.observe(el, { childList: true, characterData: true, subtree: true });
}"""
"""Counts changes of what stands around the maps."""


@pytest.fixture(scope="module")
def address(entry_point: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    logs = tmp_path_factory.mktemp("logs")
    write(logs / "run", resnet(53), range(0, 20_000, 10), sick=(20,), channels=4, detailed=(20,))
    with tensorboard(entry_point, "--logdir", str(logs)) as address:
        yield address


@pytest.fixture
def tab(browser: Any, address: str) -> Iterator[Tab]:
    tab = Tab(browser, address)
    tab.page.add_init_script(COUNTS)
    yield tab
    tab.page.close()
    tab.check()


def numbers(requests: list[str]) -> list[str]:
    """The requests for numbers."""
    own = [url for url in requests if "/data/plugin/bnmonitor/" in url]
    return [url for url in own if not url.split("?")[0].endswith((".js", ".css"))]


def test_the_first_picture_takes_one_request_and_draws_each_canvas_once(tab: Tab) -> None:
    frame = tab.open(run="run")
    counts = frame.evaluate("window.counts")
    assert len(numbers(tab.requests)) == 1
    assert len([url for url in tab.requests if "/data/plugin/bnmonitor/" in url]) == 4, "and three for the page"
    assert counts["rows"] == 1
    assert counts["canvas"] == 4, "rows, marks and axis of the map, and the curves"


def moved(tab: Tab, frame: Any, act: Callable[[int], object]) -> dict[str, int]:
    """Do something sixty times; gives what was counted meanwhile, and the requests for numbers."""
    frame.evaluate("() => Object.keys(window.counts).forEach((name) => (window.counts[name] = 0))")
    before = len(numbers(tab.requests))
    for n in range(60):
        act(n)
    frame.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    counts: dict[str, int] = frame.evaluate("window.counts")
    return {**counts, "requests": len(numbers(tab.requests)) - before}


def test_the_pointer_redraws_what_it_moves_once_a_frame_and_nothing_else(tab: Tab) -> None:
    frame = tab.open(run="run")
    frame.evaluate(AROUND)
    box, mouse = frame.locator(".maps .over").first.bounding_box(), tab.page.mouse
    curves = frame.locator(".strip canvas").first.bounding_box()
    left, top = box["x"] + 250, box["y"] + 20
    places = {
        "map": lambda n: mouse.move(left + 7 * n, top + 3 * n),
        "curves": lambda n: mouse.move(left + 7 * n, curves["y"] + 30),
    }
    for place, move in places.items():
        for pressed in (False, True):
            move(0)
            if pressed:
                mouse.down()
            counts = moved(tab, frame, move)
            move(0)
            if pressed:
                mouse.up()
            what = f"{'dragging' if pressed else 'moving'} over the {place}: {counts}"
            assert counts["canvas"] > 0, what
            assert (counts["rows"], counts["requests"], counts["around"]) == (0, 0, 0), what
            assert counts["most"] == 1, what


def test_a_moving_range_draws_the_rows_once_a_frame_and_asks_when_it_rests(tab: Tab) -> None:
    frame = tab.open(run="run", **{"from": 5_000, "to": 9_000})
    frame.evaluate(AROUND)
    wheel = """(n) => document.querySelector(".maps .map").dispatchEvent(
      new WheelEvent("wheel", { deltaX: n % 2 ? 40 : 30, bubbles: true, cancelable: true }))"""
    # Three turns of the wheel within one frame, without the time between them in which it would rest.
    turns = f"""() => new Promise((done) => {{
      let left = 20;
      const turn = () => {{
        for (let n = 0; n < 3; n++) ({wheel})(n);
        left -= 1;
        if (left) requestAnimationFrame(turn);
        else requestAnimationFrame(() => requestAnimationFrame(() => done(window.counts)));
      }};
      turn();
    }})"""
    frame.evaluate("() => Object.keys(window.counts).forEach((name) => (window.counts[name] = 0))")
    asked = len(numbers(tab.requests))
    frame.evaluate(f"delete {READY}")
    counts = frame.evaluate(turns)
    assert 1 <= counts["rows"] <= 22, "three turns in a frame are one drawing"
    assert counts["around"] == 0
    frame.wait_for_function(READY)
    tab.page.wait_for_timeout(200)
    requests = numbers(tab.requests)[asked:]
    assert len(requests) <= 2, "where it begins, and where it rests"
    last = int(re.findall(r"p\.bnmonitor\.to=(\d+)", tab.words())[0])
    assert last > 15_000, "no turn was lost"
    assert f"to%3D{last}" in requests[-1]


CURVE = """
async ([range, dash]) => {
  MODULE
  const { trace } = await module("curve");
  const steps = Array.from({ length: 5000 }, (_, i) => i * 200);
  const values = Float32Array.from(steps, (s) => (s % 70_000 ? Math.sin(s / 1e4) : NaN));
  const x = (step) => ((step - range[0]) / (range[1] - range[0])) * 700 + 100;
  const drawn = [];
  const recorder = {
    setLineDash() {}, beginPath() {}, stroke() {},
    moveTo: (...to) => drawn.push(["move", ...to]), lineTo: (...to) => drawn.push(["line", ...to]),
  };
  trace(recorder, steps, values, x, (v) => v, false, dash, 100, 800);
  // What every segment of the curve shows within the plot.
  const wanted = [];
  for (let i = 1; i < steps.length; i++) {
    if (Number.isNaN(values[i]) || Number.isNaN(values[i - 1])) continue;
    const [a, b] = [x(steps[i - 1]), x(steps[i])];
    if (b < 100 || a > 800) continue;
    const at = (place) => values[i - 1] + ((place - a) / (b - a)) * (values[i] - values[i - 1]);
    const [from, to] = [Math.max(100, a), Math.min(800, b)];
    wanted.push([from, at(from), to, at(to)]);
  }
  const found = [];
  drawn.forEach(([kind, ...to], i) => kind === "line" && found.push([...drawn[i - 1].slice(1), ...to]));
  return [found, wanted];
}
"""


@pytest.mark.parametrize("range_", [[0, 1_000_000], [300_100, 300_900], [300_450, 300_470], [349_900, 350_500]])
def test_a_curve_is_drawn_within_the_plot_only(tab: Tab, range_: list[int]) -> None:
    found, wanted = tab.open(run="run").evaluate(CURVE.replace("MODULE", MODULE), [range_, [5, 3]])
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


ALIGNED = """
async (numbers) => {
  MODULE
  return (await module("text")).aligned(numbers);
}
"""


def test_numbers_above_each_other_have_their_points_in_one_line(tab: Tab) -> None:
    frame = tab.open(run="run")

    def aligned(*numbers: str) -> list[str]:
        found: list[str] = frame.evaluate(ALIGNED.replace("MODULE", MODULE), list(numbers))
        return found

    digit, point = "\u2007", "\u2008"
    assert aligned("20", "94.3", "−7.25") == [f"20{2 * digit}{point}", f"94.3{digit}", "−7.25"]
    assert aligned("20", "7") == ["20", "7"]
    assert aligned("20 %", "7.5 %") == [f"20{digit}{point} %", "7.5 %"]
    assert aligned("20", "1.2e−9", "not known") == ["20", "1.2e−9", "not known"]


def test_a_zoom_leaves_the_maps_where_they_are(tab: Tab) -> None:
    frame = tab.open(run="run")
    top = "document.querySelector('.maps').getBoundingClientRect().top"
    before = frame.evaluate(top)
    zoom = (
        "document.querySelector('.maps .map').dispatchEvent(new KeyboardEvent('keydown', { key: '+', bubbles: true }))"
    )
    tab.drawn(lambda: frame.evaluate(zoom))
    assert frame.locator(".range").is_visible()
    assert frame.evaluate(top) == before
