"""A docstring as a manual: its sections, as Markdown and as plain text for the terminal."""

from __future__ import annotations

import inspect
import re
import textwrap
from dataclasses import dataclass

PROMPTS = (">>>", "...")
"""How the lines of an example that is run begin."""

DEPTH = "    "
"""How lines of code begin that are shown, and not run."""

_ROLE = re.compile(r":\w+:`~?([^`]+)`")
"""A reference of Sphinx, such as to a function, which neither Markdown nor a terminal knows."""


@dataclass(frozen=True)
class Docstring:
    """The docstring of a rule or a cause.

    Attributes:
        summary: The first paragraph.
        sections: Title and body of each section, which begins with ``## title``.
    """

    summary: str
    sections: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, documented: object) -> Docstring:
        """Return the parts of the docstring of an object."""
        return cls.parse(inspect.cleandoc(documented.__doc__ or ""))

    @classmethod
    def parse(cls, text: str) -> Docstring:
        """Return the parts of the text of a docstring, without its indentation."""
        summary, *rest = re.split(r"^## +", text, flags=re.MULTILINE)
        parts = [part.partition("\n") for part in rest]
        return cls(summary.strip(), tuple((title.strip(), body.strip("\n").rstrip()) for title, _, body in parts))

    @property
    def sentence(self) -> str:
        """The summary in one line."""
        return as_line(self.summary)

    def shown(self) -> tuple[tuple[str, str], ...]:
        """The sections without those that consist of examples that are run, which say nothing to a user."""
        return tuple((title, body) for title, body in self.sections if not body or without_doctests(body))

    def to_list(self) -> list[dict[str, str]]:
        """Return the sections that a user reads as plain types."""
        return [{"title": title, "text": without_doctests(body)} for title, body in self.shown()]

    @property
    def markdown_summary(self) -> str:
        """The summary as Markdown."""
        return marked(self.summary)

    def summary_text(self, width: int) -> list[str]:
        """Return the lines of the summary for the terminal."""
        return wrapped(self.summary, width)

    @staticmethod
    def markdown(body: str) -> list[str]:
        """Return the lines of a section as Markdown, examples included."""
        lines: list[str] = []
        for block in blocks(body):
            code = is_doctest(block) or is_code(block)
            lines += [f"```python\n{textwrap.dedent(block)}\n```" if code else marked(_said(block)), ""]
        return lines

    @staticmethod
    def text(body: str, width: int) -> list[str]:
        """Return the lines of a section for the terminal, without the examples that are run; code is not wrapped."""
        lines: list[str] = []
        for block in blocks(without_doctests(body)):
            lines += [""] if lines else []
            lines += textwrap.indent(block, "  ").splitlines() if is_code(block) else wrapped(_said(block), width, "  ")
        return lines


def as_line(text: str) -> str:
    r"""Write a paragraph in one line, without marks.

    >>> as_line("Set ``momentum``\nto 0.1.")
    'Set momentum to 0.1.'
    """
    return " ".join(_ROLE.sub(r"\1", text).replace("``", "").split())


def blocks(body: str) -> list[str]:
    r"""Paragraphs and examples of a section; lines of code stay together over blank lines.

    >>> blocks("Wrong::\n\n    a = 1\n\n    b = 2\n\n>>> 1\n1")
    ['Wrong::', '    a = 1\n\n    b = 2', '>>> 1\n1']
    """
    found: list[list[str]] = [[]]
    for line in body.splitlines():
        starts = line.startswith(">>>") and found[-1] and not is_doctest(found[-1][0])
        if not line.strip() or starts:
            found.append([line] if starts else [])
        elif found[-1] or not (line.startswith(DEPTH) and len(found) > 1 and found[-2] and is_code(found[-2][0])):
            found[-1].append(line)
        else:
            found.pop()
            found[-1] += ["", line]
    return ["\n".join(block) for block in found if block]


def is_doctest(block: str) -> bool:
    """Return whether a block is an example that is run."""
    return block.startswith(PROMPTS)


def is_code(block: str) -> bool:
    """Return whether a block is code that is shown."""
    return block.startswith(DEPTH)


def without_doctests(body: str) -> str:
    """Return a section without the examples that are run, and without the sentences that introduce them."""
    every = blocks(body)
    kept = [
        block
        for block, after in zip(every, [*every[1:], ""], strict=True)
        if not is_doctest(block) and not (is_doctest(after) and block.endswith(":"))
    ]
    return "\n\n".join(kept)


def _said(block: str) -> str:
    """A paragraph without the mark that code follows."""
    return f"{block[:-2]}:" if block.endswith("::") else block


def wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """Wrap a paragraph."""
    return textwrap.wrap(as_line(text), width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def marked(text: str) -> str:
    """Write the marks of code as Markdown does."""
    return re.sub(r"``([^`]+)``", r"`\1`", _ROLE.sub(r"``\1``", text))
