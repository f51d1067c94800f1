"""Every block of code in the documentation runs, or is in the one list of those that cannot, with the reason."""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bnmonitor import Monitor
from bnmonitor.cli import main
from bnmonitor.cli.arguments import parser
from tests.test_docs import FENCE, PAGES, ROOT, name_of

WALKED = (
    "README.md",
    *(
        f"docs/{name}.md"
        for name in (
            *("quickstart", "getting-started", "recipes", "faq", "interface", "how-it-works", "extending", "remedies"),
            *("notifications", "audit", "ci", "format", "tensorboard", "distributed"),
        )
    ),
)
"""Pages whose Python is run block by block, in order, with the names of :func:`names`."""

OPTIONAL = {"wandb": "wandb", "MLFlowLogger": "mlflow", "mlflow": "mlflow", "optuna": "optuna", "hydra": "hydra"}
"""A word that a block has which needs a package of the extra ``recipes``, and the package."""

NOT_RUN = {
    ("docs/distributed.md", "deepspeed.initialize"): "needs DeepSpeed; tests/distributed/test_zero.py runs the same",
    ("docs/recipes.md", "#SBATCH"): "needs a cluster with SLURM; its syntax and its command are checked",
    (
        "docs/integrations.md",
        "python",
    ): "need other libraries; tests/integrations runs it (make test-integrations)",
    ("docs/integrations.md", "console"): "start scripts of the reader; tests/scripts/test_run.py starts others",
    ("docs/rules", "python"): "lines of a program of which the rest is the reader's; their names are checked",
    ("docs/causes", "python"): "lines of a program of which the rest is the reader's; their names are checked",
}
"""Blocks that are not run: the page or its folder, a text of the block or its language, and why."""

NOT_RUN_COMMANDS = {
    "make": "makes environments; the tests check that the target exists",
    "pip": "installs; tests/packaging/install.py runs these lines (make test-package)",
    "pytest": "runs the tests; the tests check that the path exists",
    "tensorboard": "serves until it is stopped; tests/tensorboard_plugin runs it",
}
"""Commands of console blocks that are not run, and why."""


class Block(NamedTuple):
    """One fenced block of a page."""

    page: str
    number: int
    language: str
    body: str

    @property
    def folder(self) -> str:
        return str(Path(self.page).parent)

    @property
    def runner(self) -> str:
        """Which test runs it; empty if none does."""
        python = self.language == "python"
        if self.folder == "docs/symptoms":
            return "tests/symptoms/test_programs.py"
        if python and (self.folder == "docs/guide" or self.page == "docs/guide.md"):
            return "tests/guide/test_programs.py"
        if python and self.body.startswith(">>>"):
            return "the doctests of test_docs.py"
        if any(page in (self.page, self.folder) and mark in (self.language, *self._marks()) for page, mark in NOT_RUN):
            return "the list"
        if python and self.page in WALKED:
            return "test_the_blocks_of_a_page_run_in_order"
        if self.language in ("", "console") and all(map(_is_command, self.lines())):
            return "test_commands_that_are_shown_run"
        return "a test of its own" if (self.page, self.language) in SHOWN else ""

    def _marks(self) -> list[str]:
        return [mark for _, mark in NOT_RUN if mark in self.body]

    def lines(self) -> list[str]:
        """The commands of a block of commands, without what is said of them."""
        found = (re.split(r"\s{2,}(?=\S)|\s#\s", line.removeprefix("$ "))[0].strip() for line in self.body.splitlines())
        return [line for line in found if line]


def _is_command(line: str) -> bool:
    return line.split()[0] in {"bnmonitor", "cat", ".venv/bin/pip", *NOT_RUN_COMMANDS}


BLOCKS = [
    Block(name_of(page), number, language, body)
    for page in PAGES
    for number, (language, body) in enumerate(FENCE.findall(page.read_text(encoding="utf-8")), 1)
]

SHOWN = {
    ("docs/getting-started.md", "text"),
    ("docs/quickstart.md", "text"),
    ("docs/report.md", "text"),
    ("docs/interface.md", "text"),
    ("docs/interface.md", "yaml"),
    ("docs/ci.md", "text"),
    ("docs/ci.md", "toml"),
    ("docs/ci.md", "yaml"),
    ("docs/notifications.md", "yaml"),
    ("docs/notifications.md", "json"),
    ("docs/recipes.md", "yaml"),
}
"""What is shown beside code, and has a test below or in test_docs.py."""


def blocks(page: str, language: str = "python") -> list[str]:
    return [block.body for block in BLOCKS if (block.page, block.language) == (page, language)]


def shape(text: str) -> str:
    """A text without its numbers, its bars and the width of its columns, which differ from run to run."""
    text = re.sub(r"[▁▂▃▄▅▆▇█ ]*[▁▂▃▄▅▆▇█]", " ▁", text)
    text = re.sub(r"(?<![\w.])[-+]?\d[\d ]*(\.\d+)?(e[-+]?\d+)?(?![A-Za-z_.])", "#", text)
    return "\n".join(" ".join(re.sub(r"# ?(?=σ|%|$)", "#", line).split()) for line in text.splitlines()).strip()


def test_every_block_is_run_or_has_a_reason() -> None:
    assert [f"{block.page} {block.number} ({block.language})" for block in BLOCKS if not block.runner] == []
    assert len(BLOCKS) > 400


def test_the_list_of_what_is_not_run_holds_nothing_that_is_gone() -> None:
    for page, mark in NOT_RUN:
        assert any(page in (block.page, block.folder) and mark in (block.language, *block._marks()) for block in BLOCKS)
    used = {line.split()[0] for block in BLOCKS if block.language in ("", "console") for line in block.lines()}
    assert set(NOT_RUN_COMMANDS) <= used | {"tensorboard"}


# -- Python ------------------------------------------------------------------------------------------------------------


def _network() -> nn.Module:
    import lightning.pytorch as pl

    class Net(pl.LightningModule):
        """A network that Lightning can train, and a loop as well."""

        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(20, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.05)

    return Net()


def _plain() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What a page takes for granted: a network, data, and the files of a run."""
    import lightning.pytorch as pl
    import pytorch_lightning

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    torch.manual_seed(0)
    for package in (pl, pytorch_lightning):
        few = functools.partial(package.Trainer, accelerator="cpu", enable_progress_bar=False)
        monkeypatch.setattr(package, "Trainer", lambda few=few, **given: few(**{"max_epochs": 1, **given}))
    return {
        "torch": torch,
        "nn": nn,
        "generator": _plain(),
        "critic": _plain(),
        "loader": DataLoader(TensorDataset(torch.randn(640, 20), torch.zeros(640).long()), batch_size=32),
        "val_loader": DataLoader(TensorDataset(torch.randn(64, 20), torch.zeros(64).long()), batch_size=32),
        "loss_of": nn.functional.cross_entropy,
        "send_to_chat": print,
        "Trainer": pl.Trainer,
    }


def _beforehand(page: str, names: dict[str, Any], tmp_path: Path) -> None:
    """Give a page what only it needs."""
    lightning = page in ("README.md", "docs/quickstart.md")
    names["model"] = _network() if lightning else _plain()
    names["net"] = _plain()
    names["optimizer"] = torch.optim.SGD(
        (names["net"] if page == "docs/quickstart.md" else names["model"]).parameters(), lr=0.05
    )
    if page in ("docs/format.md", "docs/tensorboard.md"):
        record(tmp_path / "lightning_logs" / "version_0")
        shutil.copytree(tmp_path / "lightning_logs", tmp_path / "logs")
    if page == "docs/recipes.md":
        Path("conf").mkdir()
        Path("conf/callbacks.yaml").write_text(blocks(page, "yaml")[0], encoding="utf-8")
    if page == "docs/distributed.md":
        import torch.distributed as dist
        from lightning.fabric import Fabric
        from torch.nn.parallel import DistributedDataParallel

        from bnmonitor import BatchNormMonitor

        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
        names |= {"rank": 0, "fabric": Fabric(accelerator="cpu", devices=1)}
        names |= {
            "DistributedDataParallel": DistributedDataParallel,
            "Monitor": Monitor,
            "BatchNormMonitor": BatchNormMonitor,
        }
        names["optimizer"] = torch.optim.SGD(names["net"].parameters(), lr=0.05)


@pytest.mark.parametrize("page", WALKED)
def test_the_blocks_of_a_page_run_in_order(
    page: str, names: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stem = Path(page).stem
    names["__name__"] = stem
    monkeypatch.setitem(sys.modules, stem, type(sys)(stem))  # dataclasses look their module up
    _beforehand(page, names, tmp_path)
    left_out, ran = [], 0
    try:
        for block in BLOCKS:
            if block.page != page or block.language != "python" or block.runner == "the list":
                continue
            missing = {package for word, package in OPTIONAL.items() if word in block.body and not find_spec(package)}
            if missing:
                left_out += sorted(missing)
                continue
            exec(compile(block.body, f"{page} {block.number}", "exec"), names)
            ran += 1
    finally:
        if torch.distributed.is_initialized() and page == "docs/distributed.md":
            torch.distributed.destroy_process_group()
    assert ran or left_out, f"no block of {page} is run here"
    if left_out:
        pytest.skip(f"all but the blocks that need {', '.join(dict.fromkeys(left_out))} have run")


ROOTS = {"torch": "torch", "nn": "torch.nn", "F": "torch.nn.functional", "bnmonitor": "bnmonitor"}
"""What lines of a program call, and the module it is."""


def test_the_lines_of_a_program_name_what_exists() -> None:
    importlib.import_module("bnmonitor.remedies")
    checked = 0
    for block in BLOCKS:
        if block.language == "python" and block.folder in ("docs/rules", "docs/causes") and ">>>" not in block.body:
            for node in ast.walk(ast.parse(block.body)):
                if isinstance(node, ast.Attribute):
                    dotted = ast.unparse(node)
                    root, *rest = dotted.split(".")
                    if root in ROOTS and all(part.isidentifier() for part in rest):
                        assert _resolves(ROOTS[root], rest), f"{block.page}: {dotted}"
                        checked += 1
    assert checked > 100


def _resolves(module: str, parts: list[str]) -> bool:
    thing: Any = importlib.import_module(module)
    for part in parts:
        with contextlib.suppress(ImportError, AttributeError):
            importlib.import_module(f"{thing.__name__}.{part}")
        if not hasattr(thing, part):
            return False
        thing = getattr(thing, part)
    return True


# -- commands ----------------------------------------------------------------------------------------------------------


def record(path: Path, lr: float = 0.05, steps: int = 40) -> str:
    """Train a little under watch, and return what was printed."""
    torch.manual_seed(0)
    net = nn.Module()
    net.net = nn.Sequential()
    for i in range(1, 6):
        for name, layer in (("linear", nn.Linear(20, 20, bias=False)), ("bn", nn.BatchNorm1d(20)), ("relu", nn.ReLU())):
            net.net.add_module(f"{name}{i}", layer)
    net.net.add_module("last", nn.Linear(20, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), Monitor(net, optimizer=optimizer, log_dir=path) as monitor:
        for step in range(steps):
            x = torch.randn(64, 20)
            loss = nn.functional.cross_entropy(net.net(x), (x[:, 0] > 0).long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(loss=loss)
            if step % 20 == 19:
                monitor.end_epoch(step // 20)
    torch.save(net.state_dict(), path.parent / "model.ckpt")
    return printed.getvalue()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with all that the commands of the documentation name."""
    root = tmp_path_factory.mktemp("commands")
    record(root / "run" / "version_3")
    shutil.copytree(root / "run", root / "lightning_logs")
    shutil.copytree(root / "run" / "version_3", root / "lightning_logs" / "version_2")
    for name in ("RUN", "BEFORE", "AFTER", "before", "after", "RUNS", "runs"):
        shutil.copytree(root / "run" / "version_3", root / name)
    (root / "known.json").write_text('{"schema": 1, "known": {}}')
    for name in ("checkpoints", "models"):
        (root / name).mkdir()
    for name in ("checkpoints/model.ckpt", "models/model.ckpt", "model.ckpt", "before.pt", "after.pt"):
        shutil.copy(root / "run" / "model.ckpt", root / name)
    [events] = (root / "RUN").glob("events.out.tfevents.*")
    shutil.copy(events, root)
    (root / "package").mkdir()
    (root / "package/__init__.py").write_text("")
    model = "nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())"
    (root / "package/models.py").write_text(f"from torch import nn\n\n\ndef make():\n    return {model}\n")
    return root


COMMANDS = sorted({line for block in BLOCKS if block.language in ("", "console", "bash") for line in block.lines()})


def _runs_here(line: str) -> bool:
    """Whether a command ends here; ``bnmonitor run`` becomes the script that it starts (tests/scripts)."""
    return line.startswith(("bnmonitor", "cat")) and not line.startswith("bnmonitor run ")


@pytest.mark.parametrize("command", [line for line in COMMANDS if _runs_here(line)])
def test_commands_that_are_shown_run(command: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    if any(sign in command for sign in "|*>") and "'" not in command:
        run = f'bnmonitor() {{ "{sys.executable}" -m bnmonitor "$@"; }}; set -o pipefail; {command}'
        done = subprocess.run(["bash", "-c", run], capture_output=True, text=True, check=False)
        assert done.returncode in (0, 1), done.stderr
        assert done.stdout
        return
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), encoding="utf-8")):
        assert main(shlex.split(command)[1:]) in (0, 1)


def test_other_commands_name_what_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in map(shlex.split, COMMANDS):
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= targets
        if words[0] == "pytest":
            assert (ROOT / words[1]).exists()


def test_commands_within_sentences_are_understood() -> None:
    found = set()
    for page in (page for page in PAGES if page.name != "CHANGELOG.md"):  # which names what is gone as well
        text = FENCE.sub("", page.read_text(encoding="utf-8"))
        found |= set(re.findall(r"`(bnmonitor [^@`\n]+)`", text))
    assert len(found) > 15
    for command in sorted(found):
        words = [word for word in shlex.split(re.sub(r"\[.*?\]|\.\.\.|[<>|].*", "", command))[1:] if word]
        if words and words != ["--help"] and not words[0].startswith("-"):
            parsed = parser().parse_args(_complete(words))
            assert parsed.command == words[0]


def _complete(words: list[str]) -> list[str]:
    """Give a command that a sentence only names what it needs."""
    needs = {"report": ["RUN"], "compare": ["A", "B"], "audit": ["M"], "structure": ["M"], "explain": ["BN304"]}
    given = [word for word in words[1:] if not word.startswith("-")]
    more = ["RUN", "--csv"] if words == ["export"] else needs.get(words[0], []) if not given else []
    return words + more


# -- what is shown -----------------------------------------------------------------------------------------------------


def test_the_incident_of_getting_started_is_what_its_program_prints(
    names: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    exec(compile(blocks("docs/getting-started.md")[0], "getting-started", "exec"), names)
    shown = blocks("docs/getting-started.md", "text")[0]
    assert shape(shown) in shape(capsys.readouterr().out)
    assert shown == blocks("docs/quickstart.md", "text")[0]


def test_the_lines_after_an_epoch_are_what_is_printed(tmp_path: Path) -> None:
    healthy, ill = blocks("docs/getting-started.md", "text")[1].splitlines()
    assert shape(healthy) in shape(record(tmp_path / "healthy" / "run")).splitlines()
    assert shape(ill) in shape(record(tmp_path / "ill" / "run", lr=100.0)).splitlines()


def test_the_lines_of_a_change_are_what_is_printed() -> None:
    from rich.console import Console

    from bnmonitor.display import incident_change
    from bnmonitor.results import Incident, Severity
    from tests.histories import an_alert, an_incident

    detail = "batch variance ×4.09e+05 and γ ×13.4 in 19 steps"
    stored = an_incident(an_alert("bn", 0), title="learning rate 3 is too high", detail=detail, last_step=19)
    now = Incident.from_dict(stored)
    before = replace(now, severity=Severity.WARNING)
    screen = Console(file=io.StringIO(), width=120, color_system=None)
    screen.print(incident_change(now, before))
    screen.print(incident_change(replace(now, state="resolved", last_step=79), now))
    assert screen.file.getvalue() == blocks("docs/getting-started.md", "text")[2]  # type: ignore[attr-defined]


def test_a_report_prints_what_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "99")
    record(tmp_path / "run", lr=10.0, steps=20)
    main(["report", str(tmp_path / "run")])
    golden = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests/sinks/golden").glob("*-80.txt"))
    cut = re.sub(r"learning-rate-[\w-]*(…|, .*)", "learning-rate-too-high", capsys.readouterr().out)
    printed = {line.replace("–", "#") for line in shape(f"{cut}\n{golden}").splitlines()}
    [report], table = blocks("docs/report.md", "text"), blocks("docs/getting-started.md", "text")[3]
    shown = shape(
        re.sub(r"^(?:layer[\w.]+|bn)(?= +[✗!] )|(?<=first )bn", "net.bn1", f"{report}\n{table}", flags=re.MULTILINE)
    )
    for line in shown.splitlines():
        row = line.replace("variance-explosion", "learning-rate-too-high")
        assert row in printed or "!" in row, row  # a row of a warning has the columns of one of an error


def test_the_tree_of_a_structure_is_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    class Block(nn.Module):
        def __init__(self, stride: int) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
            self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.relu(self.bn1(self.conv1(x)))
            return torch.relu(x + self.bn2(self.conv2(y)))

    stem = [nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()]
    model = nn.Sequential(*stem, Block(1), Block(1))
    with Monitor(model, sinks=[]) as monitor:
        model(torch.randn(8, 3, 8, 8)).sum().backward()
        monitor.step()
    shown = blocks("docs/interface.md", "text")[0].splitlines()
    assert str(monitor.structure()).splitlines()[: len(shown)] == shown


def test_what_pyproject_ignores_are_rules(tmp_path: Path) -> None:
    from bnmonitor.gates import read_suppressions
    from bnmonitor.rules import choose

    (tmp_path / "pyproject.toml").write_text(blocks("docs/ci.md", "toml")[0])
    found = read_suppressions(tmp_path)
    assert found.ignore
    assert choose(ignore=(*found.ignore, *(word for words in found.in_layers.values() for word in words)))


def test_the_workflow_and_the_hook_call_what_exists() -> None:
    workflow, config = map(yaml.safe_load, blocks("docs/ci.md", "yaml"))
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    [audit] = [shlex.split(command)[1:] for command in commands if command.startswith("bnmonitor")]
    assert str(parser().parse_args(audit).sarif) == workflow["jobs"]["audit"]["steps"][-1]["with"]["sarif_file"]
    [hook] = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    [used] = config["repos"][0]["hooks"]
    assert used["id"] == hook["id"]
    parsed = parser().parse_args([*shlex.split(hook["entry"])[1:], *used["args"], "a.ckpt", "b.safetensors"])
    assert parsed.what == ["a.ckpt", "b.safetensors"]
    assert all(re.search(hook["files"], name) for name in parsed.what)


def test_the_message_of_a_failed_test_is_an_incident() -> None:
    title, first, detail, fix, last = blocks("docs/ci.md", "text")[0].splitlines()
    assert "test_training" in title
    assert re.fullmatch(r"✗ .* · since step \d+ · .*", first)
    assert detail.startswith("  batch variance ×")
    assert re.fullmatch(r"  fix: .* · bnmonitor explain BN704", fix)
    assert last.startswith("bnmonitor report ")


def test_what_a_webhook_sends_has_the_fields_that_are_shown() -> None:
    from bnmonitor.notify import Webhook
    from bnmonitor.results import Alert
    from tests.histories import an_alert

    shown = json.loads(blocks("docs/notifications.md", "json")[0])
    alert = Alert.from_dict(an_alert("bn", 0))
    sent = Webhook(url="https://example.org/hook", payload="json")._body(alert, withheld=2)
    assert set(shown) == set(sent) == {"version", "host", "alert", "withheld"}
    assert set(shown["alert"]) - {"..."} <= set(sent["alert"])
    assert (shown["version"], sent["withheld"]) == (sent["version"], 2)


def test_the_actions_of_a_configuration_are_accepted() -> None:
    yaml = pytest.importorskip("yaml")
    from bnmonitor import BatchNormMonitor

    [body] = blocks("docs/notifications.md", "yaml")
    given = yaml.safe_load(body)["on_alert"]["error"]
    BatchNormMonitor(on_alert={"error": [each for each in given if isinstance(each, str)]})
    assert [each["class_path"] for each in given if isinstance(each, dict)] == ["bnmonitor.notify.Webhook"]


def test_the_script_for_slurm_is_a_script() -> None:
    [script] = blocks("docs/recipes.md", "bash")
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    assert "bnmonitor report lightning_logs --fail-on error" in script
