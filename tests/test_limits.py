"""A number that several rooms go by is defined once: change it there, and every place follows."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import bnmonitor
from bnmonitor import limits
from tests.histories import write

PACKAGE = Path(bnmonitor.__file__).parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

CHANGED = {
    "FLIGHT_BYTES": 2**20,
    "LAG_MEAN": 0.15,
    "LAG_LOG_DEVIATION": 0.35,
    "SEVERE_LAG_MEAN": 0.4,
    "SEVERE_LAG_LOG_DEVIATION": 0.9,
    "DEAD_GAMMA": 0.03,
    "DEAD_BETA": -2.5,
    "ALWAYS_ZERO": 0.95,
    "MANY_DEAD": 0.15,
    "INITIAL_WEIGHT": 0.01,
    "RAW": 2e3,
    "FLAT": 20.0,
    "ALIVE": 200.0,
    "GAP_WARNING": 0.3,
    "GAP_ERROR": 0.6,
    "GAP_SAMPLES": 48,
    "SMALL_BATCH": 24,
    "TINY_BATCH": 7,
}
CAPS = {"INFO": 100.0, "WARNING": 70.0, "ERROR": 30.0}

PROBE = '''
import inspect, json, math, sys
from dataclasses import replace
import torch
from torch import nn
from bnmonitor import BatchNormMonitor, Monitor, all_rules
from bnmonitor.audit import audit
from bnmonitor.diagnosis import find_cause
from bnmonitor.diagnosis.base import Case
from bnmonitor.history.flight.writer import FlightWriter
from bnmonitor.history.run import open_history
from bnmonitor.history.statistics import BY_NAME
from bnmonitor.measures import dead, offset, silent, warm
from bnmonitor.monitor import Settings
from bnmonitor.recording.baseline import counted
from bnmonitor.report.compare import JUDGED
from bnmonitor.report.page import page
from bnmonitor.results import Alert, Incident, Severity
from bnmonitor.sinks import FlightRecord
from bnmonitor.summary import METRICS, summarize
from bnmonitor.testing import make_sample, make_window

changed, run, out = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
rules = {rule.code: rule for rule in all_rules()}
places = {}

def rule(name, code, field):
    places.setdefault(name, {})[f"{code}.{field}"] = getattr(rules[code], field)

def health(window, incidents=()):
    return dict(zip(METRICS, summarize(window, (), {}, incidents=incidents).table[0].tolist()))

def limit(row, lag):
    """The lag at which health would be that of a layer at its limit."""
    return row[lag] / math.sqrt((100 - row["health"]) / (100 - BY_NAME["health"].limits["near"]))

places["FLIGHT_BYTES"] = {"settings": Settings().flight_bytes}
for door in (Monitor, BatchNormMonitor, FlightRecord, FlightWriter):
    budget = inspect.signature(door).parameters.get("flight_bytes") or inspect.signature(door).parameters["budget"]
    places["FLIGHT_BYTES"][door.__name__] = budget.default
for code, field in (("BN304", "warn_mean"), ("BN303", "least_mean"), ("BN503", "warn_mean"), ("BN505", "warn_mean"),
                    ("BN603", "lag_shift")):
    rule("LAG_MEAN", code, field)
places["LAG_MEAN"]["compare"] = 5 * JUDGED["mean_lag"][1]
places["LAG_MEAN"]["tab"] = BY_NAME["mean_lag"].limits["warning"]
places["LAG_MEAN"]["health"] = limit(health(make_window(batch_mean=0.05)), "mean_lag")
for code, field in (("BN304", "warn_log_deviation"), ("BN303", "least_log_deviation"), ("BN503", "warn_log_variance"),
                    ("BN505", "warn_log_deviation"), ("BN603", "lag_log_ratio")):
    rule("LAG_LOG_DEVIATION", code, field)
places["LAG_LOG_DEVIATION"]["compare"] = 5 * JUDGED["log_lag"][1]
places["LAG_LOG_DEVIATION"]["tab"] = BY_NAME["log_lag"].limits["warning"]
places["LAG_LOG_DEVIATION"]["health"] = limit(health(make_window(batch_var=1.2)), "log_lag")
for name, lag, field in (("SEVERE_LAG_MEAN", "mean_lag", "error_mean"),
                         ("SEVERE_LAG_LOG_DEVIATION", "log_lag", "error_log_deviation")):
    rule(name, "BN304", field)
    rule(name, "BN505", field)
    places[name]["tab"] = BY_NAME[lag].limits["error"]

def between(name, share, *sides):
    """The limit, if a value on one side of it counts and one on the other does not."""
    places[name]["measure"] = changed[name] if [share(side * changed[name]) for side in sides] == [1.0, 0.0] else share

rule("DEAD_GAMMA", "BN701", "gamma_share")
between("DEAD_GAMMA", lambda gamma: dead(make_window(gamma=gamma)).item(), 0.99, 1.01)
places["DEAD_GAMMA"]["tab"] = float(BY_NAME["dead"].meaning.split("below ")[1].split(" %")[0]) / 100
rule("DEAD_BETA", "BN701", "beta_ratio")
between("DEAD_BETA", lambda beta: dead(make_window(beta=beta, relu=True)).item(), 1.01, 0.99)
rule("ALWAYS_ZERO", "BN701", "zero_share")

def never(share):
    sample = make_sample(make_window().layers)
    output = replace(sample.output, nonpositive=torch.full((3,), share))
    return silent(make_window(sample=replace(sample, output=output))).item()

between("ALWAYS_ZERO", never, 1.01, 0.99)
rule("MANY_DEAD", "BN701", "info_share")
rule("MANY_DEAD", "BN703", "dead_share")
places["MANY_DEAD"]["compare"] = 5 * JUDGED["dead"][1]
places["MANY_DEAD"]["tab"] = BY_NAME["dead"].limits["info"]
rule("INITIAL_WEIGHT", "BN303", "warn_weight")
after = math.ceil(math.log(changed["INITIAL_WEIGHT"]) / math.log(0.9))
between("INITIAL_WEIGHT", lambda weight: float(warm(make_window(
    seen=after - (weight > changed["INITIAL_WEIGHT"]), steps=2))[-1]), 0.99, 1.01)
rule("RAW", "BN108", "limit_variance")

def advised(power):
    window = make_window()
    sample = replace(make_sample(window.layers), data=torch.tensor([[power] * 3, [0.0] * 3]))
    alert = Alert(code="BN704", rule="", severity=Severity.ERROR, layer="0", layers=("0",), channels=(), first_step=0,
                  last_step=0, state="open", value=1.0, threshold=1.0, message="", advice="", url="")
    case = Case(evidence=(alert,), window=replace(window, sample=sample))
    return float("normalize" in find_cause("learning-rate-too-high").advice(case))

between("RAW", advised, 1.01, 0.99)
rule("FLAT", "BN105", "eps_factor")
rule("ALIVE", "BN105", "alive_factor")
alive = []
for part in (0.9, 1.1):
    window = make_window(steps=1, batch_var=part * changed["ALIVE"] * 1e-5)
    none = replace(window.baseline, alive=torch.zeros(3, dtype=torch.bool))
    alive.append(counted(replace(window, baseline=none)).alive.all().item())
places["ALIVE"]["baseline"] = changed["ALIVE"] if alive == [False, True] else alive
places["FLAT"]["measure"] = changed["FLAT"] if [
    math.isnan(offset(make_window(running_var=part * changed["FLAT"] * 1e-5)).item()) for part in (0.99, 1.01)
] == [True, False] else None
for name, field in (("GAP_WARNING", "warn_above"), ("GAP_ERROR", "error_above"), ("GAP_SAMPLES", "least_samples")):
    rule(name, "BN305", field)
    rule(name, "BN505", field)
for name, field in (("SMALL_BATCH", "warn_below"), ("TINY_BATCH", "error_below")):
    rule(name, "BN201", field)
    rule(name, "BN205", field)

caps = {"tab": BY_NAME["health"].limits, "meaning": BY_NAME["health"].meaning}
model = nn.BatchNorm1d(2)
model.running_mean.fill_(math.nan)
model.num_batches_tracked.fill_(9)
caps["audit"] = audit(model, settings=False).rows[0].health
alert = audit(model, settings=False).alerts[0]
alerts = [replace(alert, layer="layer0", layers=("layer0",), severity=s) for s in (Severity.WARNING, Severity.ERROR)]
known = [Incident(index=0, code=each.code, cause=each.rule, severity=each.severity, title="", detail="", layer="layer0",
                  layers=("layer0",), of_layers=1, first_step=0, last_step=0, state="open", evidence=(each,), advice="",
                  url="") for each in alerts]
caps["summary"] = [health(make_window(), [each])["health"] for each in known]
open(out, "w", encoding="utf-8").write(page(open_history(run), "."))
print(json.dumps({"places": places, "caps": caps}))
'''


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package in which every shared number has another value."""
    place = tmp_path_factory.mktemp("changed")
    shutil.copytree(PACKAGE, place / "bnmonitor", ignore=shutil.ignore_patterns("__pycache__"))
    file = place / "bnmonitor" / "limits.py"
    text = file.read_text(encoding="utf-8")
    for name, value in CHANGED.items():
        text, count = re.subn(rf"^{name} = .*$", f"{name} = {value}", text, flags=re.M)
        assert count == 1, name
    file.write_text(text, encoding="utf-8")
    file = place / "bnmonitor" / "results" / "severity.py"
    caps = ", ".join(f"Severity.{name}: {value}" for name, value in CAPS.items())
    text, count = re.subn(r"^(HEALTH_CAPS: .* = ){.*}$", rf"\1{{{caps}}}", file.read_text("utf-8"), flags=re.M)
    assert count == 1
    file.write_text(text, encoding="utf-8")
    write(place / "run", ("layer0", "layer1"), range(0, 50, 5), sick=(1,), channels=4)
    return place


@pytest.fixture(scope="module")
def found(copy: Path) -> dict[str, Any]:
    command = [sys.executable, "-c", PROBE, json.dumps(CHANGED), str(copy / "run"), str(copy / "page.html")]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    plain: dict[str, Any] = json.loads(done.stdout)
    return plain


def test_every_shared_number_is_changed_here_to_another_value() -> None:
    known = {name: value for name, value in vars(limits).items() if name.isupper()}
    assert known.keys() == CHANGED.keys()
    assert [name for name, value in known.items() if value == CHANGED[name]] == []


@pytest.mark.parametrize("name", CHANGED)
def test_a_number_changes_in_every_place(found: dict[str, Any], name: str) -> None:
    places = found["places"][name]
    assert len(places) > 1
    assert places == {place: pytest.approx(CHANGED[name], rel=1e-3) for place in places}


def test_the_caps_of_health_change_in_every_place(found: dict[str, Any]) -> None:
    caps = found["caps"]
    assert caps["tab"] == {"warning": 70, "error": 30, "near": 80}
    assert "at most 70 while a warning is open, 30 while an error is open" in caps["meaning"]
    assert caps["audit"] == 30
    assert caps["summary"] == [70, 30]


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium to look at the page with")
def test_the_caps_of_health_change_in_the_legend_of_the_page(found: dict[str, Any], copy: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        view = browser.new_page()
        view.goto((copy / "page.html").as_uri())
        view.wait_for_function("document.documentElement.dataset.drawn", timeout=20_000)
        keys = "[...document.querySelectorAll('.bar .band-key')]"
        known = dict(view.evaluate(f"{keys}.map((b) => [b.textContent, b.firstChild.style.background])"))
        assert list(known) == ["✗ error", "! warning", "near its limit", "healthy"]
        meters = view.evaluate("[...document.querySelectorAll('.now .meter i')].map((m) => m.style.background)")
        assert meters[0] == known["✗ error"]
        assert meters[1] not in (known["✗ error"], known["! warning"])
        browser.close()


def test_the_scripts_of_the_viewer_hold_no_color() -> None:
    for path in (PACKAGE / "viewer").glob("*.js"):
        assert re.findall(r"#[0-9a-f]{6}\b|rgba?\(\d", path.read_text(encoding="utf-8")) == [], path.name
    style = (PACKAGE / "viewer" / "style.css").read_text(encoding="utf-8")
    assert re.findall(r"#[0-9a-f]{3,8}\b|rgba?\(", style) == []


def test_a_style_of_the_terminal_is_named_in_one_table_only() -> None:
    for path in [p for room in ("audit", "cli", "display", "report", "sinks") for p in (PACKAGE / room).glob("*.py")]:
        if path.name != "styles.py":
            named = re.findall(r"style=f?[\"'](?:bold|dim|red|yellow)", path.read_text(encoding="utf-8"))
            assert named == [], path.name
