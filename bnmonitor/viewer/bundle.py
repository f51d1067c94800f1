"""The modules of the viewer as one script: a browser that asked for each of them would wait for fifty answers."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

DIRECTORY = Path(__file__).parent
"""The directory of the modules."""

# A comment stands at the beginning of a line, or says a type: no text in the code looks like either.
_COMMENT = re.compile(r"(?:^[ \t]*/\*\*|/\*\* @).*?\*/", re.DOTALL | re.MULTILINE)
_IMPORT = re.compile(r'^import \{ (.+) \} from "\./(\w+)\.js";$', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:const|function|class) (\w+))", re.MULTILINE)


@cache
def sent(path: Path) -> str:
    """Return a file as a browser gets it: without the comments, half of which are types, and without the indentation.

    Its lines are the same. No text in the code goes over several lines.

    Args:
        path: A file of :data:`DIRECTORY`.
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".js":
        return text
    text = re.sub(r"^[ \t]*//.*$", "", text, flags=re.MULTILINE)
    bare = _COMMENT.sub(lambda found: "\n" * found[0].count("\n"), text)
    return re.sub(r"^[ \t]+|[ \t]+$", "", bare, flags=re.MULTILINE)


def styles() -> str:
    """Return the colors and the styles as one sheet."""
    return "".join(sent(DIRECTORY / name) for name in ("palette.css", "style.css"))


def tab() -> str:
    """Return all that the tab needs but its first module, as a module that exports each of its modules by name."""
    names = _ordered("app", "server", "tensorboard")
    exports = ", ".join(f"${name} as {name}" for name in names)
    return "".join(map(_wrapped, names)) + f"export {{ {exports} }};\n"


def page() -> str:
    """Return the module that draws a page with its numbers inside."""
    names = _ordered("report")
    return "".join(map(_wrapped, names[:-1])) + f"// {names[-1]}.js\n" + _linked(names[-1])[0]


def _ordered(*names: str) -> list[str]:
    """Return the modules and all that they import, each after those that it imports."""
    found: dict[str, None] = {}

    def visit(name: str) -> None:
        if name in found:
            return
        for _, other in _IMPORT.findall(sent(DIRECTORY / f"{name}.js")):
            visit(other)
        found[name] = None

    for name in names:
        visit(name)
    return list(found)


def _wrapped(name: str) -> str:
    """Return a module as a constant that holds what it exports; its name stands on the line before its first."""
    code, exports = _linked(name)
    return f"// {name}.js\nconst ${name} = (() => {{ {code}\nreturn {{ {', '.join(exports)} }}; }})();\n"


def _linked(name: str) -> tuple[str, list[str]]:
    """Return a module's code, which takes what it imports from the constants of others, and what it exports."""
    code = _IMPORT.sub(
        lambda found: f"const {{ {found[1].replace(' as ', ': ')} }} = ${found[2]};", sent(DIRECTORY / f"{name}.js")
    )
    return _EXPORT.sub("", code), _EXPORT.findall(code)
