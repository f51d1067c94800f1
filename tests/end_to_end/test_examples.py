import doctest
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bnmonitor.testing import check_rule, make_window

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, *arguments: str, cwd: Path) -> str:
    """Run an example as a user does, and return what it printed."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", "PYTHONIOENCODING": "utf-8", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def event_files(where: Path) -> list[Path]:
    return [path for path in where.rglob("events.out.tfevents.*") if path.stat().st_size]


def test_every_example_is_tested() -> None:
    tests = Path(__file__).read_text(encoding="utf-8")
    missing = [path.name for path in EXAMPLES.iterdir() if path.is_file() and f'"{path.name}"' not in tests]
    assert not missing


def test_lightning_ten_lines(tmp_path: Path) -> None:
    printed = run("lightning_ten_lines.py", cwd=tmp_path)
    assert "✗ momentum is too large · since step 0 · net.1\n" in printed
    assert "BatchNorm ✗ momentum is too large, since step 0 (net.1) · epoch 2" in printed
    assert "error: BN301 in net.1, open. Fix: call bnmonitor.remedies.set_momentum(model, momentum=0.01)" in printed
    assert event_files(tmp_path / "runs" / "lightning_ten_lines")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_plain_pytorch(tmp_path: Path) -> None:
    printed = run("plain_pytorch.py", "logs", cwd=tmp_path)
    assert "epoch 0: accuracy" in printed
    assert " · since step 23 · layer 1\n" in printed
    assert "the running mean of layer 1 last moved at step 22" in printed
    assert event_files(tmp_path / "logs")


def test_lightning_cli_and_the_configuration_that_it_saves(tmp_path: Path) -> None:
    config = str(EXAMPLES / "lightning_cli.yaml")
    printed = run("lightning_cli.py", "fit", "--config", config, "--trainer.default_root_dir", "logs", cwd=tmp_path)
    assert "the batch is too small · since step 0 · net.1" in printed
    assert event_files(tmp_path / "logs")
    [saved] = tmp_path.rglob("config.yaml")
    printed = run("lightning_cli.py", "fit", "--config", str(saved), "--data.batch_size", "64", cwd=tmp_path)
    assert "BatchNorm ✓ 1 layer" in printed


def test_custom_rule(tmp_path: Path) -> None:
    printed = run("custom_rule.py", "logs", cwd=tmp_path)
    assert "! MY001 gamma-out-of-band · since step" in printed
    assert "outside 0.6 to 2" in printed
    assert "gamma over the last 64 steps" in printed
    assert event_files(tmp_path / "logs")


def test_the_custom_rule_is_a_good_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    example = importlib.import_module("custom_rule")
    failed, tried = doctest.testmod(example)
    assert tried
    assert not failed
    check_rule(example.GammaOutOfBand(), make_window(channels=(4, 3), gamma=torch.randn(64, 7)))


def test_custom_sink(tmp_path: Path) -> None:
    printed = run("custom_sink.py", "logs", cwd=tmp_path)
    assert "last finite at step 9" in printed
    written = (tmp_path / "logs" / "alerts.md").read_text(encoding="utf-8").splitlines()
    assert written[0] == "# BatchNorm layers: 1"
    assert written[1].startswith("- [ ] **error** BN101 non-finite-statistics, `1`, since step 10: ")
    assert [line.split("**")[2].split()[0] for line in written[1:]] == ["BN101", "BN102"]


def test_fabric(tmp_path: Path) -> None:
    printed = run("fabric.py", "logs", cwd=tmp_path)
    assert "each process normalizes a batch that is too small · since step 0 · layer 1" in printed
    assert "2 processes normalize 8 values each, of one channel" in printed
    assert len(event_files(tmp_path / "logs")) == 1
