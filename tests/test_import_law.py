from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from fnmatch import fnmatchcase
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import bnmonitor

PACKAGE = Path(bnmonitor.__file__).parent

ORDER = (
    # Free of torch: what is said of a run, how it looks, and how it is kept.
    *(
        "_version",
        "_settings",
        "_text",
        "_html",
        "_docstring",
        "_undisturbed",
        "limits",
        "results",
        "history",
        "gates",
        "display",
        "viewer",
        "runs",
        "report",
        "tensorboard_plugin",
        "symptoms",
        "guide",
    ),
    # Measuring.
    *("transfer", "layers", "window", "measures", "graph", "sampling", "distributed", "context", "recording"),
    # Judging, and saying so.
    *(
        "rules",
        "alerts",
        "diagnosis",
        "summary",
        "sinks",
        "notify",
        "monitor",
        "lightning",
        "integrations",
        "scripts",
        "remedies",
        "audit",
        "testing",
        "pytest_plugin",
        "cli",
    ),
    "__main__",
)
"""The rooms from left to right: a module imports only from its own room and from rooms on the left of it."""

OPEN = ("history", "scripts.finder", "report", "tensorboard_plugin", "rules.*.*", "integrations")
"""Modules that other rooms import by path; every other room is entered by its door, ``__init__``."""

FOR_RULES = {"_text", "limits", "results", "layers", "window", "measures"}
"""What a rule may know besides ``rules.base`` and ``rules.advice``."""


def modules() -> dict[str, Path]:
    """Every module by its name within the package, doors included."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = path
    return found


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports anywhere, with or without a condition; "" is the package itself."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if is_module(name) else str(node.module) for name in full}
    return {name.removeprefix("bnmonitor").lstrip(".") for name in found if name.split(".")[0] == "bnmonitor"}


def is_module(name: str) -> bool:
    path = PACKAGE.joinpath(*name.split(".")[1:])
    return name.startswith("bnmonitor.") and (path.is_dir() or path.with_suffix(".py").is_file())


def room(name: str) -> str:
    return name.split(".")[0]


def is_open(name: str) -> bool:
    return name == room(name) or any(fnmatchcase(name, pattern) or room(name) == pattern for pattern in OPEN)


def test_every_room_has_its_place_in_the_order() -> None:
    assert {room(name) for name in modules()} == set(ORDER)


@pytest.mark.parametrize("name", modules())
def test_a_room_imports_only_from_rooms_on_its_left_and_through_their_doors(name: str) -> None:
    for target in imports(modules()[name]):
        if target == "":
            # The package's own door holds every name, so it is open to what stands outside the house only.
            assert ORDER.index(room(name)) >= ORDER.index("testing"), f"{name} imports from the package itself"
        elif room(target) != room(name):
            assert ORDER.index(room(target)) < ORDER.index(room(name)), f"{name} must not import {target}"
            assert is_open(target), f"{name} reaches through a wall: import from bnmonitor.{room(target)}"


@pytest.mark.parametrize("name", sorted({room(name) for name in modules() if "." in name}))
def test_no_modules_of_a_room_import_each_other_in_a_circle(name: str) -> None:
    inside = {m: {t for t in imports(p) if t in modules()} for m, p in modules().items() if room(m) == name}
    inside.pop(name)  # the door imports all of them, and none of them the door
    assert all(name not in targets for targets in inside.values())
    TopologicalSorter({m: targets & inside.keys() for m, targets in inside.items()}).prepare()


@pytest.mark.parametrize("name", [n for n in modules() if fnmatchcase(n, "rules.*.*")])
def test_a_rule_knows_the_window_and_the_measures_and_no_other_rule(name: str) -> None:
    known = {target if room(target) == "rules" else room(target) for target in imports(modules()[name])}
    assert known <= FOR_RULES | {"rules.base", "rules.advice"}


@pytest.mark.parametrize("name", [n for n in modules() if "." not in n and modules()[n].name == "__init__.py"])
def test_a_door_says_what_the_room_is_and_sorts_what_it_hands_out(name: str) -> None:
    door = importlib.import_module(f"bnmonitor.{name}")
    assert door.__doc__
    names = getattr(door, "__all__", [])
    assert names or name in (*OPEN, "viewer")
    assert list(names) == sorted(names, key=lambda n: (not n.isupper(), not n[0].isupper(), n))
    assert [n for n in names if not hasattr(door, n)] == []


def test_the_law_sees_the_modules_and_their_imports() -> None:
    found = modules()
    assert {"layers", "recording.recorder", "monitor.monitor", "rules.base", "sinks.base", "results"} <= found.keys()
    assert {"layers", "recording.recovery"} <= imports(found["recording.tape"])
    assert "monitor" in imports(found["lightning.callback"])
    assert not is_open("recording.tape")
    assert is_open("rules.numerics.mean_explosion")


def loaded_by(statement: str) -> set[str]:
    """Top-level packages in a fresh interpreter after a statement."""
    code = f"{statement}\nimport sys, json\nprint(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent, timeout=300
    )
    return set(json.loads(out.stdout.splitlines()[-1]))


HEAVY = {"torch", "numpy", "lightning", "pytorch_lightning", "lightning_fabric", "tensorboard", "rich", "sklearn"}


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert not loaded_by("import bnmonitor; bnmonitor.__version__; dir(bnmonitor); bnmonitor.__all__") & HEAVY


def test_importing_the_monitor_imports_torch_and_no_framework() -> None:
    loaded = loaded_by("import bnmonitor.monitor")
    assert "torch" in loaded
    assert not loaded & (HEAVY - {"torch", "numpy"})


def test_every_public_name_resolves_and_no_other_does() -> None:
    assert sorted(bnmonitor.__all__) == list(bnmonitor.__all__)
    assert set(bnmonitor._HOMES) == set(bnmonitor.__all__)
    for name in bnmonitor.__all__:
        value = getattr(bnmonitor, name)
        assert value.__name__ == name
        assert value.__module__.startswith("bnmonitor.")
    assert set(bnmonitor.__all__) <= set(dir(bnmonitor))
    with pytest.raises(AttributeError, match="no attribute 'Monitr'"):
        bnmonitor.Monitr  # noqa: B018


def test_what_type_checkers_see_is_what_is_loaded() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    guarded = next(n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    seen = {
        alias.asname or alias.name: str(node.module).removeprefix("bnmonitor.")
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == bnmonitor._HOMES
