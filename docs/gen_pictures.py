"""Make the pictures of the documentation from real runs: the terminal's table as SVG, TensorBoard as PNG.

Needs Chromium (Debian: ``apt install chromium``) for TensorBoard's picture. Run ``make pictures``.
"""

from __future__ import annotations

import io
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytorch_lightning as pl
import rich
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from pytorch_lightning.loggers import TensorBoardLogger

from bnmonitor import BatchNormMonitor
from bnmonitor.cli.demo import RUNS, trainer

OUT = Path(__file__).resolve().parent / "pictures"


def train(log_dir: Path) -> None:
    """Train the demo's runs, and keep what the one with too high a learning rate prints as a picture."""
    for run in RUNS:
        pl.seed_everything(0, verbose=False)
        model, (data, validation) = run.make()
        rich.reconfigure(record=True, width=120, file=io.StringIO(), force_terminal=True)
        logger = TensorBoardLogger(log_dir, name=run.name, version="")
        trainer(logger, run.epochs, BatchNormMonitor()).fit(model, data, validation)
        if run.planted == "BN704":
            svg = rich.get_console().export_svg(title="Trainer(callbacks=[BatchNormMonitor()])")
            (OUT / "table.svg").write_text(svg)


@contextmanager
def served(log_dir: Path) -> Iterator[str]:
    """Run TensorBoard on the runs; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = [sys.executable, "-m", "tensorboard.main", "--logdir", str(log_dir), "--port", str(port)]
    server = subprocess.Popen([*program, "--host", "127.0.0.1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(100):
            try:
                urllib.request.urlopen(address, timeout=1)
                break
            except OSError:
                time.sleep(0.3)
        yield address
    finally:
        server.terminate()
        server.wait()


def save(shot: bytes, name: str, colors: int = 64) -> None:
    """Keep a picture small."""
    picture = Image.open(io.BytesIO(shot)).convert("RGB")
    # The colors of few pixels, such as a green sign, stay what they are.
    few = picture.quantize(colors, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(OUT / name, optimize=True)


def stock(page: Page, address: str) -> None:
    """Photograph what every TensorBoard shows."""
    page.set_viewport_size({"width": 1400, "height": 860})
    page.goto(address + "?darkMode=false&tagFilter=bn_batch_var%7Cbnmonitor%2F(errors%7Chealth)#timeseries")
    page.wait_for_timeout(6000)
    page.get_by_role("button", name="Settings").click()
    page.wait_for_timeout(3000)
    save(page.screenshot(), "tensorboard.png")


VIEWS = {
    "tab-health": {"run": "learning_rate"},
    "tab-layer": {"run": "learning_rate", "statistic": "batch_var", "layer": "backbone.2.1"},
    "tab-compare": {"run": "learning_rate", "compare": "healthy", "statistic": "gamma_update"},
    "tab-runs": {"view": "runs", "chosen": "learning_rate\nhealthy", "statistic": "batch_var"},
}
"""Pictures of the tab, and what each looks at."""

HEIGHTS = {"tab-health": 640, "tab-layer": 1000, "tab-compare": 600, "tab-runs": 432}


def tab(page: Page, address: str) -> None:
    """Photograph the BatchNorm tab, light and dark."""
    for name, words in VIEWS.items():
        for mode in ("light", "dark"):
            view = "".join(f"&p.bnmonitor.{key}={quote(word, safe='')}" for key, word in words.items())
            page.set_viewport_size({"width": 1280, "height": HEIGHTS[name]})
            page.goto("about:blank")
            page.goto(f"{address}?darkMode={'true' if mode == 'dark' else 'false'}#bnmonitor{view}")
            iframe = page.wait_for_selector("iframe")
            frame = iframe and iframe.content_frame()
            assert frame is not None
            frame.wait_for_url("**/plugin_entry*")
            frame.wait_for_function("document.documentElement.dataset.drawn")
            page.wait_for_timeout(500)
            save(page.screenshot(), f"{name}-{mode}.png", 256)


def photograph(log_dir: Path) -> None:
    """Take all pictures of TensorBoard."""
    with served(log_dir) as address, sync_playwright() as play:
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        stock(page, address)
        tab(page, address)
        browser.close()


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    rich.reconfigure(file=io.StringIO())
    with tempfile.TemporaryDirectory() as folder:
        # What is printed names the directory of a run.
        os.chdir(folder)
        train(Path("logs"))
        photograph(Path("logs"))
        os.chdir(OUT)
