"""The drawing code, shared by the TensorBoard tab and the HTML page, and the manual's pages that it shows."""

import re
from functools import cache
from hashlib import sha256
from pathlib import Path

from bnmonitor.viewer.manual import manual_page

__all__ = ["DIRECTORY", "files", "manual_page", "sent", "version"]

DIRECTORY = Path(__file__).parent
"""The directory of its modules."""

# A comment stands at the beginning of a line, or says a type: no text in the code looks like either.
_COMMENT = re.compile(r"(?:^[ \t]*/\*\*|/\*\* @).*?\*/", re.DOTALL | re.MULTILINE)


def files() -> tuple[Path, ...]:
    """Return the scripts and styles, in the order of their names."""
    return tuple(sorted(path for path in DIRECTORY.iterdir() if path.suffix in (".js", ".css")))


@cache
def version() -> str:
    """Return a short text that is another one as soon as a file is another one."""
    found = sha256()
    for path in files():
        found.update(path.read_bytes())
    return found.hexdigest()[:12]


@cache
def sent(path: Path) -> str:
    """Return a file as a browser gets it: without the comments, half of which are types, and without the indentation.

    Its lines are the same, so that an error names the line of the file. No text in the code goes over several lines.

    Args:
        path: A file of :data:`DIRECTORY`.
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".js":
        return text
    text = re.sub(r"^[ \t]*//.*$", "", text, flags=re.MULTILINE)
    bare = _COMMENT.sub(lambda found: "\n" * found[0].count("\n"), text)
    return re.sub(r"^[ \t]+|[ \t]+$", "", bare, flags=re.MULTILINE)
