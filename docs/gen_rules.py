"""Write the manual of the rules and the causes from their docstrings: ``python docs/gen_rules.py [--check]``."""

from __future__ import annotations

import argparse
from pathlib import Path

from bnmonitor.diagnosis import CAUSES, cause_index, cause_page
from bnmonitor.rules import all_rules
from bnmonitor.rules.manual import index, page

DOCS = Path(__file__).parent


def pages() -> dict[Path, str]:
    """Return the text of every generated page by its path under ``docs``."""
    rules = all_rules()
    return {
        Path("rules.md"): index(rules),
        **{Path("rules", f"{rule.code}.md"): page(rule) for rule in rules},
        Path("causes.md"): cause_index(CAUSES),
        **{Path("causes", f"{cause.name}.md"): cause_page(cause) for cause in CAUSES},
    }


def stale(docs: Path = DOCS) -> list[Path]:
    """Return the pages that are missing, not what the docstrings say, or left from a rule or a cause that is gone."""
    wanted = pages()
    changed = [p for p, text in wanted.items() if not (docs / p).is_file() or (docs / p).read_text("utf-8") != text]
    there = [p.relative_to(docs) for folder in ("rules", "causes") for p in sorted((docs / folder).glob("*.md"))]
    left = [path for path in there if path not in wanted]
    return changed + left


def write(docs: Path = DOCS) -> list[Path]:
    """Bring the pages up to date, and return those that were not."""
    wanted, changed = pages(), stale(docs)
    for path in changed:
        if path in wanted:
            (docs / path).parent.mkdir(parents=True, exist_ok=True)
            (docs / path).write_text(wanted[path], encoding="utf-8", newline="\n")
        else:
            (docs / path).unlink()
    return changed


def main() -> int:
    """Write the pages, or say which are stale."""
    parser = argparse.ArgumentParser(description="Write the manual of the rules and the causes from their docstrings.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is stale")
    if parser.parse_args().check:
        found = [path.as_posix() for path in stale()]
        if found:
            print(f"stale: {', '.join(found)}; run `python docs/gen_rules.py`")
        return 1 if found else 0
    for path in write():
        print(f"docs/{path.as_posix()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
