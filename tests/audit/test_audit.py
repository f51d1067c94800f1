"""`bnmonitor audit`: checkpoints and models, without training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bnmonitor.audit import audit, drift
from bnmonitor.cli import main

NAMES = ("1", "4", "7")


def net(width: int = 16, **norm: float | None) -> nn.Sequential:
    parts: list[nn.Module] = []
    for before in (3, width, width):
        parts += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width, **norm), nn.ReLU()]
    return nn.Sequential(*parts)


def trained() -> nn.Sequential:
    torch.manual_seed(0)
    model = net()
    with torch.no_grad():
        for _ in range(30):
            model(torch.randn(8, 3, 8, 8))
    return model


def norm(model: nn.Sequential, layer: int) -> nn.BatchNorm2d:
    found = model[3 * layer + 1]
    assert isinstance(found, nn.BatchNorm2d)
    return found


Spoil = Callable[[nn.Sequential], object]
FAULTS: dict[str, tuple[str, str, Spoil]] = {
    "a NaN": ("BN101", "4", lambda m: norm(m, 1).running_var.__setitem__(2, torch.nan)),
    "a ruined variance": ("BN109", "7", lambda m: norm(m, 2).running_var.fill_(1e22)),
    "a negative variance": ("BN101", "7", lambda m: norm(m, 2).running_var.__setitem__(0, -1.0)),
    "half a layer flat": ("BN105", "4", lambda m: norm(m, 1).running_var[:8].fill_(1e-9)),
    "initial statistics": ("BN404", "1", lambda m: norm(m, 0).reset_running_stats()),
    "half precision": ("BN104", "1", lambda m: m.bfloat16()),
    "far apart scales": ("BN707", "7", lambda m: norm(m, 2).weight.data.__setitem__(3, 1e3)),
}


@pytest.mark.parametrize("form", ["pt", "ckpt", "safetensors"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_a_checkpoint_is_found_in_its_layer(tmp_path: Path, fault: str, form: str) -> None:
    code, layer, spoil = FAULTS[fault]
    model = trained()
    if code == "BN104":
        for m in model:
            if isinstance(m, nn.BatchNorm2d):
                m.momentum = 0.01
    spoil(model)
    path = tmp_path / f"model.{form}"
    if form == "safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save({"state_dict": model.state_dict()} if form == "ckpt" else model.state_dict(), path)
    if code == "BN104":  # momentum is no part of a checkpoint: only the model itself tells that updates are lost
        found = audit(model)
    else:
        from bnmonitor.audit import read_checkpoint

        (only,) = read_checkpoint(path).values()
        found = audit(only, settings=False)
    assert (code, layer) in {(alert.code, alert.layer) for alert in found.alerts}


def test_a_sound_checkpoint_and_model_are_silent() -> None:
    model = trained()
    for settings in (True, False):
        found = audit(model, settings=settings)
        assert [(a.code, a.message) for a in found.alerts if a.severity > 10] == []
        shown = "model can show without training" if settings else "file can show"
        assert found.headline() == f"BatchNorm ✓ 3 layers, 48 channels: nothing wrong found in what a {shown}"


def test_a_model_that_was_only_made_is_not_blamed_for_its_statistics() -> None:
    found = audit(net())
    assert "initial-statistics-in-use" in found.skipped
    assert [a.code for a in found.alerts if a.severity > 10] == []


@pytest.mark.parametrize(("momentum", "code"), [(0.99, "BN301"), (0.0, "BN302"), (1.0, "BN302")])
def test_settings_of_a_model_are_judged(momentum: float, code: str) -> None:
    (alert,) = [a for a in audit(net(momentum=momentum)).alerts if a.severity > 10]
    assert (alert.code, alert.layers) == (code, NAMES)


def test_a_layer_without_statistics_is_told() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, track_running_stats=False))
    assert [a.code for a in audit(model).alerts if a.severity > 10] == ["BN408"]


def test_an_audit_changes_nothing() -> None:
    model = trained().eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    audit(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_drift_says_how_far_and_what_came() -> None:
    before, after = trained(), trained()
    scale = (norm(before, 1).running_var + 1e-5).sqrt()
    norm(after, 1).running_mean += 0.5 * scale
    norm(after, 1).running_var[:] = (norm(before, 1).running_var + 1e-5) * 4 - 1e-5
    norm(after, 2).running_mean[0] = torch.nan
    found = drift(before, after)
    moved = {m.layer: m for m in found.moved}
    assert moved["4"].mean == pytest.approx(0.5, rel=1e-4)
    assert moved["4"].deviation == pytest.approx(0.6931, rel=1e-3)
    assert moved["1"].far == 0
    assert [(a.code, a.layer) for a in found.came] == [("BN101", "7")]
    assert found.went == ()
    json.dumps(found.to_dict(), allow_nan=False)


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    model = trained()
    torch.save(model.state_dict(), tmp_path / "sound.pt")
    norm(model, 1).running_var[0] = torch.nan
    torch.save({"state_dict": model.state_dict(), "epoch": 1}, tmp_path / "spoiled.ckpt")
    return tmp_path


def run(*arguments: object, cwd: Path) -> tuple[int, str]:
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "bnmonitor", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "100"},
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


def test_exit_codes_and_json(checkpoints: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", str(checkpoints / "sound.pt")]) == 0
    assert main(["audit", str(checkpoints / "spoiled.ckpt"), "--fail-on", "never"]) == 0
    capsys.readouterr()
    assert main(["audit", str(checkpoints / "spoiled.ckpt"), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    (one,) = told["audits"]
    assert one["name"].endswith("spoiled.ckpt:state_dict")
    assert {a["code"] for a in one["alerts"]} == {"BN101"}
    assert [row["name"] for row in one["layers"]] == list(NAMES)
    assert one["layers"][1]["running_var"][0] is None or one["layers"][1]["running_var"][0] > 0


def test_a_directory_gives_a_line_for_each(checkpoints: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", str(checkpoints)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "sound.pt: BatchNorm ✓" in lines[0]
    assert "spoiled.ckpt:state_dict: BatchNorm ✗" in lines[1]
    assert "BN101" in lines[1]


def test_what_cannot_be_read_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"a": torch.ones(3)}, tmp_path / "other.pt")
    for what in ("none.pt", "text.pt", "empty", "other.pt"):
        assert main(["audit", str(tmp_path / what)]) == 2
        said = capsys.readouterr().err
        assert said.startswith("bnmonitor: ")
        assert said.count("\n") == 1


def test_a_model_is_made_by_its_factory(tmp_path: Path) -> None:
    (tmp_path / "somewhere.py").write_text(
        "from torch import nn\n"
        "def make():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.99))\n"
        "MODEL = make()\n"
        "def breaks():\n    raise ValueError('no luck')\n"
        "def text():\n    return 'text'\n"
    )
    for spec in ("somewhere:make", "somewhere:MODEL"):
        code, said = run("audit", spec, cwd=tmp_path)
        assert code == 1
        assert "BN301 inverted-momentum" in said
    for spec, why in (
        ("somewhere:breaks", "could not be called: ValueError: no luck"),
        ("somewhere:text", "makes a str"),
        ("somewhere:mak", "did you mean 'make'?"),
        ("nowhere:make", "cannot import"),
    ):
        code, said = run("audit", spec, cwd=tmp_path)
        assert code == 2
        assert why in said
        assert said.count("\n") == 1


def test_structure_is_printed_layer_by_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "several_models.py").write_text(
        "from torch import nn\n"
        "def make():\n    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 2))\n"
        "def alone():\n    return nn.BatchNorm1d(4)\n"
        "def bare():\n    return nn.Linear(3, 4)\n"
    )
    torch.save({"step": torch.ones(3)}, tmp_path / "empty.pt")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["structure", "several_models:make"]) == 0
    assert capsys.readouterr().out == "●  0 (linear) → 1 (relu) → [2] → 3 (linear)\n"
    assert main(["structure", "several_models:alone", "--input", "8,4"]) == 0
    assert capsys.readouterr().out == "●  input → [(root)] → nothing\n"
    for arguments, why in (
        (["several_models:bare"], "has no BatchNorm layer"),
        (["several_models:alone"], "does not determine the input of the forward"),
        (["several_models:make", "--input", "8,4"], "RuntimeError: "),
        (["empty.pt"], "is a checkpoint"),
        (["nowhere:make"], "cannot import"),
    ):
        assert main(["structure", *arguments]) == 2
        said = capsys.readouterr().err
        assert why in said
        assert said.count("\n") == 1


def test_checkpoints_are_compared(checkpoints: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = [str(checkpoints / "sound.pt"), str(checkpoints / "spoiled.ckpt")]
    assert main(["compare", *pair]) == 1
    assert "1 finding came" in capsys.readouterr().out
    assert main(["compare", *pair[::-1]]) == 0
    assert main(["compare", pair[0], pair[0], "--json"]) == 0


def test_cold_statistics_are_judged_by_what_the_initial_ones_do() -> None:
    torch.manual_seed(0)
    model = net(momentum=0.01)
    with torch.no_grad():
        model[3].weight.mul_(0.3)
        for _ in range(200):
            model(torch.randn(8, 3, 8, 8))
    [finding] = [alert for alert in audit(model).alerts if alert.code == "BN303"]
    left, var = 0.99**200, norm(model, 1).running_var.double()
    data = (var - left) / (1 - left)
    assert "saved after 200 updates at momentum 0.01:" in finding.message
    factor = float(((var + 1e-5) / (data + 1e-5)).sqrt().sort().values[7])
    assert (
        f"in the median channel of 4 the standard deviation is {factor:.3g} times that of the data" in finding.message
    )
