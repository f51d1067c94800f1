"""The report as a page: its numbers, its size, what it may load, and how it looks to a browser."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnmonitor.cli import main
from bnmonitor.history.run import open_history
from bnmonitor.report.page import page
from tests.histories import HOSTILE, METRICS, Writer, an_alert, an_incident, course, write

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NAMES = ("stem.bn", *(f"block.{i}.bn" for i in range(4)))


def content_of(text: str) -> tuple[dict[str, Any], np.ndarray[Any, Any]]:
    """The numbers of a page, read as its own code does."""
    content = re.search(r'id="content">(.*?)</script>', text, re.S)
    numbers = re.search(r'id="numbers">(.*?)</script>', text, re.S)
    assert content is not None
    assert numbers is not None
    planes = np.frombuffer(gzip.decompress(base64.b64decode(numbers[1])), np.uint8)
    return json.loads(content[1]), planes.reshape(4, -1).T.copy().view("<f4").ravel()


def block(about: dict[str, Any], values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return values[about["at"] :][: int(np.prod(about["shape"]))].reshape(about["shape"])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small")
    write(path, NAMES, range(90), sick=(2,))
    return path


def test_a_short_history_is_in_it_frame_by_frame_to_three_digits(small: Path) -> None:
    history = open_history(small)
    content, values = content_of(page(history, "."))
    frames = history.run(".").frames
    layers = content["layers"]
    assert layers["sheets"] == list(frames.metrics)
    assert layers["ends"] == frames.steps.tolist()
    course = content["course"]
    assert (course["sheets"], course["ends"]) == (["loss", "lr 0", "epoch", "seconds"], frames.steps.tolist())
    np.testing.assert_allclose(block(course, values)[:, 0], history.run(".").course.table()[1], rtol=2**-12)
    np.testing.assert_allclose(block(layers, values), frames.values, rtol=2**-12)


def test_the_channels_of_a_sick_layer_are_in_it(small: Path) -> None:
    history = open_history(small)
    content, values = content_of(page(history, "."))
    detail = history.run(".").channels(NAMES[2])
    assert detail is not None
    about = content["channels"][NAMES[2]]
    assert about["shape"][:2] == [len(detail.statistics), detail.values.shape[1]]
    assert [one["detailed"] for one in content["run"]["layers"] if one["name"] == NAMES[2]] == [True]
    assert np.isfinite(block(about, values)).any()


def test_the_scale_of_a_channel_statistic_with_a_sign_spans_both_signs(small: Path) -> None:
    """Of layers the gradient of gamma is drawn without its sign, of channels with it."""
    content, _ = content_of(page(open_history(small), "."))
    about = content["channels"][NAMES[2]]
    low, high = about["extents"][about["sheets"].index("gamma_grad")]
    assert low < 0 < high


@pytest.mark.parametrize(("layers", "frames"), [(53, 5000), (300, 1000)])
def test_a_long_history_is_thinned_to_size_and_keeps_its_spikes(tmp_path: Path, layers: int, frames: int) -> None:
    table = course(layers, frames)
    at = frames // 2
    table[at, 7, METRICS.index("batch_var")] = 1e6
    with Writer(tmp_path, [f"layer{i}" for i in range(layers)]) as writer:
        writer.frames(range(frames), table)
    text = page(open_history(tmp_path), ".")
    assert len(text.encode()) < (1_000_000 if layers < 80 else 4_000_000)
    content, values = content_of(text)
    shown = block(content["layers"], values)[content["layers"]["sheets"].index("batch_var"), 7]
    assert shown.max() == pytest.approx(1e6, rel=1e-3)
    assert content["layers"]["shape"][2] >= 160


def test_it_says_in_words_what_is_wrong_and_loads_nothing(small: Path) -> None:
    text = page(open_history(small), ".")
    first, rest = text.split('<div id="view">')
    assert "This run has been failing since step " in first
    assert "<b>What to do:</b> lower the peak learning rate" in first
    words = text[: text.index("</style>")] + rest[: rest.index('<script type="application/json"')]
    for part in (
        "variance explosion",
        "BN106 variance-explosion",
        "since step",
        "fix:",
        "Content-Security-Policy",
        "default-src 'none'",
    ):
        assert part in words
    assert not re.findall(r'(?:src|@import|url\()\s*=?\s*["\']?(?:https?:)?//', text)


def test_hostile_names_are_text(tmp_path: Path) -> None:
    with Writer(tmp_path, HOSTILE) as writer:
        writer.frames(range(20), course(len(HOSTILE), 20))
        hostile = "</script><script>alert(1)</script>"
        alert = an_alert(HOSTILE[0], 3, message=hostile, url="javascript:alert(1)")
        writer.incident(an_incident(alert, title=hostile, detail=hostile))
    text = page(open_history(tmp_path), ".")
    assert "<img" not in text
    assert "<script>alert" not in text
    assert 'href="javascript' not in text


def test_the_command_writes_it_and_says_where(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "page.html"
    assert main(["report", str(small), "--html", str(file), "--fail-on", "never"]) == 0
    assert f"written to {file}" in capsys.readouterr().out
    assert file.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert main(["report", str(small), "--html", str(tmp_path / "none" / "page.html")]) == 2
    assert "cannot write" in capsys.readouterr().err


@pytest.mark.skipif(
    CHROMIUM is None, reason="there is no chromium to look at the page with; on Debian: apt install chromium"
)
def test_a_browser_draws_it_without_complaint_or_network(small: Path, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    file = tmp_path / "page.html"
    file.write_text(page(open_history(small), "."), encoding="utf-8")
    said: list[str] = []
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        view = browser.new_page()
        view.on("console", lambda message: said.append(message.text))
        view.on("pageerror", lambda error: said.append(str(error)))
        view.on("request", lambda r: said.append(r.url) if not r.url.startswith(("file:", "data:", "blob:")) else None)
        view.goto(file.as_uri())
        view.wait_for_function("document.documentElement.dataset.drawn", timeout=120_000)
        assert view.locator("canvas").count() > 0
        view.get_by_role("button", name="variance explosion").first.click()
        view.wait_for_function(f"document.body.innerText.includes({json.dumps(NAMES[2])})", timeout=120_000)
        assert "p.bnmonitor.incident=1" in view.url
        browser.close()
    assert said == []


@pytest.mark.skipif(
    CHROMIUM is None, reason="there is no chromium to look at the page with; on Debian: apt install chromium"
)
def test_on_paper_nothing_is_behind_a_scroll_bar(tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    write(tmp_path, [f"layer{i}.bn" for i in range(90)], range(40), channels=4)
    file = tmp_path / "page.html"
    file.write_text(page(open_history(tmp_path), "."), encoding="utf-8")
    hidden = "() => [...document.querySelectorAll('.map-scroll')].map(e => e.scrollHeight - e.clientHeight)"
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        view = browser.new_page(viewport={"width": 1000, "height": 500})
        view.goto(f"{file.as_uri()}#p.bnmonitor.fold=%2B")
        view.wait_for_function("document.documentElement.dataset.drawn", timeout=120_000)
        assert max(view.evaluate(hidden)) > 0, "on this screen the map is higher than there is room"
        view.emulate_media(media="print")
        assert max(view.evaluate(hidden)) == 0
        every = "document.querySelector('.map-scroll canvas').clientHeight >= 90 * 11"
        view.screenshot()  # a page learns of another medium with the next frame, which a busy machine may not draw
        view.wait_for_function(every, timeout=120_000, polling=100)  # painted, not only given room
        browser.close()
