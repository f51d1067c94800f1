"""What was looked at: a recorded run, a checkpoint or a model."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bnmonitor.gates.problem import Problem

_NUMBERED = re.compile(r"(epoch|step|version|iter|checkpoint)([=_-]?)\d+", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Target:
    """One thing that was looked at, with what was found.

    Attributes:
        name: Its name in the output.
        path: Its file or directory; None for a model that was made by a function.
        part: What follows the path in the name: the key in a checkpoint. None if the name is not that of a file.
        problems: What was found.
        skipped: What could not be checked, by name, with the reason.
        layers: How many layers it has.
        repeats: Whether the same input gives the same problems, as of a file, and not those of another training.
        error: Why it could not be looked at, in one sentence; empty if it could.
    """

    name: str
    path: Path | None = None
    part: str | None = None
    problems: tuple[Problem, ...] = ()
    skipped: dict[str, str] = field(default_factory=dict)
    layers: int = 0
    repeats: bool = False
    error: str = ""

    @property
    def place(self) -> str:
        """What a fingerprint is of, empty for a run: each training writes a new one.

        Files are relative to the working directory where they are below it, however they were written. Numbers of
        epochs, steps and versions do not count, so that the next checkpoint of a training has the same.

        >>> Target(name="./epoch=3-step=90.ckpt", path=Path("./epoch=3-step=90.ckpt"), part="", repeats=True).place
        'epoch=*-step=*.ckpt'
        """
        if not self.repeats:
            return ""
        name = self.name
        if self.path is not None and self.part is not None:
            full, here = Path(os.path.abspath(self.path)), Path.cwd()
            file = full.relative_to(here) if full.is_relative_to(here) else full
            name = file.as_posix() + self.part
        return _NUMBERED.sub(r"\1\2*", name)
