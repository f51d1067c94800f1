"""Environments in which bnmonitor is not yet: what it needs is lent from the environment that runs this."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def python_of(folder: Path) -> Path:
    """The interpreter of an environment."""
    return folder / "bin" / "python"


def quiet(*command: object, cwd: Path | None = None) -> str:
    """Run a command without the variables that would let it find this repository, and return what it prints."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment = {**kept, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "OMP_NUM_THREADS": "1"}
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=cwd, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout


def made(folder: Path, interpreter: str = sys.executable, *, lend: bool = True) -> Path:
    """Make an environment.

    Args:
        folder: Where.
        interpreter: The Python it is made of.
        lend: Whether it finds the packages of the environment that runs this, except for bnmonitor. An editable install
            is found by a ``.pth`` file, which is read in the environment itself only.

    Returns:
        Its interpreter.
    """
    quiet(interpreter, "-m", "venv", folder)
    python = python_of(folder)
    if lend:
        site = quiet(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
        lent = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
        Path(site, "lent.pth").write_text("\n".join(lent) + "\n", encoding="utf-8")
    missing = "import importlib.util, sys; sys.exit(importlib.util.find_spec('bnmonitor') is not None)"
    quiet(python, "-I", "-c", missing)
    return python


def install(python: Path, *what: object, dependencies: bool = False) -> None:
    """Install packages into an environment."""
    quiet(python, "-m", "pip", "install", "--quiet", *([] if dependencies else ["--no-deps"]), *what)
