"""Small helpers for the sentences bnmonitor says."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

DOCS = "https://github.com/bnmonitor/bnmonitor/blob/main/docs"
"""Where the manual lives; every link that bnmonitor prints begins here."""

CHECKPOINTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".pt2", ".onnx")
"""What the names of checkpoints end with."""

INDEX = ".index.json"
"""What the name of the index of a checkpoint in several files ends with, such as ``model.safetensors.index.json``."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known word, or nothing.

    >>> nearest("stale-statistic", ["stale-statistics", "small-batch"])
    "; did you mean 'stale-statistics'?"
    """
    close = get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def number(value: float) -> str:
    """Write a number with three significant digits and no noise.

    >>> number(0.123456), number(34000.0), number(2.0), number(1.2e-9), number(float("nan"))
    ('0.123', '3.4e+04', '2', '1.2e-09', 'nan')
    """
    if value != value or abs(value) in (float("inf"),):
        return str(value)
    return f"{value:.3g}"


def weight(value: float) -> str:
    """Write a weight between 0 and 1, such as a momentum, so that it shows how near to either it is.

    >>> weight(0.1), weight(0.99), weight(0.9997), weight(1.0)
    ('0.1', '0.99', '0.9997', '1')
    """
    return number(value) if not 0.5 < value < 1 else f"{1 - float(number(1 - value)):.9g}"


def thousands(whole: int) -> str:
    """Write a whole number, such as a step, thousands apart.

    >>> thousands(1170), thousands(-1)
    ('1 170', '-1')
    """
    return f"{whole:,}".replace(",", " ")


def count(amount: int, noun: str) -> str:
    """Write an amount with its noun, thousands apart.

    >>> count(1, "layer"), count(4800, "channel")
    ('1 layer', '4 800 channels')
    """
    return f"{thousands(amount)} {noun}" + ("" if amount == 1 else "s")


def listing(items: Iterable[object], most: int = 6) -> str:
    """Write the first few items, and count the rest.

    >>> listing(range(9), most=3)
    '0, 1, 2 (+6)'
    """
    every = [str(item) for item in items]
    rest = len(every) - most
    return ", ".join(every[:most]) + (f" (+{rest})" if rest > 0 else "")


def shorten(name: str, width: int) -> str:
    """Cut a name in the middle, where layer names say least.

    >>> shorten("backbone.layer3.0.block.bn2", 17)
    'backbone…lock.bn2'
    """
    if len(name) <= width:
        return name
    head = max(1, (width - 1) // 2)
    return f"{name[:head]}…{name[len(name) - (width - 1 - head) :]}"


def encodable(text: str) -> str:
    r"""Write what UTF-8 cannot encode, lone surrogates, as escapes, so that a file or a terminal takes a layer's name.

    >>> encodable("block\udc80.bn")
    'block\\udc80.bn'
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def printable(text: str) -> str:
    r"""Write control characters as escapes, so that a name from a model or a file can not steer a terminal.

    >>> printable("layer\x1b[2J.bn")
    'layer\\x1b[2J.bn'
    """
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def as_markdown(text: str) -> str:
    r"""Write text so that Markdown shows it as it is, on one line and without HTML.

    >>> as_markdown("conv_1 <b>")
    'conv\\_1 &lt;b&gt;'
    """
    text = printable(" ".join(text.split())).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for sign in "\\`*_[]|":
        text = text.replace(sign, f"\\{sign}")
    return text


def public(thing: object) -> list[str]:
    """Return the names of an object that are for its users, for ``__dir__``."""
    names = {*vars(thing), *(name for kind in type(thing).__mro__ for name in vars(kind))}
    return sorted(name for name in names if not name.startswith("_") or name.startswith("__"))
