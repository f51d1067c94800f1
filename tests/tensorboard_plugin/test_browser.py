"""The BatchNorm tab in a real TensorBoard and a real browser."""

from __future__ import annotations

import csv
import io
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from tests.histories import HOSTILE, METRICS, Writer, course, recorded, resnet, write
from tests.report.test_agreement import alarming
from tests.tensorboard_plugin.test_server import a_box

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no chromium to look at the tab with; on Debian: apt install chromium"
)
ROOT = Path(__file__).parents[2]
FIVE = ("backbone.0.1", "backbone.1.1", "backbone.2.1", "backbone.3.1", "head.bn")
STRANGE = 'run <b>"x"&\'é'
AXE = next(
    (path.read_text() for root in sys.path if (path := Path(root, "axe_playwright_python", "axe.min.js")).is_file()),
    None,
)
"""The program that looks for what keeps people out."""
READY = "document.documentElement.dataset.drawn"


@pytest.fixture(scope="module")
def entry_point(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pip leaves of an installed package that TensorBoard looks at, whatever is installed here."""
    place = tmp_path_factory.mktemp("site")
    info = place / "bnmonitor-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bnmonitor\nVersion: 0\n")
    (info / "entry_points.txt").write_text(
        "[tensorboard_plugins]\nbnmonitor = bnmonitor.tensorboard_plugin.loader:BatchNormLoader\n"
    )
    return place


@contextmanager
def tensorboard(entry_point: Path, *arguments: str, prefix: str = "") -> Iterator[str]:
    """Run TensorBoard with the plugin; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(entry_point), str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "tensorboard.main", "--host", "127.0.0.1", "--port", str(port), *arguments]
    more = ["--path_prefix", prefix] if prefix else []
    process = subprocess.Popen(
        [*command, *more, "--reload_interval", "1"],
        env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    address = f"http://127.0.0.1:{port}{prefix}/"
    try:
        wait_for(lambda: answers(address + "data/plugins_listing"), process)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stderr is not None
        process.stderr.close()


def answers(address: str) -> bool:
    try:
        return bool(urllib.request.urlopen(address, timeout=5).status == 200)
    except OSError:
        return False


def wait_for(true: Callable[[], bool], process: subprocess.Popen[bytes] | None = None, seconds: float = 300) -> None:
    ends = time.monotonic() + seconds
    while not true():
        if time.monotonic() > ends or (process is not None and process.poll() is not None):
            said = process.stderr.read1().decode() if process is not None and process.stderr is not None else ""
            pytest.fail(f"waited in vain; TensorBoard says: {said}")
        time.sleep(0.1)


@pytest.fixture(scope="module")
def logdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    logs = tmp_path_factory.mktemp("logs")
    write(logs / "five" / "sick", FIVE, range(0, 400, 5), sick=(2,), channels=16)
    recorded(logs / "five" / "sick", FIVE, channels=16, steps=400)
    write(logs / "five" / "fixed", FIVE, range(0, 400, 5), channels=16)
    write(logs / "old", FIVE, range(0, 400, 5), sick=(2,), channels=16, incidents=False)
    write(logs / "many", resnet(500), range(0, 10_000, 50), sick=(200,), metrics=METRICS[:4], detailed=())
    write(logs / STRANGE, HOSTILE, range(0, 100, 5), sick=(0, 3), channels=4)
    write(logs / "cut", FIVE, range(0, 400, 5), channels=16)
    [file] = (logs / "cut").glob("*tfevents*")
    file.write_bytes(file.read_bytes()[: -file.stat().st_size // 3])
    old, new = ("stem.bn", "old.bn"), ("stem.bn", "new.bn", "newer.bn")
    for names, steps in ((old, range(0, 100, 10)), (new, range(60, 200, 10))):
        with Writer(logs / "resumed", names, 4) as writer:
            writer.frames(steps, course(len(names), len(steps)))
    a_box(logs / "boxed")
    write(logs / "boxed", ("layer0", "layer1"), range(0, 400, 5), sick=(1,), channels=4)
    return logs


@pytest.fixture(scope="module")
def fast(entry_point: Path, logdir: Path) -> Iterator[str]:
    with tensorboard(entry_point, "--logdir", str(logdir)) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


class Tab:
    """The tab in a page, and everything that went wrong in it."""

    def __init__(self, browser: Any, address: str) -> None:
        self.address = address
        self.page = browser.new_page(viewport={"width": 1280, "height": 800})
        self.trouble: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def _said(self, message: Any) -> None:
        where = message.location.get("url", "")
        # TensorBoard's own: a font that its page asks for outside of its prefix, and two copies of a library.
        own = re.search(r"\.woff2?$|/index\.js\?_file_hash|icon_bundle|three", where) or "Three.js" in message.text
        if message.type in ("error", "warning") and not own:
            self.trouble.append(f"{message.text} ({where})")

    def open(self, **words: object) -> Any:
        hash_ = "".join(f"&p.bnmonitor.{name}={quote(str(word), safe='')}" for name, word in words.items())
        self.page.goto("about:blank")
        self.page.goto(f"{self.address}?darkMode=false#bnmonitor{hash_}")
        self.frame = self.page.wait_for_selector("iframe", timeout=120_000).content_frame()
        self.frame.wait_for_url("**/plugin_entry*", timeout=120_000)
        self.frame.wait_for_function(READY, timeout=120_000)
        return self.frame

    def drawn(self, action: Callable[[], object]) -> None:
        """Do something, and wait until it is drawn."""
        self.frame.evaluate(f"delete {READY}")
        action()
        self.frame.wait_for_function(READY, timeout=120_000)

    def words(self) -> str:
        return str(self.page.evaluate("decodeURIComponent(location.hash)"))

    def check(self) -> None:
        origin = re.match(r"https?://[^/]+", self.address)
        assert origin is not None
        assert self.trouble == []
        outside = [url for url in self.requests if not url.startswith((origin[0], "data:", "blob:", "about:"))]
        assert outside == []


@pytest.fixture
def tab(browser: Any, fast: str) -> Iterator[Tab]:
    tab = Tab(browser, fast)
    yield tab
    tab.page.close()
    tab.check()


def text(frame: Any, selector: str) -> str:
    return str(frame.locator(selector).first.inner_text())


# -- what is shown -----------------------------------------------------------------------------------------------------


def test_the_overview_leads_to_layer_and_channel_in_two_clicks(tab: Tab) -> None:
    frame = tab.open(run="five/sick")
    assert text(frame, ".verdict") == "✗ variance explosion, since step 265 (backbone.2.1) · step 395"
    box = frame.locator(".maps .over").first.bounding_box()
    scroll = frame.locator(".maps .map-scroll").first.bounding_box()
    tab.drawn(lambda: tab.page.mouse.click(box["x"] + box["width"] - 30, scroll["y"] + scroll["height"] * 0.5))
    assert text(frame, ".panel h2").startswith("backbone.")
    assert frame.locator(".layer-view .chart canvas").count() == 7
    channels = frame.locator(".layer-view .over").first
    channels.scroll_into_view_if_needed()
    place = channels.bounding_box()
    tab.drawn(lambda: tab.page.mouse.click(place["x"] + place["width"] / 2, place["y"] + 5))
    assert "running mean of channel 0" in text(frame, ".layer-view .legend-lines")
    assert "p.bnmonitor.channel=0" in tab.words()


def test_hovering_shows_exact_values_and_the_incidents_there(tab: Tab) -> None:
    frame = tab.open(run="five/sick", statistic="batch_var")
    box = frame.locator(".maps .over").first.bounding_box()
    tab.page.mouse.move(box["x"] + box["width"] - 8, box["y"] + box["height"] * 0.53)
    tip = frame.locator(".maps .tip").first
    lines = tip.inner_text().splitlines()
    assert lines[0] == "backbone.2.1"
    wrote = course(5, 80, sick=(2,))[-1, 2, METRICS.index("batch_var")]
    assert lines[1].replace("\u202f", "") == f"batch variance {wrote:.0f}"
    assert "step 395" in lines[2]
    assert lines[3] == "✗ variance explosion, since step 265"


def test_an_incident_is_shown_in_full_with_its_evidence_and_a_safe_link(tab: Tab) -> None:
    frame = tab.open(run="five/sick")
    tab.drawn(lambda: frame.locator(".incidents .incident.error").click())
    card = text(frame, ".card")
    assert card.splitlines()[0] == "✗ variance explosion"
    assert "Fix lower the peak learning rate" in card
    assert "measured" not in card, "the evidence is folded"
    frame.locator(".card summary").click()
    evidence = text(frame, ".card .evidence")
    assert "BN106 variance-explosion since step 265" in evidence
    assert "21\u202f000, limit 10\u202f000" in evidence
    assert frame.locator(".card a").get_attribute("href").endswith("BN106.md")
    assert text(frame, ".card .picture figcaption") == "batch variance of backbone.2.1"
    at_first = course(5, 80, sick=(2,))[53, 2, METRICS.index("batch_var")]
    assert float(text(frame, ".card .picture .key b")) == pytest.approx(at_first, rel=0.01)
    frame.locator(".card .copy").click()
    frame.wait_for_function("document.querySelector('.card .copy').textContent === 'Copied'")
    tab.drawn(lambda: frame.get_by_role("button", name="What it means").click())
    assert text(frame, ".manual h2") == "BN106 variance-explosion"
    assert "page=variance-explosion" in tab.words()
    tab.drawn(lambda: tab.page.go_back())
    assert frame.locator(".manual").count() == 0
    tab.drawn(lambda: tab.page.go_forward())
    assert frame.locator(".manual pre").count() >= 2
    tab.drawn(lambda: tab.page.keyboard.press("Escape"))
    assert text(frame, ".panel h2") == "backbone.2.1"
    assert "incident=1" in tab.words()
    tab.drawn(lambda: frame.locator(".panel-head .link").click())
    assert frame.locator(".card").count() == 0
    tab.drawn(lambda: frame.locator(".timeline .bar-incident.warning").click())
    assert "stale statistics" in text(frame, ".card")
    assert text(frame, ".card .picture figcaption").startswith("running-versus-batch gap of the mean of head.bn")
    assert "incident=0" in tab.words()
    tab.drawn(lambda: frame.locator(".card .link").first.click())
    assert text(frame, ".panel h2") == "head.bn"


def test_loss_and_learning_rate_are_drawn_on_the_axis_of_the_map(tab: Tab) -> None:
    frame = tab.open(run="five/sick")
    words = "document.querySelector('.strip canvas').getAttribute('aria-label')"
    assert frame.evaluate(words) == "loss 0.139, lr 0.01, over the steps"
    frame = tab.open(run="five/sick", step=100)
    assert frame.evaluate(words) == "loss 1.11, lr 0.1, over the steps"
    width = "(s) => document.querySelector(s).getBoundingClientRect().width"
    assert frame.evaluate(width, ".strip canvas") == frame.evaluate(width, ".maps .map-scroll canvas")
    frame = tab.open(run="resumed")
    assert frame.locator(".strip").first.is_hidden(), "its course is not known"


def test_a_run_of_before_there_were_incidents_shows_its_alerts(tab: Tab) -> None:
    frame = tab.open(run="old")
    assert text(frame, ".verdict").startswith("✗ variance explosion, since step 265 (backbone.2.1)")
    assert frame.locator(".incidents .incident").count() == 2


@pytest.mark.parametrize("dark", [False, True])
def test_a_healthy_run_has_no_amber_and_no_red_pixel_in_the_tab(tab: Tab, dark: bool) -> None:
    for run, least, most in (("five/fixed", 0, 0), ("five/sick", 1000, math.inf)):
        frame = tab.open(run=run)
        frame.evaluate(f"document.documentElement.classList.toggle('dark', {str(dark).lower()})")
        tab.drawn(lambda frame=frame: frame.locator("#bn-statistic").select_option("health"))
        assert least <= alarming(frame.locator("body").screenshot()) <= most


def test_a_view_can_be_sent_as_an_address(tab: Tab) -> None:
    frame = tab.open(
        run="five/sick", compare="five/fixed", statistic="mean_lag", layer="head.bn", **{"from": 100, "to": 200}
    )
    assert [frame.locator(f"#bn-{name}").input_value() for name in ("run", "compare", "statistic")] == [
        "five/sick",
        "five/fixed",
        "mean_lag",
    ]
    assert frame.locator(".maps .map:visible").count() == 2
    assert [t.strip() for t in frame.locator(".run-title").all_inner_texts()] == ["five/sick", "five/fixed"]
    assert "steps 100 to 200" in text(frame, ".range")
    assert text(frame, ".panel h2") == "head.bn"
    tab.drawn(lambda: frame.locator("#bn-statistic").select_option("gamma"))
    assert "statistic=gamma" in tab.words()
    assert "from=100" in tab.words()


def test_all_runs_are_a_table_to_sort_to_filter_and_to_choose_from(tab: Tab) -> None:
    frame = tab.open(run="five/sick")
    tab.drawn(lambda: frame.get_by_role("button", name="Runs (8)").click())
    names = frame.locator(".runs-table td.run")
    every = ["boxed", "cut", "five/fixed", "five/sick", "many", "old", "resumed", STRANGE]
    assert sorted(names.all_inner_texts()) == sorted(every)
    tab.drawn(lambda: frame.get_by_role("button", name="verdict").click())
    assert frame.locator("th.verdict").get_attribute("aria-sort") == "descending"
    said = frame.locator(".runs-table td.verdict").all_inner_texts()
    assert [row[0] for row in said] == sorted((row[0] for row in said), key="✗!✓".index)
    row = frame.locator("tr", has=frame.get_by_role("button", name="five/sick", exact=True))
    cells = [" ".join(cell.split()) for cell in row.locator("td").all_inner_texts()]
    assert cells[1:4] == ["five/sick", "✗ variance explosion", "stale statistics 100"]
    assert cells[5:7] == ["0.139", "395"]
    assert row.locator("svg").get_attribute("aria-label") == "lowest health 20"
    tab.drawn(lambda: frame.locator("#bn-runs").fill("five/*"))
    assert names.all_inner_texts() == ["five/sick", "five/fixed"]
    tab.drawn(lambda: frame.get_by_label("choose five/sick").check())
    tab.drawn(lambda: frame.get_by_label("choose five/fixed").check())
    assert text(frame, ".overlay figcaption") == "health of backbone.2.1"
    assert frame.locator(".overlay .key b").count() == 2
    tab.drawn(lambda: frame.get_by_role("button", name="Difference").click())
    assert text(frame, ".run-title") == "five/fixed less five/sick"
    tab.drawn(lambda: frame.locator("#bn-statistic").select_option("batch_var"))
    box = frame.locator(".maps .over").first.bounding_box()
    tab.page.mouse.move(box["x"] + box["width"] - 8, box["y"] + box["height"] * 0.53)
    lines = frame.locator(".maps .tip").first.inner_text().splitlines()
    sick, fixed = (course(5, 80, sick=which)[-1, 2, METRICS.index("batch_var")] for which in ((2,), ()))
    assert lines[0] == "backbone.2.1"
    assert float(lines[1].split()[-1].replace("−", "-")) == pytest.approx(math.log10(fixed / sick), rel=0.01)
    tab.drawn(lambda: tab.page.go_back())
    tab.drawn(lambda: tab.page.go_back())
    assert frame.locator(".runs-table").is_visible()


def test_what_is_shown_can_be_taken_out(tab: Tab, tmp_path: Path) -> None:
    frame = tab.open(run="five/sick", statistic="batch_var")

    def saved(label: str) -> bytes:
        frame.locator(".menu summary").click()
        with tab.page.expect_download() as download:
            frame.get_by_role("button", name=label).click()
        download.value.save_as(tmp_path / "file")
        return (tmp_path / "file").read_bytes()

    rows = list(csv.reader(saved("CSV numbers").decode().splitlines()))
    assert [row[0] for row in rows] == ["layer", *FIVE]
    assert rows[0][-1] == "step 395"
    table = course(5, 80, sick=(2,))[:, :, METRICS.index("batch_var")].T
    assert np.array([row[1:] for row in rows[1:]], float) == pytest.approx(table, rel=1e-5)
    svg = saved("SVG picture").decode()
    ElementTree.fromstring(svg)
    assert "variance explosion" in svg
    png = Image.open(io.BytesIO(saved("PNG picture")))
    assert png.width == 2 * 1280
    assert alarming(saved("PNG picture")) > 1000
    tab.page.keyboard.press("?")
    assert frame.locator("dialog[open] kbd").count() > 5
    tab.page.keyboard.press("Escape")
    assert frame.locator("dialog[open]").count() == 0


@pytest.mark.skipif(AXE is None, reason="axe is not installed: pip install axe-playwright-python")
def test_axe_finds_nothing_that_keeps_people_out(tab: Tab) -> None:
    frame = tab.open(run="five/sick")
    frame.evaluate(AXE)
    only = "{runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice']}"
    look = f"axe.run(document, {only}).then((r) => r.violations.map((v) => [v.id, v.nodes[0].html]))"
    found = {"all incidents": frame.evaluate(look)}
    for part in ("incident=1&p.bnmonitor.layer=backbone.2.1", "page=BN106", "view=runs&p.bnmonitor.chosen=five%2Fsick"):
        hash_ = f"bnmonitor&p.bnmonitor.run=five%2Fsick&p.bnmonitor.{part}"
        tab.drawn(lambda hash_=hash_: tab.page.evaluate(f"location.hash = '{hash_}'"))
        for dark in ("false", "true"):
            frame.evaluate(f"document.documentElement.classList.toggle('dark', {dark})")
            found[f"{part} dark={dark}"] = frame.evaluate(look)
    assert {view: what for view, what in found.items() if what} == {}


def test_everything_can_be_reached_by_keyboard(tab: Tab) -> None:
    frame = tab.open(run="five/sick")
    frame.locator(".maps .map").first.focus()
    tab.drawn(lambda: tab.page.keyboard.press("ArrowLeft"))
    assert "step=390" in tab.words(), "a step can be chosen without a layer"
    tab.drawn(lambda: tab.page.keyboard.press("Escape"))
    for key in ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowLeft", "+"):
        tab.drawn(lambda key=key: tab.page.keyboard.press(key))
    assert text(frame, ".panel h2") == FIVE[1]
    assert frame.locator(".maps .unseen").first.inner_text().startswith(f"{FIVE[1]}, health ")
    assert "step=390" in tab.words()
    assert frame.locator(".range").is_visible()
    tab.drawn(lambda: tab.page.keyboard.press("Escape"))
    assert not frame.locator(".range").is_visible()
    tab.drawn(lambda: tab.page.keyboard.press("Escape"))
    assert text(frame, ".panel h2") == "Incidents"
    frame.locator(".maps .map").first.focus()
    for key, said in (
        ("Home", "group, unfolded. backbone · 4 layers"),
        ("Enter", "group, folded. backbone · 4 layers"),
    ):
        tab.drawn(lambda key=key: tab.page.keyboard.press(key))
        assert frame.locator(".maps .unseen").first.inner_text().startswith(said)
    assert "fold=-backbone" in tab.words()
    tab.page.keyboard.press("/")
    tab.drawn(lambda: tab.page.keyboard.type("HEAD"))
    assert text(frame, ".map-bar .shown") == "1 of 5"
    tab.drawn(lambda: tab.page.keyboard.press("Escape"))
    assert "filter" not in tab.words()


def test_dragging_zooms_and_a_double_click_goes_back(tab: Tab) -> None:
    frame = tab.open(run="five/sick")
    over = frame.locator(".maps .over").first.bounding_box()

    def drag() -> None:
        tab.page.mouse.move(over["x"] + over["width"] * 0.4, over["y"] + 40)
        tab.page.mouse.down()
        tab.page.mouse.move(over["x"] + over["width"] * 0.7, over["y"] + 60, steps=4)
        tab.page.mouse.up()

    tab.drawn(drag)
    first, last = map(int, re.findall(r"\d+", text(frame, ".range"))[:2])
    assert 90 < first < last < 280
    tab.drawn(lambda: tab.page.mouse.dblclick(over["x"] + over["width"] * 0.6, over["y"] + 50))
    assert not frame.locator(".range").is_visible()
    over = frame.locator(".strip canvas").first.bounding_box()
    tab.drawn(drag)
    assert [first, last] == list(map(int, re.findall(r"\d+", text(frame, ".range"))[:2])), (
        "the curves have the same axis"
    )


def test_the_black_box_opens_at_full_resolution(tab: Tab) -> None:
    frame = tab.open(run="boxed", layer="layer1", box="step00000004-BN106-layer1.npz")
    assert "every channel" in text(frame, ".box-view .quiet").lower()
    place = frame.locator(".box-view .over").bounding_box()
    tab.page.mouse.move(place["x"] + place["width"] / 2, place["y"] + 3)
    assert "channel 0" in text(frame, ".box-view .tip")
    tab.page.mouse.click(place["x"] + place["width"] / 2, place["y"] + 3)
    tab.drawn(lambda: tab.page.keyboard.press("Escape"))
    assert frame.locator(".box-view").is_hidden()


def test_dark_mode_is_that_of_tensorboard(tab: Tab) -> None:
    frame = tab.open(run="five/sick")
    background = "getComputedStyle(document.body).backgroundColor"
    light = frame.evaluate(background)
    tab.page.evaluate("document.body.classList.add('dark-mode')")
    frame.wait_for_function(f"{background} !== '{light}'")
    assert frame.evaluate("document.documentElement.classList.contains('dark')")
    meter = "document.querySelector('.now .meter i').style.background"
    error = "getComputedStyle(document.documentElement).getPropertyValue('--health').trim().split(/\\s+/)[0]"
    red = tuple(int(frame.evaluate(error)[i : i + 2], 16) for i in (1, 3, 5))
    frame.wait_for_function(f"{meter} === 'rgb{red}'")


# -- what may come -----------------------------------------------------------------------------------------------------


def test_names_are_text_whatever_they_hold(tab: Tab) -> None:
    title = None
    frame = tab.open(run=STRANGE)
    title = tab.page.title()
    assert frame.locator("#bn-run").input_value() == STRANGE
    for layer in HOSTILE:
        frame = tab.open(run=STRANGE, layer=layer)
        assert frame.locator(".panel h2").get_attribute("title") == layer
    assert frame.evaluate("document.querySelectorAll('img, script:not([type=module]), b b, [onerror]').length") == 0
    assert tab.page.title() == title
    assert frame.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_words_in_the_address_that_make_no_sense_are_passed_over(tab: Tab) -> None:
    frame = tab.open(
        run="no such", compare="../x", statistic="<b>", layer="?", incident="x", box="y", **{"from": "a", "to": -5}
    )
    assert frame.locator("#bn-statistic").input_value() == "health"
    assert text(frame, ".panel h2") == "Incidents"


def test_a_truncated_file_and_a_resumed_run_are_shown(tab: Tab) -> None:
    frame = tab.open(run="cut")
    assert "healthy, 5 layers" in text(frame, ".verdict")
    frame = tab.open(run="resumed")
    assert text(frame, ".verdict") == "✓ healthy, 4 layers · step 190"
    names = frame.locator(".now .name").all_inner_texts()
    assert {"stem.bn", "new.bn", "newer.bn"} == set(names)


MODULE = (
    'const tab = await import(new URL("tab.js", document.querySelector("[rel=stylesheet]").href).href);'
    " const module = (name) => tab[name];"
)
"""How a test gets at a module of the page."""

ROWS = """
async ([names, room, wanted]) => {
  MODULE
  const { rowsOf, HEADING, LEGIBLE } = await module("rows");
  const rows = rowsOf(names, { filter: "", fold: "", rank: null, room, wanted: new Set([wanted]) });
  const height = rows.reduce((sum, row) => sum + (row.kind === "open" ? HEADING : LEGIBLE), 0);
  const places = rows.filter((row) => row.kind !== "open").flatMap((row) => row.members);
  const alone = rows.some((row) => row.kind === "layer" && row.id === names[wanted]);
  return [height, [...places].sort((a, b) => a - b), alone, rows.length];
}
"""


def test_a_model_of_any_size_fits_and_the_layer_of_the_incident_is_in_sight(tab: Tab) -> None:
    frame = tab.open(run="five/fixed")
    flat = tuple(f"net.bn{i}" for i in range(300))
    for names in (FIVE[:4], resnet(20), resnet(53), resnet(300), resnet(1000), flat, ("a", "a.b", "a.b.c", "a.b.d")):
        wanted = len(names) * 2 // 3
        height, places, alone, count = frame.evaluate(ROWS.replace("MODULE", MODULE), [list(names), 440, wanted])
        assert height <= 440
        assert places == list(range(len(names))), "each layer is in one row"
        assert alone, names
        assert count >= min(25, len(names)), "the room is made use of"


FOLD = """
async ([values, names, columns]) => {
  MODULE
  const [{ rowsOf }, { fold }] = [await module("rows"), await module("folded")];
  const rows = rowsOf(names, { filter: "", fold: "-", rank: null, room: 100, wanted: new Set() });
  const slice = { rows: names.length, columns, ends: values.map((_, i) => i), values: Float32Array.from(values) };
  const own = Int32Array.from(names, (_, i) => i);
  const result = (scale, limits) => {
    const { slice: found, which } = fold({ ...slice }, rows, own, { name: scale, scale, limits });
    return { values: [...found.values], which: [...which].map(([row, of]) => [row, [...of]]) };
  };
  const [health, lag, log] = [result("health", { error: 20 }), result("linear", { warning: 0.1 }), result("log", {})];
  return { health, lag, log, members: rows.map((row) => row.members) };
}
"""


def test_a_folded_group_shows_the_layer_that_stands_out_most(tab: Tab) -> None:
    random, names, columns = np.random.default_rng(0), [f"a.{i}.bn" for i in range(6)] + ["b.0", "b.1"], 40
    values = random.uniform(1, 100, (8, columns)).round(3).astype(np.float32)
    values[2, 7] = 1e-6
    found = tab.open(run="five/fixed").evaluate(
        FOLD.replace("MODULE", MODULE), [values.ravel().tolist(), names, columns]
    )
    assert found["members"] == [[0, 1, 2, 3, 4, 5], [6, 7]]
    for kind, worst in (("health", np.min), ("lag", np.max)):
        rows = np.array(found[kind]["values"]).reshape(2, columns)
        np.testing.assert_allclose(rows, [worst(values[:6], 0), worst(values[6:], 0)], rtol=1e-6)
        for row, which in found[kind]["which"]:
            np.testing.assert_allclose(rows[row], values[which, range(columns)], rtol=1e-6)
    assert found["log"]["values"][7] == pytest.approx(1e-6), "what collapsed stands out too"


def test_five_hundred_layers_fit_on_the_screen_or_scroll_beside_a_small_map(tab: Tab) -> None:
    frame = tab.open(run="many")
    assert text(frame, ".verdict").startswith("✗ variance explosion, since step")
    sizes = "(() => { const s = document.querySelector('.map-scroll'); return [s.scrollHeight, s.clientHeight] })()"
    whole, room = frame.evaluate(sizes)
    assert whole == room < 500
    assert frame.locator(".maps .mini").first.is_hidden()
    assert frame.evaluate("document.documentElement.scrollHeight <= innerHeight")
    tab.drawn(lambda: frame.locator(".buttons button", has_text="unfold").click())
    whole, room = frame.evaluate(sizes)
    assert whole > 5000 > room
    place = frame.locator(".maps .mini").first.bounding_box()
    tab.page.mouse.click(place["x"] + 5, place["y"] + place["height"] - 2)
    frame.wait_for_function("document.querySelector('.map-scroll').scrollTop > 4000")
    frame.locator("#bn-filter").fill("*layer3*bn2")
    assert re.fullmatch(r"4\d of 500", text(frame, ".map-bar .shown"))
    frame.locator("#bn-filter").fill("no such layer")
    assert text(frame, ".nothing") == "No layer is named like “no such layer”."
    frame.locator("#bn-filter").fill("")
    tab.drawn(lambda: frame.locator("#bn-order").select_option("health"))
    over = frame.locator(".maps .over").first.bounding_box()
    tab.page.mouse.move(over["x"] + over["width"] - 5, over["y"] + 4)
    assert text(frame, ".maps .tip").splitlines()[0] == resnet(500)[200], "the lowest health stands first"
    tab.drawn(lambda: frame.locator("#bn-reverse").click())
    tab.page.mouse.move(over["x"] + over["width"] - 5, over["y"] + 5)
    assert text(frame, ".maps .tip").splitlines()[0] != resnet(500)[200]
    assert {"sort=health", "least=1", "fold=+"} <= set(re.findall(r"(?:sort|least|fold)=[^&]*", tab.words()))
    tab.drawn(lambda: frame.locator(".now button").first.click())
    assert text(frame, ".panel h2") == resnet(500)[200]


TABLE = """
async () => {
  MODULE
  const [{ RunsView }, { fromWords }] = [await module("runs"), await module("view_state")];
  const index = await (await fetch(new URL("../runs", document.querySelector("[rel=stylesheet]").href))).json();
  const health = index.statistics.find((s) => s.name === "health");
  const same = { verdict: "", severity: "", open: 0, first: null, health: [90], lowest: 90, layers: 1, steps: [0, 9] };
  const row = (i) => ({ ...same, name: `run${i}`, loss: (i * 7) % 500, wall: 1e9, settings: {} });
  const all = Array.from({ length: 500 }, (_, i) => row(i));
  const [asked, open, others] = [[], [], []];
  const values = Float32Array.of(90);
  const slice = { rows: 1, columns: 1, ends: [9], before: 0, frames: 1, values, statistics: ["health"] };
  const described = { layers: [{ name: "bn", channels: 1 }], steps: [0, 9], incidents: [] };
  const view = new RunsView({
    table: (first, most) => {
      asked.push(first);
      return new Promise((done) => open.push(() => done({ runs: all.slice(first, first + most), of: 500 })));
    },
    run: async (name) => (others.push(name), { ...described, name }),
    layer: async (name) => (others.push(name), slice),
  }, { change: () => {}, trouble: () => {} });
  document.body.append(view.el);
  view.el.hidden = false;
  const show = (words) => view.show(index, fromWords({ view: "runs", ...words }), health);
  const names = () => [...view.body.rows].map((tr) => tr.querySelector(".run").textContent);
  const turn = () => new Promise((done) => setTimeout(done));
  const first = show({});
  open.shift()();
  await first;
  const found = [names().length];
  await show({ seek: "run*9", order: "loss" });
  found.push(names(), asked.slice());
  while (open.length) {
    open.shift()();
    await turn();
  }
  found.push(names(), asked.slice());
  const element = view.body.rows[0];
  await show({ seek: "run*9", order: "-loss" });
  found.push([...view.body.rows].includes(element), asked.length);
  await show({ chosen: all.map((r) => r.name).join("\\n") });
  found.push(others.length, view.overlay.note.textContent, view.overlay.el.querySelectorAll(".key b").length);
  view.el.remove();
  return found;
}
"""


def test_five_hundred_runs_are_filtered_and_sorted_while_they_are_read_and_each_is_read_once(tab: Tab) -> None:
    first, some, before, names, asked, kept, requests, others, note, curves = tab.open(run="five/fixed").evaluate(
        TABLE.replace("MODULE", MODULE)
    )

    def expected(count: int) -> list[str]:
        fitting = [i for i in range(count) if i % 10 == 9]
        return [f"run{i}" for i in sorted(fitting, key=lambda i: i * 7 % 500)]

    assert first == 100, "drawn before the others are read"
    assert (some, before) == (expected(100), [0, 100]), "filtering and sorting wait for nothing, and ask for nothing"
    assert (names, asked) == (expected(500), [0, 100, 200, 300, 400])
    assert (kept, requests) == (True, 5), "a row that is there already is moved, and not made again"
    assert (others, curves) == (48, 24), "no more curves are read and drawn than can be told apart"
    assert note.startswith("The first 24 of 500 chosen runs are drawn.")


def test_a_click_on_a_folded_group_leads_to_the_layer_that_stands_out(tab: Tab) -> None:
    frame = tab.open(run="many", fold="-")
    scroll = frame.locator(".maps .map-scroll").first.bounding_box()
    over = frame.locator(".maps .over").first.bounding_box()
    group = 1 + 200 // 125  # of stem and four stages
    y = scroll["y"] + scroll["height"] * (group + 0.5) / 5
    tab.page.mouse.move(over["x"] + over["width"] - 5, y)
    tip = text(frame, ".maps .tip").splitlines()
    assert tip[0] == "backbone.layer2 · 125 layers"
    assert tip[2] == f"in {resnet(500)[200]}, which stands out most"
    tab.drawn(lambda: tab.page.mouse.click(over["x"] + over["width"] - 5, y))
    assert text(frame, ".panel h2") == resnet(500)[200]
    assert "fold=-,+backbone.layer2" in tab.words()


AXES = """
async (course) => {
  MODULE
  const { axisOf, offered } = await module("axis");
  course.values = Float32Array.from(course.values);
  const back = (axis) => course.ends.map((step) => axis.back(axis.of(step)));
  const [epoch, time] = [axisOf("epoch", course), axisOf("time", course)];
  const marks = (axis) => axis.marks(0, 380, 4).map((m) => m.text);
  const places = [0, 100, 250].map(epoch.of);
  return [offered(course), back(epoch), back(time), places, marks(epoch), marks(time), time.say(399)];
}
"""


def test_the_axis_is_steps_epochs_or_time_and_the_address_says_which(tab: Tab) -> None:
    frame = tab.open(run="five/sick", axis="epoch", scale="log", smooth=0.6, statistic="gamma", filter="backbone")
    values = [frame.locator(f"#bn-{name}").input_value() for name in ("axis", "scale", "smooth", "filter")]
    assert values == ["epoch", "log", "0.6", "backbone"]
    assert frame.evaluate("document.querySelector('.strip canvas').getAttribute('aria-label')").endswith(
        "over the epochs"
    )
    steps = list(range(0, 400, 10))
    seconds = [step if step < 200 else step + 7200 for step in steps]  # a pause of two hours
    course = {"statistics": ["epoch", "seconds"], "columns": 40, "before": -1, "ends": steps}
    course["values"] = [step // 100 for step in steps] + seconds
    offered, *back, places, epochs, times, said = frame.evaluate(AXES.replace("MODULE", MODULE), course)
    assert offered == ["step", "epoch", "time"]
    for one in back:
        np.testing.assert_allclose(one, steps, atol=1e-3)
    np.testing.assert_allclose(places, [0, 1, 2.5], atol=0.11)
    assert epochs == ["0", "1", "2", "3"]
    assert times[0] == "0 h"
    assert times[-1] == "2 h"
    assert said == "2.11 h · step 399"


def test_every_channel_of_the_run_is_shown_in_an_order_with_those_of_the_incident_marked(tab: Tab) -> None:
    frame = tab.open(run="five/sick", layer=FIVE[2], incident=1, step=300, channels="gamma", rank="incident")
    assert "16 channels at 400 steps, 3 of an incident" in text(frame, ".channels")

    def first() -> str:
        place = frame.locator(".channels .over").bounding_box()
        tab.page.mouse.move(place["x"] + place["width"] / 2, place["y"] + 4)
        return text(frame, ".channels .tip")

    frame.locator(".channels .map").scroll_into_view_if_needed()
    assert first().splitlines()[0] == "channel 3"
    assert "✗ of an incident" in first()
    gamma = frame.locator(".pair canvas").first.get_attribute("aria-label")
    assert re.fullmatch(r"gamma, step 300: 16 channels, .+ to .+, median .+", gamma)
    assert "16 channels, " in frame.locator(".pair canvas").last.get_attribute("aria-label")
    assert [key for key in frame.locator(".channels .chart .key").all_inner_texts() if "%" in key] == [
        "25 to 75 %",
        "5 to 95 %",
    ]
    tab.drawn(lambda: frame.locator("#bn-rank").select_option("gamma"))
    largest = first()
    tab.drawn(lambda: frame.locator(".channels .row button").click())
    assert "rank=-gamma" in tab.words()
    value = r"gamma (\S+)"
    assert float(re.search(value, largest)[1]) > float(re.search(value, first())[1].replace("−", "-"))


def test_a_running_training_is_followed_and_what_is_looked_at_stays(
    entry_point: Path, browser: Any, tmp_path: Path
) -> None:
    with (
        Writer(tmp_path / "live", FIVE, 4) as writer,
        tensorboard(entry_point, "--logdir", str(tmp_path), "--load_fast=false") as address,
    ):
        tab = Tab(browser, address)
        frame = tab.open()
        assert "No run here has a history" in text(frame, ".empty h2")
        writer.frames(range(0, 100, 5), course(5, 20))
        writer.flush()

        def reloaded(step: int) -> bool:
            tab.drawn(
                lambda: tab.page.locator(
                    ".reload-button, [aria-label='Reload data'], app-header-reload button"
                ).first.click()
            )
            return f"step {step}" in frame.locator("body").inner_text()

        wait_for(lambda: reloaded(95))
        tab.drawn(lambda: frame.locator(".now button").first.click())
        words = tab.words()
        writer.frames(range(100, 200, 5), course(5, 20))
        writer.flush()
        wait_for(lambda: reloaded(195))
        assert tab.words() == words
        tab.page.close()
        tab.check()


def test_named_directories_under_a_prefix_without_the_data_server(
    entry_point: Path, browser: Any, logdir: Path
) -> None:
    spec = f"mine:{logdir / 'five'},other:{logdir / 'boxed'}"
    more = ("--logdir_spec", spec, "--load_fast=false")
    with tensorboard(entry_point, *more, prefix="/tb/x") as address:
        tab = Tab(browser, address)
        frame = tab.open(run="mine/sick")
        assert text(frame, ".verdict").startswith("✗ variance explosion, since step 265")
        assert frame.locator("#bn-run option").all_inner_texts() == ["mine/fixed", "mine/sick", "other/."]
        tab.page.close()
        tab.check()
