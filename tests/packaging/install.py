"""Builds the wheel and the sdist, installs them where bnmonitor is not, and uses them: ``make test-package``.

    python -m tests.packaging.install [--full]

Packages that bnmonitor needs are lent from the environment that runs this; with ``--full`` they are installed anew,
with the versions of ``constraints.txt``.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

from tests.packaging.environments import ROOT, install, made, quiet

HERE = Path(__file__).parent


def built(folder: Path) -> tuple[Path, Path]:
    """Build the sdist, and the wheel from it, from a copy of what git knows; return the wheel and the sdist."""
    source = folder / "source"
    names = quiet("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
    for name in names:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    quiet(sys.executable, "-m", "build", "--outdir", folder / "dist", source)
    [wheel], [sdist] = (folder / "dist").glob("*.whl"), (folder / "dist").glob("*.tar.gz")
    return wheel, sdist


def checked(wheel: Path, sdist: Path) -> None:
    """Compare what is packed with what is in the repository."""
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    tracked = quiet("git", "ls-files", "--cached", "--others", "--exclude-standard", "bnmonitor", cwd=ROOT).splitlines()
    wanted = {name for name in tracked if (ROOT / name).is_file()}
    assert inside == wanted, f"not in the wheel: {sorted(wanted - inside)}; too much: {sorted(inside - wanted)}"
    with tarfile.open(sdist) as archive:
        packed = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"LICENSE", "README.md", "pyproject.toml", *wanted} <= packed, sorted(wanted - packed)
    print(f"{wheel.name}: {len(inside)} files, {wheel.stat().st_size // 1024} KiB; {sdist.name}: {len(packed)} names")
    print(quiet(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist).strip())


def typed(python: Path, folder: Path) -> None:
    """Check a user's file against what is installed."""
    shutil.copy(HERE / "user.py", folder / "program.py")
    checkers = {
        "mypy": [
            "-m",
            "mypy",
            "--strict",
            "--python-executable",
            python,
            "--cache-dir",
            folder / "cache",
            "program.py",
        ],
        "pyright": ["-m", "pyright", "--pythonpath", python, "program.py"],
    }
    for name, command in checkers.items():
        if find_spec(name) is None:
            print(f"{name} is not installed here")
            continue
        print(f"{name}: {quiet(sys.executable, *command, cwd=folder).strip().splitlines()[-1]}")


def as_the_readme_says(folder: Path, wheel: Path) -> None:
    """Run each line of the README that installs, with a clone in the place of its path."""
    import re

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [re.split(r"\s+#", line)[0].strip() for line in re.findall(r"^pip .*", text, re.MULTILINE)]
    assert len(lines) >= 3
    clone = folder / "path" / "to" / "bnmonitor"
    clone.parent.mkdir(parents=True)
    shutil.copytree(folder / "source", clone)
    (folder / "dist-readme").mkdir()
    python = made(folder / "readme")
    for line in lines:
        words = line.replace('"', "").split()
        # What is needed is lent, and not installed again.
        command = [python, "-m", *words, "--no-deps"] if "--no-deps" not in words else [python, "-m", *words]
        run = " ".join(map(str, command))
        done = subprocess.run(["bash", "-c", run], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        print(f"README: {line}")
    quiet(python, "-I", "-c", "import bnmonitor")


def main() -> None:
    """Do all of it."""
    parser = argparse.ArgumentParser(description="Build, install and use the package.")
    parser.add_argument("--full", action="store_true", help="install what bnmonitor needs anew")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel, sdist = built(folder)
        checked(wheel, sdist)
        for package in (wheel, sdist):
            python = made(folder / package.suffix.strip("."), lend=not given.full)
            if given.full:
                install(python, "--constraint", ROOT / "constraints.txt", f"{package}[audit]", dependencies=True)
            else:
                install(python, package)
            print(f"{package.name} in an environment without bnmonitor:")
            print(quiet(python, "-I", HERE / "use.py", cwd=folder).rstrip())
        typed(folder / "whl" / "bin" / "python", folder)
        as_the_readme_says(folder, wheel)


if __name__ == "__main__":
    main()
