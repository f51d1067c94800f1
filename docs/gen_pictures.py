"""Make the pictures of the README from a real run: the terminal's table as SVG, TensorBoard as PNG.

Needs Chromium (Debian: ``apt install chromium``) for TensorBoard's picture. Run ``make pictures``.
"""

from __future__ import annotations

import io
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytorch_lightning as pl
import rich
from PIL import Image
from playwright.sync_api import sync_playwright
from pytorch_lightning.loggers import TensorBoardLogger
from rich.console import Console as RichConsole

from bnmonitor import BatchNormMonitor
from bnmonitor.demo import RUNS, trainer

OUT = Path(__file__).parent / "pictures"


def train(log_dir: Path) -> None:
    """Train the demo's runs, and keep what the faulty one prints at the end as a picture."""
    for run in RUNS:
        pl.seed_everything(0, verbose=False)
        model, (data, validation) = run.make()
        console = RichConsole(record=True, width=112, file=io.StringIO(), force_terminal=True)
        monitor = BatchNormMonitor()
        logger = TensorBoardLogger(log_dir, name=run.name, version="")
        trainer(logger, run.epochs, monitor).fit(model, data, validation)
        if run.planted == "BN106":
            from bnmonitor.render import health_table

            console.print(health_table(monitor.monitor.summary(run.epochs - 1), final=True))
            svg = console.export_svg(title="BatchNormMonitor()")
            (OUT / "table.svg").write_text(svg)


def tensorboard(log_dir: Path) -> None:
    """Photograph stock TensorBoard on the runs."""
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
        with sync_playwright() as play:
            chromium = shutil.which("chromium") or shutil.which("chromium-browser")
            browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport={"width": 1400, "height": 860})
            page.goto(address + "?darkMode=false&tagFilter=bn_batch_var%7Cbnmonitor%2F(errors%7Chealth)#timeseries")
            page.wait_for_timeout(6000)
            page.get_by_role("button", name="Settings").click()
            page.wait_for_timeout(3000)
            shot = Image.open(io.BytesIO(page.screenshot()))
            shot.convert("P", palette=Image.Palette.ADAPTIVE, colors=64).save(OUT / "tensorboard.png", optimize=True)
            browser.close()
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    rich.reconfigure(file=io.StringIO())
    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder))
        tensorboard(Path(folder))
