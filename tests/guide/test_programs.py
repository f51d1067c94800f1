"""The programs of the guide run as a reader would run them, on fewer digits."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from typing import Any

import pytest
import sklearn.datasets
import torch

from bnmonitor.guide import Page, all_pages
from tests.test_docs import ROOT, blocks

LINES = 12
"""The most lines of a program, without the setup."""


def setup() -> str:
    [body] = blocks(ROOT / "docs" / "guide.md")
    return body


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digits for a few steps only, which is what the time goes by."""
    pixels, labels = sklearn.datasets.load_digits(return_X_y=True)
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda **given: (pixels[:1120], labels[:1120]))


@pytest.mark.parametrize("page", all_pages(), ids=lambda page: page.name)
def test_the_program_of_a_page_runs(page: Page, few: None) -> None:
    [program] = re.findall(r"^```python\n(.*?)^```$", page.source, re.MULTILINE | re.DOTALL)
    assert len(program.splitlines()) <= LINES
    names: dict[str, Any] = {"__name__": "program"}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(compile(f"{setup()}\n\n{re.sub('epochs=[0-9]', 'epochs=1', program)}", page.name, "exec"), names)
    finally:
        torch.set_num_threads(threads)
    monitor = names["monitor"]
    assert monitor.failure == ""
    assert len(monitor.steps) >= 4
    assert printed.getvalue()
