"""The drawing code, shared by the TensorBoard tab and the HTML page, and the manual's pages that it shows."""

from functools import cache
from hashlib import sha256

from bnmonitor.viewer.bundle import DIRECTORY, page, sent, styles, tab
from bnmonitor.viewer.manual import manual_page

__all__ = ["files", "manual_page", "page", "styles", "version"]


@cache
def files() -> dict[str, str]:
    """Return the text of each file of the tab, by the name that a browser asks for."""
    return {"index.js": sent(DIRECTORY / "index.js"), "tab.js": tab(), "tab.css": styles()}


@cache
def version() -> str:
    """Return a short text that is another one as soon as a file is another one."""
    return sha256("".join(files().values()).encode()).hexdigest()[:12]
