"""Uses bnmonitor as it is installed, and nothing of this repository: ``python -I tests/packaging/use.py [--no-torch]``.

It prints a line for each thing that works, and ends with an error at the first that does not.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import io
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

PLUGIN = "bnmonitor"


def files() -> None:
    """Find everything that is not Python."""
    import bnmonitor

    package = Path(bnmonitor.__file__).parent
    wanted = {"py.typed", "viewer/index.js", "viewer/palette.css", "tensorboard_plugin/http_api.md"}
    wanted |= {"symptoms/texts/nan-after-hours.md", "symptoms/texts/setup.md"}
    missing = [name for name in sorted(wanted) if not (package / name).is_file()]
    assert not missing, missing
    assert len(list((package / "viewer").glob("*.js"))) >= 20
    assert len(list((package / "symptoms/texts").glob("*.md"))) >= 16


def entry_points() -> None:
    """Load the command and the tab."""
    found = importlib.metadata.entry_points()
    [tab] = [each for each in found.select(group="tensorboard_plugins") if each.name == PLUGIN]
    assert tab.load().__name__ == "BatchNormLoader"
    [command] = [each for each in found.select(group="console_scripts") if each.name == PLUGIN]
    assert callable(command.load())


def command_line(*arguments: str) -> str:
    """Run the command as a user does, and return what it prints."""
    program = Path(sys.executable).with_name("bnmonitor")
    done = subprocess.run([str(program), *arguments], capture_output=True, encoding="utf-8", check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def without_torch() -> None:
    """Use what needs no torch."""
    assert command_line("--version").startswith("bnmonitor ")
    assert command_line("diagnose", "nan after hours").startswith("NaN after hours")
    assert len(json.loads(command_line("diagnose", "--json"))["symptoms"]) == 14
    assert command_line("guide", "learning-rate").startswith("How high can the learning rate be?")
    assert "torch" not in sys.modules


def with_torch() -> None:
    """Use the commands that know the rules."""
    assert "stale-statistics" in command_line("explain", "BN304")
    assert len(json.loads(command_line("rules", "--json"))["rules"]) > 50


def plain(log_dir: Path) -> None:
    """Train in a loop under watch: the fault is found, and nothing else."""
    import torch
    from torch import nn

    from bnmonitor import Monitor

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8, momentum=0.99), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), Monitor(model, optimizer=optimizer, log_dir=log_dir) as monitor:
        for _ in range(30):
            x = torch.randn(32, 8)
            loss = nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(loss=loss)
    assert [incident.cause for incident in monitor.incidents] == ["momentum"]
    assert "momentum is too large" in printed.getvalue()
    torch.save(model.state_dict(), log_dir / "model.ckpt")


def lightning(name: str) -> None:
    """Train with a Trainer of one of the two packages."""
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    from bnmonitor import BatchNormMonitor

    pl = importlib.import_module(name)

    class Net(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8, momentum=0.99), nn.Linear(8, 2))

        def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch: list[torch.Tensor], _: int) -> None:
            self.net(batch[0])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.05)

    data = DataLoader(TensorDataset(torch.randn(320, 8), torch.zeros(320).long()), batch_size=32)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        monitor = BatchNormMonitor()
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 5}
        trainer = pl.Trainer(max_epochs=2, accelerator="cpu", callbacks=[monitor], default_root_dir=folder, **quiet)
        trainer.fit(Net(), data, data)
        assert "momentum" in [incident.cause for incident in monitor.incidents]
        assert "bn_health" in trainer.callback_metrics
        assert list(Path(folder).rglob("events.out.*"))


def read_again(log_dir: Path) -> None:
    """Report on the run, and judge its checkpoint."""
    assert "momentum is too large" in command_line("report", str(log_dir))
    page = command_line("report", str(log_dir), "--html", "-")
    assert page.startswith("<!doctype html>") or "<html" in page[:200]
    assert json.loads(command_line("report", str(log_dir), "--json"))["runs"]
    assert "1 layer, 8 channels: nothing wrong found" in command_line("audit", str(log_dir / "model.ckpt"))


def tab(log_dir: Path) -> None:
    """Serve the tab from TensorBoard."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = [sys.executable, "-I", "-m", "tensorboard.main", "--logdir", str(log_dir), "--port", str(port)]
    server = subprocess.Popen([*program, "--host", "127.0.0.1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                address = f"http://127.0.0.1:{port}/data"
                plugins = json.loads(urllib.request.urlopen(f"{address}/plugins_listing", timeout=5).read())
                break
            except OSError:
                time.sleep(0.2)
        else:
            raise AssertionError("TensorBoard has not started")
        module = plugins[PLUGIN]["loading_mechanism"]["module_path"].rsplit("/", 1)[-1]
        script = urllib.request.urlopen(f"{address}/plugin/{PLUGIN}/{module}", timeout=20).read()
        assert b"import" in script or b"export" in script
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    """Use everything, or what needs no torch."""
    parser = argparse.ArgumentParser(description="Use bnmonitor as it is installed.")
    parser.add_argument("--no-torch", action="store_true", help="only what needs no torch")
    given = parser.parse_args()
    steps = [("its files", files), ("its entry points", entry_points), ("commands without torch", without_torch)]
    with tempfile.TemporaryDirectory() as folder:
        log_dir = Path(folder, "run")
        if not given.no_torch:
            steps += [
                ("commands with torch", with_torch),
                ("a loop", lambda: plain(log_dir)),
                ("pytorch_lightning", lambda: lightning("pytorch_lightning")),
                ("lightning.pytorch", lambda: lightning("lightning.pytorch")),
                ("a run read again", lambda: read_again(log_dir)),
                ("the tab", lambda: tab(log_dir)),
            ]
        for name, step in steps:
            if name == "lightning.pytorch" and importlib.util.find_spec("lightning") is None:
                continue
            step()
            print(f"  {name}: works", flush=True)


if __name__ == "__main__":
    main()
