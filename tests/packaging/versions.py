"""Uses bnmonitor with the oldest and the newest of what it needs, as far as it installs here: ``make test-versions``.

    python -m tests.packaging.versions [--torch WHEEL] [--tests]

torch is lent from the environment that runs this: an older one, or one for another Python, is used where a wheel of it
is given. A Python without torch runs what needs none. With ``--tests`` the rooms that touch a package run as well.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version as version_of
from pathlib import Path

from tests.packaging.environments import ROOT, install, made, quiet
from tests.packaging.install import HERE, built

NEEDED = ("pytorch-lightning", "lightning", "tensorboard", "rich")
"""Packages that are tried in two versions; torch is too large to be fetched."""

ROOMS = {
    "pytorch-lightning": ["tests/lightning"],
    "lightning": ["tests/lightning"],
    "tensorboard": ["tests/sinks", "tests/tensorboard_plugin", "tests/history"],
    "rich": ["tests/sinks", "tests/report"],
}
"""Tests that touch a package."""

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")


def oldest(package: str) -> str:
    """The oldest version that pyproject.toml admits."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    name = "lightning" if package == "lightning" else package
    found = re.search(rf'"{name}>=([\d.]+)"', text)
    assert found, package
    return found[1]


def trials() -> Iterator[tuple[str, list[str]]]:
    """Each trial: what it is called, and what is installed for it."""
    for package in NEEDED:
        version = oldest(package)
        yield f"{package} {version}, the oldest", [f"{package}=={version}"]
    yield "the oldest of all together", [f"{package}=={oldest(package)}" for package in NEEDED]
    yield "the newest of all together", ["--upgrade", *NEEDED]


def interpreters() -> Iterator[tuple[str, str]]:
    """Every Python that is at hand, by its version."""
    for version in PYTHONS:
        homes = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}"))
        found = [path for path in (shutil.which(f"python{version}"), *map(str, homes)) if path]
        works = [p for p in found if not subprocess.run([p, "-c", ""], capture_output=True, check=False).returncode]
        if works:
            yield version, works[0]
        else:
            print(f"Python {version}: not at hand")


def versions(python: Path) -> str:
    """What an environment holds of what bnmonitor needs."""
    code = (
        f"import importlib.metadata as m; print(*(f'{{n}} {{m.version(n)}}' for n in ('torch', *{NEEDED})), sep=', ')"
    )
    return quiet(python, "-I", "-c", code).strip()


def main() -> int:
    """Try all of them, and say which work."""
    parser = argparse.ArgumentParser(description="Use bnmonitor with the oldest and the newest of what it needs.")
    parser.add_argument("--torch", type=Path, metavar="WHEEL", help="another torch to try")
    parser.add_argument("--tests", action="store_true", help="run the tests that touch a package as well")
    given, failed = parser.parse_args(), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel, _ = built(folder)
        kept = folder / "torch.txt"
        kept.write_text(f"torch=={version_of('torch')}\n", encoding="utf-8")
        if given.torch is None:
            print("torch 2.3: not at hand (give a wheel with --torch)")
        extra = [(given.torch.name, [str(given.torch)])] if given.torch else []
        for number, (title, packages) in enumerate([*extra, *trials()]):
            try:
                python = made(folder / f"trial{number}")
                if not packages[0].endswith(".whl"):  # what it needs besides, but never another torch
                    packages = ["--constraint", str(kept), *packages]
                install(python, *packages, dependencies=True)
                install(python, wheel)
                print(f"{title}: {versions(python)}", flush=True)
                print(quiet(python, "-I", HERE / "use.py", cwd=folder).rstrip(), flush=True)
                if given.tests:
                    rooms = sorted({room for p in packages for room in ROOMS.get(p.split("=")[0], ())})
                    quiet(python, "-m", "pytest", "-q", "-x", *rooms, cwd=ROOT)
                    print(f"  {', '.join(rooms)}: pass", flush=True)
            except SystemExit as error:
                failed.append(title)
                print(f"{title}: FAILS\n{error}", flush=True)
        here = f"{sys.version_info[0]}.{sys.version_info[1]}"
        for version, interpreter in interpreters():
            if version == here:
                print(f"Python {version}: all of the above")
                continue
            try:
                python = made(folder / f"python{version}", interpreter, lend=False)
                install(python, "tensorboard", "rich", "numpy", dependencies=True)
                install(python, wheel)
                print(f"Python {version}, without torch, which is not at hand for it:")
                print(quiet(python, "-I", HERE / "use.py", "--no-torch", cwd=folder).rstrip(), flush=True)
            except SystemExit as error:
                failed.append(f"Python {version}")
                print(f"Python {version}: FAILS\n{error}", flush=True)
    print(f"failed: {', '.join(failed)}" if failed else "all work")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
