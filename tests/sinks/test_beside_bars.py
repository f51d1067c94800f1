"""Printing beside the progress bars of a plain loop: tqdm, rich and fastprogress, in a terminal and in a log."""

from __future__ import annotations

import io
import subprocess
import sys
import types

import pytest
import rich
import rich.console
import rich.progress

from bnmonitor.display import show

tqdm = pytest.importorskip("tqdm")


class Terminal(io.StringIO):
    """What a terminal of text would show: a carriage return begins the line anew."""

    def isatty(self) -> bool:
        return True

    @property
    def lines(self) -> list[str]:
        found = []
        for line in self.getvalue().split("\n"):
            shown = ""
            for part in line.split("\r"):
                shown = part + shown[len(part) :]
            found.append(shown.rstrip())
        return found


def a_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Standard output and standard error of this test; a fixture would set them before pytest does."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(rich, "_console", rich.console.Console(width=60, force_terminal=True, color_system=None))
    return screen


def test_above_a_bar_of_tqdm_the_line_is_whole_and_the_bar_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = a_terminal(monkeypatch)
    with tqdm.tqdm(total=9, desc="train", file=terminal, ncols=60) as bar:
        bar.update(3)
        bar.refresh()
        show("BatchNorm ✗ something")
        assert terminal.lines[0] == "BatchNorm ✗ something"
        assert terminal.lines[1].startswith("train:  33%")
        assert len(terminal.lines) == 2
    show("after the bar")
    assert terminal.lines[-2] == "after the bar"


def test_a_bar_in_a_log_file_gets_its_line_ended_once(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stdout", log)
    monkeypatch.setattr(rich, "_console", rich.console.Console(width=60))
    with tqdm.tqdm(total=9, desc="train", file=log, mininterval=0) as bar:
        bar.update(3)
        show("first")
        show("second")
        bar.update(3)
        show("third")
    lines = log.getvalue().split("\n")
    assert [line for line in lines if "train" not in line] == ["first", "second", "third", ""]
    assert "\x1b" not in log.getvalue()


def test_a_bar_that_is_switched_off_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    bar = tqdm.tqdm(total=9, disable=True)
    show("a line")
    bar.close()
    assert capsys.readouterr().out == "a line\n"


def test_tqdm_is_never_imported() -> None:
    code = "import sys, bnmonitor.display as d; d.show('a line'); print([m for m in sys.modules if 'tqdm' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout == "a line\n[]\n"


def test_a_bar_of_rich_with_a_console_of_its_own_is_not_torn(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = a_terminal(monkeypatch)
    own = rich.console.Console(file=terminal, width=60, force_terminal=True, color_system=None)
    with rich.progress.Progress(console=own, auto_refresh=False) as progress:
        progress.add_task("train", total=9)
        progress.refresh()
        before = len(terminal.getvalue())
        show("BatchNorm ✗ something")
        written = terminal.getvalue()[before:]
    assert "BatchNorm ✗ something\n" in written
    assert written.index("\x1b[2K") < written.index("BatchNorm") < written.index("train")


def test_the_line_of_fastprogress_is_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = a_terminal(monkeypatch)
    monkeypatch.setitem(sys.modules, "fastprogress", types.ModuleType("fastprogress"))
    terminal.write("\r |███-----| 33%")
    show("BatchNorm ✗ something")
    assert terminal.getvalue() == "\r |███-----| 33%\r\x1b[KBatchNorm ✗ something\n"
