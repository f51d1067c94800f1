"""The tab and the page look as in the pictures beside this file; ``make pictures`` draws these anew.

What is compared is the mean color of squares of 64 pixels, so that letters of another machine's fonts do not count.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response

from bnmonitor import viewer
from bnmonitor.history.run import open_history
from bnmonitor.report.page import page as page_of
from tests.histories import recorded, resnet, write
from tests.tensorboard_plugin.test_browser import CHROMIUM, READY, browser, playwright
from tests.tensorboard_plugin.test_server import Asked

__all__ = ["browser"]
assert playwright
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium to look at the tab with")

PICTURES = Path(__file__).with_name("pictures")
NAMES = resnet(12)
SQUARE = 64
NOTICED = 6
"""Of 255: a square whose color differs by less looks the same."""
FEW = 0.04
"""The share of squares that may look otherwise."""
VIEWS = {
    "tab-light": (1280, False, ""),
    "tab-dark": (1280, True, ""),
    "tab-layer": (1280, False, f"#p.bnmonitor.layer={NAMES[5]}"),
    "page-light": (1280, False, None),
    "page-dark": (1280, True, None),
    "page-phone": (390, False, None),
}
"""Width, whether it is dark, and the address of the tab; None: the page."""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The address of the tab, served without TensorBoard around it, and that of the page."""
    logs = tmp_path_factory.mktemp("logs")
    write(logs / "run", NAMES, range(0, 400, 5), sick=(5,), channels=16)
    recorded(logs / "run", NAMES, channels=16, steps=200)
    (logs / "page.html").write_text(page_of(open_history(logs / "run"), "."), encoding="utf-8")
    apps = Asked(logs).apps
    html = f'<!doctype html><script type="module">(await import("/{viewer.version()}/index.js")).render()</script>'

    @Request.application
    def around(request: Request) -> Any:
        return apps.get(request.path) or Response(html, mimetype="text/html")

    server = make_server("127.0.0.1", 0, around, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/", (logs / "page.html").as_uri()
    server.shutdown()
    thread.join()


@contextmanager
def opened(browser: Any, places: tuple[str, str], name: str) -> Iterator[Any]:
    width, dark, address = VIEWS[name]
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme="dark" if dark else "light")
    page.goto(places[1] if address is None else places[0] + address)
    page.wait_for_function(READY, timeout=120_000)
    yield page
    page.close()


def drawn(page: Any) -> Image.Image:
    """What is in sight, at half its size."""
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    return picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)


def squares(picture: Image.Image) -> np.ndarray[Any, Any]:
    """The mean color of each square."""
    size = (max(1, 2 * picture.width // SQUARE), max(1, 2 * picture.height // SQUARE))
    return np.asarray(picture.convert("RGB").resize(size, Image.Resampling.BOX), np.float32)


def otherwise(name: str, picture: Image.Image) -> float:
    """The share of squares that look otherwise than in the picture of that name."""
    known = Image.open(PICTURES / f"{name}.png")
    assert known.size == picture.size
    return float((np.abs(squares(known) - squares(picture)).max(-1) > NOTICED).mean())


@pytest.mark.parametrize("name", list(VIEWS))
def test_it_looks_as_it_did(browser: Any, places: tuple[str, str], name: str) -> None:
    with opened(browser, places, name) as page:
        picture = drawn(page)
        wide = page.evaluate(
            "[...document.querySelectorAll('html, .wide')].map((el) => el.scrollWidth - el.clientWidth)"
        )
        assert max(wide) <= 0, "nothing has to be scrolled sideways"
    if os.environ.get("PICTURES") == "write":
        PICTURES.mkdir(exist_ok=True)
        small = picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        small.save(PICTURES / f"{name}.png", optimize=True)
    assert otherwise(name, picture) <= FEW, f"{name}: `make pictures` draws it anew, if this is how it shall look"


CHANGES = {
    "no map": ".maps { visibility: hidden; }",
    "no incidents": ".panel { visibility: hidden; }",
    "no list of layers": ".now, h3.minor { visibility: hidden; }",
    "no controls": ".bar, .map-bar { display: none; }",
    "other colors of the map": ".maps canvas { filter: hue-rotate(120deg); }",
}


@pytest.mark.parametrize("name", ["tab-dark", "page-light"])
def test_what_is_missing_or_has_another_color_is_noticed_and_another_font_is_not(
    browser: Any, places: tuple[str, str], name: str
) -> None:
    with opened(browser, places, name) as page:

        def with_style(style: str) -> float:
            tag = page.add_style_tag(content=style)
            picture = drawn(page)
            tag.evaluate("(tag) => tag.remove()")
            return otherwise(name, picture)

        found = {change: with_style(style) for change, style in CHANGES.items()}
        assert {change: share for change, share in found.items() if share <= FEW} == {}
        assert with_style("body { font-family: serif; letter-spacing: 0.1px; }") <= FEW


def test_the_pictures_are_small() -> None:
    found = {path.stem: path.stat().st_size for path in PICTURES.glob("*.png")}
    assert set(found) == set(VIEWS)
    assert sum(found.values()) <= 150_000
