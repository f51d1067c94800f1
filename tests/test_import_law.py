from __future__ import annotations

import ast
import json
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

import bnmonitor

PACKAGE = Path(bnmonitor.__file__).parent

# From left to right; a module imports only from groups on the left of its own.
ORDER: tuple[tuple[str, ...], ...] = (
    ("_version", "_text", "_lightning"),
    ("arguments",),
    ("completion",),
    ("verdict",),
    ("notify",),
    ("render",),
    ("screen",),
    ("history.catalogue", "history.schema"),
    ("history.encode", "history.source"),
    ("history.pool", "history.boxes", "history.run"),
    ("tensorboard_plugin.cache", "tensorboard_plugin.files", "tensorboard_plugin.wire"),
    ("tensorboard_plugin.plugin",),
    ("tensorboard_plugin.loader",),
    ("affine",),
    ("statistics", "segments", "moments"),
    ("courier",),
    ("sharding",),
    ("layers",),
    ("ledger", "structure", "samples"),
    ("facts",),
    ("frame", "needs", "runfacts"),
    ("checkpoint", "compiled", "hooks", "ring", "measures", "rates"),
    ("independence",),
    ("series",),
    ("baseline", "ranks"),
    ("recovery",),
    ("state",),
    ("standing", "averages"),
    ("dataflow",),
    ("placement",),
    ("tracing",),
    ("roles", "mixture", "probe", "groups"),
    ("gathering",),
    ("recorder", "activations", "observer", "bookkeeper", "heldout", "firstcall"),
    ("sampling", "keepsake"),
    ("probing",),
    ("watch",),
    ("rules.base",),
    ("rules.thresholds",),
    ("rules.*.*",),
    ("rules",),
    ("alerts",),
    ("blackbox",),
    ("summary",),
    ("sinks.base",),
    ("sinks.loggers", "sinks.detail", "sinks.thinning"),
    ("sinks.*",),
    ("sinks",),
    ("settings",),
    ("responder",),
    ("session",),
    ("monitor",),
    ("answers",),
    ("callback",),
    ("remedies._layers",),
    ("remedies.freezing", "remedies.population"),
    ("remedies.*",),
    ("remedies.callbacks",),
    ("remedies",),
    ("testing",),
    ("audit.forward",),
    ("audit.judge", "audit.find"),
    ("audit.show", "audit.drift"),
    ("audit",),
    ("report.read",),
    ("report.show", "report.compare", "report.page"),
    ("demo", "manual"),
    ("cli",),
    ("__main__",),
)
NOT_FOR_RULES = (
    "recorder",
    "activations",
    "observer",
    "heldout",
    "courier",
    "bookkeeper",
    "roles",
    "mixture",
    "probe",
    "hooks",
    "sampling",
    "probing",
    "sharding",
    "keepsake",
    "watch",
    "ring",
    "series",
    "compiled",
    "dataflow",
    "placement",
    "tracing",
    "gathering",
    "groups",
    "runfacts",
    "baseline",
    "checkpoint",
    "ranks",
)


def modules() -> dict[str, Path]:
    """Every module by its name within the package; a package that only documents a family is left out."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name and not (path.name == "__init__.py" and not imports(path)):
            found[name] = path
    return found


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports anywhere, with or without a condition."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if is_module(name) else str(node.module) for name in full}
    return {name for name in found if name == "bnmonitor" or name.startswith("bnmonitor.")}


def is_module(name: str) -> bool:
    path = PACKAGE.joinpath(*name.split(".")[1:])
    return name.startswith("bnmonitor.") and (path.is_dir() or path.with_suffix(".py").is_file())


def place(name: str) -> int:
    """Position of a module in the order; the most literal pattern wins."""
    matching = [
        (pattern.count("*"), at) for at, group in enumerate(ORDER) for pattern in group if fnmatchcase(name, pattern)
    ]
    assert matching, f"bnmonitor.{name} has no place in ORDER: put it where it belongs"
    return min(matching)[1]


@pytest.mark.parametrize("name", modules())
def test_a_stage_imports_only_from_stages_on_its_left(name: str) -> None:
    for target in imports(modules()[name]):
        if target == "bnmonitor":
            # The door holds every name, so it is open to what stands outside the house only.
            assert place(name) >= place("testing"), f"bnmonitor.{name} imports from the package itself"
            continue
        inside = target.removeprefix("bnmonitor.")
        assert place(inside) < place(name), f"bnmonitor.{name} must not import {target}"


@pytest.mark.parametrize("name", [n for n in modules() if n.split(".")[0] == "rules"])
def test_rules_know_nothing_of_how_the_numbers_were_read(name: str) -> None:
    assert not imports(modules()[name]) & {f"bnmonitor.{other}" for other in NOT_FOR_RULES}


def test_the_law_sees_the_modules_and_their_imports() -> None:
    found = modules()
    assert {"layers", "recorder", "watch", "monitor", "rules", "rules.base", "sinks.base", "callback"} <= found.keys()
    assert {"bnmonitor.layers", "bnmonitor.recovery"} <= imports(found["recorder"])
    assert "bnmonitor.baseline" in imports(found["watch"])
    assert place("rules.numerics.mean_explosion") == ORDER.index(("rules.*.*",))
    assert place("sinks.base") < place("sinks.console") < place("sinks")


def test_the_rules_tell_each_other_nothing() -> None:
    for name, path in modules().items():
        if name.startswith("rules.") and name != "rules.base":
            assert not [t for t in imports(path) if t.startswith("bnmonitor.rules") and t != "bnmonitor.rules.base"]


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
