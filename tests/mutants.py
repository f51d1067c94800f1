"""``python -m tests.mutants``: change the code at one place after the other, and see whether a test fails each time.

mutmut makes the mutants and runs the tests. It works in copies of the repository under ``build/mutants``.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORK = ROOT / "build/mutants"

PARTS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "recovery": (
        ("bnmonitor/measures/running_average.py", "bnmonitor/recording/recovery.py"),
        (
            "tests/measures/test_statistics.py",
            *(f"tests/recording/test_{n}.py" for n in ("momentum", "recovered_rows", "recovery")),
        ),
    ),
    "alerts": (
        ("bnmonitor/alerts/book.py", "bnmonitor/alerts/candidates.py", "bnmonitor/alerts/log.py"),
        ("tests/alerts",),
    ),
    "diagnosis": (("bnmonitor/diagnosis/diagnosis.py",), ("tests/diagnosis",)),
    "recorder": (
        ("bnmonitor/recording/recorder.py",),
        (
            *(f"tests/recording/test_{n}.py" for n in ("recorder", "recorder_state", "course", "updates")),
            *(f"tests/monitor/test_{n}.py" for n in ("checkpoints", "rollback")),
        ),
    ),
}
"""The files that are changed, and the tests that must notice, by the name of the part."""

CONFIGURATION = """
[tool.mutmut]
source_paths = ["bnmonitor"]
only_mutate = {files}
also_copy = ["docs", "README.md"]
pytest_add_cli_args_test_selection = {tests}
timeout_multiplier = 5.0
timeout_constant = 20.0
track_dependencies = false
use_git_change_detection = false
"""


def prepared(part: str) -> Path:
    """A fresh copy of the repository in which mutmut makes the mutants of a part."""
    folder = WORK / part
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("bnmonitor", "tests", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "README.md", folder)
    files, tests = (list(each) for each in PARTS[part])
    settings = (ROOT / "pyproject.toml").read_text("utf-8") + CONFIGURATION.format(files=files, tests=tests)
    (folder / "pyproject.toml").write_text(settings, "utf-8")
    (folder / "mutants").mkdir()  # Python never looks into a folder of its path that was missing when it started
    return folder


def mutants_of(folder: Path, file: str) -> list[str]:
    """The names of all mutants of a file, as mutmut numbers them."""
    os.chdir(folder)  # where mutmut looks for its settings
    from mutmut.configuration import reset_config
    from mutmut.mutation.file_mutation import mutate_file_contents

    reset_config()
    module = file.removesuffix(".py").replace("/", ".")
    return [f"{module}.{name}" for name in mutate_file_contents(file, Path(file).read_text("utf-8")).mutant_names]


def mutmut(folder: Path, *arguments: str) -> str:
    """Call mutmut in a copy, where the tests import the package with its mutants; return what it prints."""
    path = os.pathsep.join([str(folder / "mutants"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mutmut", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"mutmut {arguments[0]} failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done.stdout


def outcomes(folder: Path, chosen: Iterable[str]) -> dict[str, str]:
    """What became of the chosen mutants: ``"killed"``, ``"survived"``, ``"timeout"`` or ``"no tests"``."""
    lines = (line.strip().rpartition(": ") for line in mutmut(folder, "results", "--all", "true").splitlines())
    found = {name: status for name, _, status in lines}
    return {name: found[name] for name in chosen}


def main() -> int:
    """Run what the command line asks for; return 1 if a mutant survived."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"of {', '.join(PARTS)}; all without any")
    parser.add_argument("--sample", type=int, default=60, help="mutants of each file, chosen at random; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="of the choice")
    arguments = parser.parse_args()
    os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")
    survived = 0
    for part in arguments.parts:
        folder = prepared(part)
        made = {file: mutants_of(folder, file) for file in PARTS[part][0]}
        sizes = {file: min(arguments.sample or len(names), len(names)) for file, names in made.items()}
        chosen = {file: random.Random(arguments.seed).sample(made[file], sizes[file]) for file in made}
        mutmut(folder, "run", "--max-children", "1", *(name for names in chosen.values() for name in names))
        for file, names in chosen.items():
            became = outcomes(folder, names)
            print(f"{file}: {len(names)} of {len(made[file])} mutants, {dict(Counter(became.values()))}", flush=True)
            for name in sorted(name for name, status in became.items() if status not in ("killed", "timeout")):
                survived += 1
                print(f"\n{became[name]}: {name}\n{mutmut(folder, 'show', name)}", flush=True)
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main())
