"""Which names the code of a function mentions."""

from __future__ import annotations

import dis
import functools
import types
from dataclasses import dataclass

_ATTRIBUTES = frozenset({"getattr", "setattr", "delattr", "hasattr"})

_ANY_ATTRIBUTE = frozenset({"vars", "__dict__", "attrgetter", "methodcaller"})
"""Names of what reaches attributes whose names stand nowhere in the code."""

_ANY_VARIABLE = frozenset({"globals", "eval", "exec", "__import__", "import_module"})
"""Names of what reaches any variable of a Python module."""

_LOADS = ("LOAD_FAST", "LOAD_FAST_BORROW", "LOAD_FAST_CHECK", "LOAD_DEREF", "LOAD_GLOBAL", "LOAD_NAME", "LOAD_CLOSURE")


@dataclass(frozen=True)
class Mentioned:
    """What a function and the functions within it mention.

    Attributes:
        variables: Names of variables of the Python module.
        imported: Python modules that are imported.
        attributes: Names of attributes.
        any_attribute: Whether it may use attributes of other names, too.
        any_variable: Whether it may use variables of other names, too.
    """

    variables: frozenset[str]
    imported: frozenset[str]
    attributes: frozenset[str]
    any_attribute: bool
    any_variable: bool


@functools.lru_cache(maxsize=8192)
def mentioned(code: types.CodeType) -> Mentioned:
    """Return the names that code mentions."""
    variables: set[str] = set()
    imported: set[str] = set()
    attributes: set[str] = set()
    any_attribute = any_variable = False
    instructions = [
        each for each in dis.get_instructions(code) if each.opname not in ("CACHE", "PUSH_NULL", "EXTENDED_ARG")
    ]
    for at, each in enumerate(instructions):
        name = each.argval
        if each.opname.endswith(("_GLOBAL", "_NAME")) and each.opname != "IMPORT_NAME":
            variables.add(name)
            any_attribute |= name in _ANY_ATTRIBUTE
            any_variable |= name in _ANY_VARIABLE
            if name in _ATTRIBUTES:
                constant = _constant_name(instructions[at + 1 :])
                any_attribute |= constant is None
                attributes.add(constant or name)
        elif each.opname == "IMPORT_NAME":
            imported.add(name)
        elif each.opname in ("IMPORT_FROM", "LOAD_SUPER_ATTR") or each.opname.endswith(("_ATTR", "_METHOD")):
            attributes.add(name)
            any_attribute |= name in _ANY_ATTRIBUTE
            any_variable |= name == "import_module"  # others are methods: model.eval()
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            found = mentioned(inner)
            variables |= found.variables
            imported |= found.imported
            attributes |= found.attributes
            any_attribute |= found.any_attribute
            any_variable |= found.any_variable
    return Mentioned(frozenset(variables), frozenset(imported), frozenset(attributes), any_attribute, any_variable)


def _constant_name(rest: list[dis.Instruction]) -> str | None:
    """The name that ``getattr(x.y, "name")`` gives as a text, from the instructions after the load of ``getattr``."""
    if not rest or rest[0].opname not in _LOADS:
        return None
    at = 1
    while at < len(rest) and rest[at].opname == "LOAD_ATTR":
        at += 1
    if at < len(rest) and rest[at].opname == "LOAD_CONST" and isinstance(rest[at].argval, str):
        return str(rest[at].argval)
    return None
