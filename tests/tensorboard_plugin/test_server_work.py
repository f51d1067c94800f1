"""How much the server of the tab does for an answer: lists, packings and thinnings, counted."""

from __future__ import annotations

import gzip
import json
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import Client
from werkzeug.wrappers import Response

from bnmonitor.history import thin
from bnmonitor.tensorboard_plugin import ahead
from bnmonitor.tensorboard_plugin.cache import Cache
from bnmonitor.tensorboard_plugin.slices import columns
from tests.histories import Writer, course
from tests.tensorboard_plugin.test_server import NAMES, Asked, plain, unbundled


@pytest.fixture
def growing(tmp_path: Path) -> tuple[Asked, Callable[[int], None]]:
    """A run of ten frames, and what writes it on up to a step."""
    writer = Writer(tmp_path / "run", NAMES, 4)
    writer.frames(range(10), course(3, 10))
    writer.flush()
    tab = Asked(tmp_path)

    def grow(to: int) -> None:
        writer.frames(range(to - 5, to), course(3, 5))
        writer.flush()
        tab.reload()

    return tab, grow


def counted(monkeypatch: pytest.MonkeyPatch, where: Any, name: str) -> list[str]:
    """Count the calls of a function."""
    calls: list[str] = []
    real = getattr(where, name)
    monkeypatch.setattr(where, name, lambda *a, **k: (calls.append(name), real(*a, **k))[1])
    return calls


def first(tab: Asked, **query: Any) -> tuple[int, int]:
    """The last steps of the first answer: in the list of the runs, and in the slice."""
    index, _, slice_, _ = unbundled(tab.ask("/first", **query))
    (length,) = struct.unpack("<I", slice_[:4])
    return json.loads(index)["runs"][0]["last"], json.loads(slice_[4 : 4 + length])["ends"][-1]


def test_the_first_answer_takes_the_list_that_was_begun_with_the_frame_of_the_tab_once(
    growing: tuple[Asked, Callable[[int], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tab, grow = growing
    first(tab)
    lists = counted(monkeypatch, tab.plugin._context.data_provider, "list_tensors")
    tab.plugin.frontend_metadata()
    assert first(tab) == (9, 9)
    assert len(lists) == 1
    grow(15)
    lists = counted(monkeypatch, tab.plugin._context.data_provider, "list_tensors")
    assert first(tab) == (14, 14), "a list is given out once"
    assert len(lists) == 1


def test_a_list_that_is_old_or_could_not_be_made_is_made_anew(
    growing: tuple[Asked, Callable[[int], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tab, grow = growing
    now = [0.0]
    monkeypatch.setattr(ahead.time, "monotonic", lambda: now[0])
    tab.plugin.frontend_metadata()
    grow(15)
    now[0] = 2 * ahead.FRESH
    assert first(tab) == (14, 14)
    provider = tab.plugin._context.data_provider
    tab.plugin._context.data_provider = None
    tab.plugin.frontend_metadata()
    assert tab.plugin._ahead.take() is None
    tab.plugin.frontend_metadata()
    tab.plugin._context.data_provider = provider
    assert first(tab) == (14, 14)


def test_an_answer_that_is_as_before_is_thinned_and_packed_once(
    growing: tuple[Asked, Callable[[int], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tab, grow = growing
    packed, thinned = counted(monkeypatch, gzip, "compress"), []
    real = thin.pool
    monkeypatch.setitem(
        columns.__kwdefaults__,
        "pool",
        lambda values, *a, **k: (thinned.append(values.shape), real(values, *a, **k))[1],
    )
    answers = [plain(tab.ask("/first", bins=5)) for _ in range(3)]
    assert len(set(answers)) == 1
    assert len(packed) == 1
    assert thinned.count((len(NAMES), 10)) == 1
    grow(15)
    assert first(tab, bins=5) == (14, 14)
    assert len(packed) == 2
    assert thinned.count((len(NAMES), 15)) == 1
    tab.slice("/slice", run="run", statistic="health", bins=5, **{"from": 0, "to": 4})
    assert thinned[-1] == (len(NAMES), 6), "a part of the run is not kept"


def test_what_is_written_is_sent_without_waiting(growing: tuple[Asked, Callable[[int], None]]) -> None:
    tab, _ = growing

    class Connection:
        def __init__(self) -> None:
            self.options: list[tuple[int, int, int]] = []

        def setsockopt(self, *option: int) -> None:
            self.options.append(option)  # type: ignore[arg-type]
            if len(self.options) > 1:
                raise OSError

    for route in ("/runs", tab.plugin.frontend_metadata().es_module_path):
        connection = Connection()
        for _ in range(2):
            answer = Client(tab.apps[route], Response).get(route, environ_base={"werkzeug.socket": connection})
            assert answer.status_code == 200
        assert connection.options[0] == (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def test_the_cache_counts_what_is_packed_with_what_it_was_made_of() -> None:
    cache, made = Cache(most=10_000), []

    def get(name: str, state: bytes) -> Any:
        return cache.get(name, state, lambda: made.append(name) or (b"x" * 2000, "kind"))

    for name in ("a", "b", "a", "b"):
        get(name, b"y" * 4000)
    assert made == ["a", "b", "a", "b"], "two do not fit"
    made.clear()
    for name in ("c", "d", "c", "d"):
        get(name, b"y" * 1000)
    assert made == ["c", "d"]
