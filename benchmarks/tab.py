"""How long the BatchNorm tab of TensorBoard takes, in a browser, by the page's own clock.

``python benchmarks/tab.py`` measures this source tree; ``--beside DIRECTORY`` measures another one in turn with it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HERE))

from tests.histories import resnet, write  # noqa: E402

READY = "document.documentElement.dataset.drawn"
SAYS = 'document.addEventListener("bnmonitor-drawn", () => console.debug("drawn"), { once: true })'
DRAWN = """async (change) => {
  const done = new Promise((drawn) => document.addEventListener("bnmonitor-drawn", drawn, { once: true }));
  const begin = performance.now();
  new Function(change)();
  await done;
  return performance.now() - begin;
}"""
STATISTICS = ("batch_var", "mean_lag", "gamma", "noise", "beta", "dead")
FRAMES = """() => new Promise((done) => {
  const [times, tasks] = [[], []];
  const long = new PerformanceObserver((list) => tasks.push(...list.getEntries().map((e) => e.duration)));
  long.observe({ type: "longtask" });
  const tick = (now) => {
    times.push(now);
    if (!window.stopTicks) return requestAnimationFrame(tick);
    long.disconnect();
    done({ times, tasks });
  };
  window.stopTicks = false;
  requestAnimationFrame(tick);
})"""
CHOOSE = "const s = document.querySelector('#bn-statistic'); s.value = '{}'; "
CHOOSE += "s.dispatchEvent(new Event('change', {{ bubbles: true }}));"
PRESS = (
    "document.querySelector('.maps .map').dispatchEvent(new KeyboardEvent('keydown', {{ key: '{}', bubbles: true }}));"
)
"""What chooses a statistic, and what presses a key on the map."""


@contextmanager
def server(tree: Path, logs: Path, site: Path) -> Iterator[str]:
    """Run TensorBoard with the plugin of a source tree; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logs), "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1"],
        env={**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{tree}", "CUDA_VISIBLE_DEVICES": ""},
        cwd=tree,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(600):
            try:
                listed = urllib.request.urlopen(address + "data/plugins_listing", timeout=5)
                if json.load(listed).get("bnmonitor", {}).get("enabled"):
                    break
            except OSError:
                pass
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(60)


def opened(context: Any, address: str, run: str, **words: str) -> tuple[Any, Any, dict[str, Any]]:
    """Open the tab on a run; gives the page, the tab's frame, and what its first picture took."""
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    # A question to the page brings scripts of its own, which take time: it says by itself when it is drawn.
    page.add_init_script(SAYS)
    more = "".join(f"&p.bnmonitor.{name}={word}" for name, word in words.items())
    with page.expect_console_message(lambda said: said.text == "drawn", timeout=120_000):
        page.goto(f"{address}?darkMode=false#bnmonitor&p.bnmonitor.run={run}{more}", wait_until="commit")
    page.wait_for_timeout(300)
    frame = next(frame for frame in page.frames if "plugin_entry" in frame.url)
    entries = frame.evaluate(
        "() => [performance.getEntriesByType('navigation')[0], ...performance.getEntriesByType('resource'),"
        " ...performance.getEntriesByType('paint'), ...performance.getEntriesByType('mark')].map((e) => e.toJSON())"
    )
    own = [url for url in asked if "/data/plugin/bnmonitor/" in url]
    numbers = [url for url in own if not url.split("?")[0].endswith((".js", ".css"))]
    return page, frame, {"drawn": float(frame.evaluate(READY)), "entries": entries, "own": own, "numbers": numbers}


def median(values: list[float]) -> str:
    """The median, and the lowest and the highest, of values in milliseconds."""
    if not values:
        return "-"
    return f"{statistics.median(values):6.0f}  ({min(values):.0f} to {max(values):.0f})"


def gestures(page: Any, frame: Any, seconds: float) -> dict[str, Any]:
    """Move the pointer, drag on the map and turn the wheel, each for some seconds; gives the times of the frames."""
    box = frame.locator(".maps .over").first.bounding_box()
    left, width, top, height = box["x"] + 200, box["width"] - 220, box["y"] + 20, box["height"] - 40

    def while_(move: Any) -> dict[str, Any]:
        frame.evaluate("() => { window.ticks = (" + FRAMES + ")() }")
        asked: list[str] = []
        listener = lambda request: asked.append(request.url)  # noqa: E731
        page.on("request", listener)
        ends, n = time.monotonic() + seconds, 0
        while time.monotonic() < ends:
            move(n)
            n += 1
        found: dict[str, Any] = frame.evaluate("() => { window.stopTicks = true; return window.ticks }")
        page.remove_listener("request", listener)
        times = found["times"]
        gaps = [b - a for a, b in pairwise(times)]
        return {"gaps": gaps, "tasks": found["tasks"], "requests": len(asked), "events": n}

    def across(n: int) -> None:
        page.mouse.move(left + (n * 7) % width, top + (n * 3) % height)

    found = {"hover": while_(across)}
    page.mouse.move(left, top)
    page.mouse.down()
    found["drag"] = while_(across)
    page.mouse.up()
    page.wait_for_timeout(500)
    page.keyboard.down("Shift")
    found["pan"] = while_(lambda n: page.mouse.wheel(0, 20 if n // 40 % 2 else -20))
    page.keyboard.up("Shift")
    page.wait_for_timeout(500)
    return found


def main() -> None:
    """Print what was measured, of each tree, in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--beside", type=Path, action="append", default=[], help="another source tree")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--logs", type=Path, help="where the runs are written, or lie from last time")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="warm,cold,long,change,gestures")
    given = parser.parse_args()
    trees = [*given.beside, HERE]
    only = given.only.split(",")
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with ExitStack() as stack:
        logs = given.logs or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not (logs / "short").exists():
            write(logs / "short" / "run", resnet(53), range(5000), sick=(20,))
            write(logs / "long" / "run", resnet(213), range(0, 1_000_000, 200), sick=(80,))
        site = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        info = site / "bnmonitor-0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bnmonitor\nVersion: 0\n")
        loader = "bnmonitor.tensorboard_plugin.loader:BatchNormLoader"
        (info / "entry_points.txt").write_text(f"[tensorboard_plugins]\nbnmonitor = {loader}\n")
        servers = [stack.enter_context(server(tree, logs, site)) for tree in trees]
        play = stack.enter_context(sync_playwright())
        chrome = play.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        stack.callback(chrome.close)
        view = {"viewport": {"width": 1280, "height": 800}}
        found: list[dict[str, Any]] = [{} for _ in trees]

        def visits(name: str, run: str, warm: bool) -> None:
            contexts = [chrome.new_context(**view) for _ in trees]
            for n in range(given.rounds + (2 if warm else 1)):
                for i in range(len(trees)) if n % 2 else reversed(range(len(trees))):
                    context = contexts[i] if warm else chrome.new_context(**view)
                    page, _, took = opened(context, servers[i], run)
                    # The first visits fill the caches of the server, and those of a warm browser.
                    if n >= (2 if warm else 1):
                        found[i].setdefault(name, []).append(took)
                    page.close()
                    if not warm:
                        context.close()

        if "warm" in only:
            visits("53 layers, 5,000 frames, warm", "short%2Frun", True)
        if "cold" in only:
            visits("53 layers, 5,000 frames, cold browser", "short%2Frun", False)
        if "long" in only:
            visits("213 layers, 1,000,000 steps, warm", "long%2Frun", True)
        for i, address in enumerate(servers):
            page, frame, _ = opened(chrome.new_context(**view), address, "short%2Frun", layer=resnet(53)[20])
            if "change" in only:
                times: dict[str, list[float]] = {"statistic": [], "layer": [], "zoom": []}
                for n in range(given.rounds):
                    back = "document.querySelector('.panel-head .link').click();"
                    layer = f"document.querySelectorAll('.now button')[{n % 8}].click();"
                    statistic = CHOOSE.format(STATISTICS[n % len(STATISTICS)])
                    for kind, change in (("statistic", statistic), ("", back), ("layer", layer)):
                        took = frame.evaluate(DRAWN, change)
                        times.setdefault(kind or "back", []).append(took)
                    times["zoom"].append(frame.evaluate(DRAWN, PRESS.format("0" if n % 4 == 3 else "+")))
                found[i]["changes"] = times
            if "gestures" in only:
                found[i]["gestures"] = gestures(page, frame, given.seconds)
            page.close()
        for tree, each in zip(trees, found, strict=True):
            print(tree)
            for name, took in each.items():
                if name == "changes":
                    for way, ms in took.items():
                        print(f"  change of {way:22} {median(ms)} ms")
                elif name == "gestures":
                    for way, what in took.items():
                        late = sum(gap > 25 for gap in what["gaps"])
                        print(
                            f"  {way:32} {median(what['gaps'])} ms a frame, {late} of {len(what['gaps'])} late, "
                            f"{len(what['tasks'])} long tasks, {what['events']} events, {what['requests']} requests"
                        )
                else:
                    print(
                        f"  {name:32} {median([t['drawn'] for t in took])} ms, "
                        f"{len(took[-1]['own'])} requests, {len(took[-1]['numbers'])} for numbers"
                    )
        if given.json:
            given.json.write_text(json.dumps(dict(zip(map(str, trees), found, strict=True))))


if __name__ == "__main__":
    main()
