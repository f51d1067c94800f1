"""What is raised of a file that cannot be judged."""

from __future__ import annotations


class UnreadableError(ValueError):
    """A checkpoint cannot be read; the message is one sentence that says why."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, at most 200 characters."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return first if len(first) <= 200 else first[:199] + "…"
