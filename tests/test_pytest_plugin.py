"""``pytest --bnmonitor``, in sessions of pytest within this one."""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

pytest_plugins = "pytester"

# pytest forgets what an inner session has imported, and these cannot be imported twice.
for name in ("torch._dynamo", "pytorch_lightning", "bnmonitor.scripts.finder", "bnmonitor.scripts.watched"):
    importlib.import_module(name)

TRAINING = """
import torch
from torch import nn

def fit(rate, steps=40, monitor=None):
    torch.manual_seed(0)
    layers = [nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)]
    model = nn.Sequential(*layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    if monitor is not None:
        monitor = monitor(model, optimizer=optimizer, sinks=[], on_alert="log").start()
    for _ in range(steps):
        x = torch.randn(32, 8)
        loss = nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if monitor is not None:
            monitor.step(loss=loss)
"""

LIGHTNING = """
import pytorch_lightning as pl
import torch
from torch import nn

class Module(pl.LightningModule):
    def __init__(self, rate):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8))
        self.rate = rate

    def training_step(self, batch, i):
        return nn.functional.cross_entropy(self.body(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.rate)

def fit(rate, *callbacks):
    pl.seed_everything(0, verbose=False)
    x = torch.randn(384, 8)
    data = torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", callbacks=list(callbacks), **quiet)
    trainer.fit(Module(rate), torch.utils.data.DataLoader(data, 32))
"""


def inner(pytester: pytest.Pytester, text: str, *arguments: str) -> pytest.RunResult:
    """The result of a file of tests, with the plugin as it is installed, or by name where it is not."""
    pytester.makepyfile(text)
    installed = any(each.value == "bnmonitor.pytest_plugin" for each in entry_points(group="pytest11"))
    named = [] if installed else ["-p", "bnmonitor.pytest_plugin"]
    quiet = ["-p", "no:randomly", "-p", "no:xdist", "-p", "no:logging"]
    # In CI the last lines repeat the whole message.
    return pytester.runpytest_inprocess(*named, *quiet, "-rN", *arguments)


def test_a_plain_training_fails_with_the_three_lines_of_its_incident(pytester: pytest.Pytester) -> None:
    done = inner(
        pytester,
        TRAINING
        + """
def test_sound(bnmonitor):
    fit(0.05)
    assert bnmonitor.incidents == ()

def test_wild(bnmonitor):
    fit(50.0)

def test_not_asked_for():
    fit(50.0)

def test_its_own_monitor(bnmonitor):
    from bnmonitor import Monitor
    fit(50.0, monitor=Monitor)

def test_its_own_assertion(bnmonitor):
    fit(50.0)
    assert bnmonitor.monitors == ()
""",
        "--bnmonitor",
    )
    done.assert_outcomes(passed=2, failed=3)
    said = done.stdout.str()
    assert said.count("✗ learning rate 50 is too high · since step 0 · 2 of 2 layers, first layer 1") == 3
    assert said.count("  fix: lower the learning rate to about") == 3
    assert "bnmonitor report /" in said
    assert "assert bnmonitor.monitors == ()" in said


def test_a_lightning_training_fails_with_and_without_the_callback(pytester: pytest.Pytester) -> None:
    done = inner(
        pytester,
        LIGHTNING
        + """
def test_sound(bnmonitor):
    fit(0.05)

def test_wild(bnmonitor):
    fit(50.0)

def test_wild_with_the_callback(bnmonitor):
    from bnmonitor import BatchNormMonitor
    fit(1000.0, BatchNormMonitor(sinks=[]))
    assert len(bnmonitor.monitors) == 1
""",
        "--bnmonitor",
        "-W",
        "ignore",
    )
    done.assert_outcomes(passed=1, failed=2)
    assert done.stdout.str().count("· bnmonitor explain BN") >= 2


def test_without_the_option_nothing_happens(pytester: pytest.Pytester) -> None:
    text = TRAINING + "\ndef test_wild(bnmonitor):\n    fit(50.0)\n    assert bnmonitor.incidents == ()\n"
    inner(pytester, text).assert_outcomes(passed=1)


def test_pyproject_and_the_level_say_what_fails(pytester: pytest.Pytester) -> None:
    text = TRAINING + "\ndef test_wild(bnmonitor):\n    fit(50.0)\n"
    pytester.makepyprojecttoml("[tool.bnmonitor]\nignore = ['learning-rate-too-high', 'BN1', 'BN702']\n")
    inner(pytester, text, "--bnmonitor").assert_outcomes(passed=1)
    pytester.makepyprojecttoml("[tool.bnmonitor]\nignored = []\n")
    done = inner(pytester, text, "--bnmonitor", "--bnmonitor-fail-on", "error")
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["*has no setting 'ignored'; did you mean 'ignore'?*"])


def test_it_says_when_nothing_was_watched(pytester: pytest.Pytester) -> None:
    done = inner(pytester, "def test_one():\n    pass\n", "--bnmonitor")
    done.assert_outcomes(passed=1)
    done.stdout.fnmatch_lines(["bnmonitor: no test has the fixture `bnmonitor`, so nothing was watched"])
    assert "nothing was watched" not in inner(pytester, "def test_one():\n    pass\n").stdout.str()


def test_a_session_that_does_not_use_it_loads_nothing() -> None:
    code = "import sys, bnmonitor.pytest_plugin; print({'torch', 'numpy', 'rich', 'tensorboard'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=3000)
    assert done.stdout.strip() == "set()"
