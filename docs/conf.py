"""The site, built by Sphinx from the same Markdown pages that a browser of the repository reads: ``make docs``.

Sphinx, because the docstrings are written for it, and because its search is a script that works from a file; Furo,
because it reads well in light and dark, wide and narrow, and loads nothing from elsewhere. The pages themselves hold
no directives: what only the site has, its navigation, the examples' source and the reference, is added here.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

from bnmonitor._text import DOCS as ADDRESS  # noqa: E402
from bnmonitor._version import __version__  # noqa: E402
from bnmonitor.guide import all_pages  # noqa: E402
from bnmonitor.symptoms.pages import ORDER  # noqa: E402

project = "bnmonitor"
author = "The bnmonitor authors"
copyright = author  # noqa: A001 -- Sphinx asks for this name
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
root_doc = "index"
exclude_patterns = ["_site", "build"]

myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # the pages of rules begin with what a rule is, and their examples skip a level

html_theme = "furo"
html_title = "bnmonitor"
html_static_path = ["_site"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}
pygments_style = "friendly"
pygments_dark_style = "github-dark"

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .gp, .go"

autodoc_class_signature = "separated"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_use_ivar = True
napoleon_custom_sections = [("Class attributes", "Attributes")]

# A reference within the package has to be right. Other projects have manuals of their own, which are not loaded.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!bnmonitor\.).*")]

NAVIGATION = {
    "What is wrong with my training?": ["Find it by what you see <symptoms>", *(f"symptoms/{name}" for name in ORDER)],
    "Begin": ["quickstart", "getting-started", "recipes", "integrations", "examples", "faq"],
    "BatchNorm in practice": ["What is said, measured <guide>", *(f"guide/{page.name}" for page in all_pages())],
    "What it says": ["causes", "rules", "remedies", "notifications"],
    "Reading a run": ["tensorboard", "report", "audit", "ci", "format"],
    "How it works": ["how-it-works", "layer-kinds", "training", "distributed"],
    "How good it is": ["detection", "performance", "scaling"],
    "Reference": ["interface", "api", "extending"],
    "The project": ["architecture", "contributing", "security", "deprecation", "CHANGELOG"],
}
"""The pages in the order in which they stand beside every page."""

FOLDERS = {"causes": "causes/*", "rules": "rules/*"}
"""Pages that list a folder, whose pages stand below them in the navigation."""

COPIES = {"contributing": ROOT / "CONTRIBUTING.md", "security": ROOT / "SECURITY.md"}
"""Pages of the site whose text is a file outside the documentation."""

API = {
    "bnmonitor": (
        ("Watching", ("BatchNormMonitor", "Monitor")),
        ("What is said", ("Incident", "Alert", "Severity", "Summary", "AlertError", "BatchNormWarning")),
        ("Rules and sinks of your own", ("Rule", "Finding", "Sink", "LayerTable", "all_rules", "default_rules")),
        ("Recorded runs", ("open", "Runs", "Run")),
    ),
    "bnmonitor.remedies": (
        ("Functions", ("recalibrate", "freeze", "thaw", "set_momentum", "parameter_groups", "convert_sync",
                       "restore_last_finite")),
        ("Callbacks", ("Freeze", "Recalibrate", "Recalibration")),
    ),
    "bnmonitor.notify": (("Notifications", ("Webhook",)),),
    "bnmonitor.sinks": (("Sinks", ("Console", "TensorBoard", "JsonLines", "Loggers", "Run")),),
    "bnmonitor.window": (("What a rule sees", ("Window", "Sample", "Moments", "Facts", "Ledger", "Structure")),),
    "bnmonitor.testing": (
        ("Windows", ("make_window", "make_sample", "drawn_window", "diagnose")),
        ("Contracts", ("check_rule", "RecordingSink")),
    ),
}  # fmt: skip
"""What is public, by module and title."""


def toctrees(name: str) -> str:
    """Return what adds the navigation to a page."""
    if name == root_doc:
        trees = [
            f"```{{toctree}}\n:hidden:\n:caption: {title}\n\n" + "\n".join(pages) + "\n```"
            for title, pages in NAVIGATION.items()
        ]
        return "\n\n" + "\n\n".join(trees) + "\n"
    if name in FOLDERS:
        return f"\n\n```{{toctree}}\n:hidden:\n:glob:\n:titlesonly:\n\n{FOLDERS[name]}\n```\n"
    return ""


def api() -> str:
    """Return the reference, which autodoc fills from the docstrings."""
    parts = []
    for module, groups in API.items():
        parts.append(f"\n## {module}\n")
        for title, names in groups:
            parts.append(f"\n### {title}\n" if len(groups) > 1 else "")
            parts += [f"```{{eval-rst}}\n{_directive(module, name)}\n```\n" for name in names]
    return "\n".join(parts)


def _directive(module: str, name: str) -> str:
    from importlib import import_module

    thing = getattr(import_module(module), name)
    if isinstance(thing, type):
        return f".. autoclass:: {module}.{name}\n   :members:\n   :show-inheritance:"
    return f".. autofunction:: {module}.{name}"


def sources(text: str) -> str:
    """Return the examples, each below a heading of its own."""
    parts = []
    for path in sorted((ROOT / "examples").iterdir()):
        if path.suffix in (".py", ".yaml"):
            language = {".py": "python"}.get(path.suffix, "yaml")
            parts.append(f"## {path.name}\n\n```{language}\n{path.read_text(encoding='utf-8')}```\n")
    return text + "\n" + "\n".join(parts)


def link(found: re.Match[str]) -> str:
    """Return where a link out of the documentation leads on the site."""
    target, anchor = found[1], found[2] or ""
    for name, path in COPIES.items():
        if target == path.name:
            return f"]({name}.md{anchor})"
    if target.startswith("examples/"):
        return f"](examples.md#{re.sub(r'[^a-z0-9_]', '', Path(target).name)})"
    if target.startswith("docs/"):
        return f"]({target.removeprefix('docs/')}{anchor})"
    kind = "tree" if (ROOT / target).is_dir() else "blob"
    return f"]({ADDRESS.removesuffix('/blob/main/docs')}/{kind}/main/{target}{anchor})"


def framed(found: re.Match[str]) -> str:
    """Return a program, or what is said of it, in a frame that shows which it is."""
    kind = {"W": "wrong", "R": "right", "b": "said"}[found[0][0]]
    return f"````{{container}} example {kind}\n{found[0]}````\n"


def both(found: re.Match[str]) -> str:
    """Return a picture of the guide or of a symptom as it is in the light and in the dark."""
    return "\n\n".join(
        f"```{{image}} {found[2]}-{mode}.svg\n:alt: {found[1]}\n:class: only-{mode}\n```" for mode in ("light", "dark")
    )


def read(app: Any, name: str, content: list[str]) -> None:
    """Give Sphinx a page, with what only the site has."""
    text = content[0]
    if name in COPIES:
        text = re.sub(r"\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)", link, COPIES[name].read_text(encoding="utf-8"))
    if name.startswith(("guide/", "symptoms/")):
        text = re.sub(r"^!\[([^\]]*)\]\((\S+)-light\.svg\)$", both, text, flags=re.MULTILINE)
    if not name.startswith("guide/"):
        text = re.sub(r"\]\(\.\./(?!rules/|causes/|symptoms/)([^)#\s]+)(#[^)\s]*)?\)", link, text)
    text = re.sub(r"^(?:Wrong|Right|bnmonitor says)\b[^\n]*:\n\n```\w+\n.*?^```\n", framed, text, flags=re.M | re.S)
    if name == "examples":
        text = sources(text)
    if name == "api":
        text += api()
    content[0] = text + toctrees(name)


def resolve(app: Any, env: Any, node: Any, text: Any) -> Any:
    """Lead a reference to the name by which a thing is public; what is not public and exists is not a link."""
    target = node.get("reftarget", "")
    if not target.startswith("bnmonitor."):
        return None
    domain, parts = env.get_domain("py"), target.split(".")
    for start in range(1, len(parts)):
        tail = ".".join(parts[start:])
        for module in API:
            if f"{module}.{tail}" in domain.objects:
                document = node.get("refdoc", "api")
                found = f"{module}.{tail}"
                return domain.resolve_xref(env, document, app.builder, node["reftype"], found, node, text)
    return text if _exists(parts) else None


def _exists(parts: list[str]) -> bool:
    from importlib import import_module

    for end in range(len(parts), 0, -1):
        try:
            thing: Any = import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for name in parts[end:]:
            thing = getattr(thing, name, None) if not hasattr(thing, "__dataclass_fields__") else name
        return thing is not None
    return False


def setup(app: Any) -> None:
    """Tell Sphinx of the changes."""
    app.connect("source-read", read)
    app.connect("missing-reference", resolve)
