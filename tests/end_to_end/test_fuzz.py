"""Readers meet damaged and hostile files, and the tab's server hostile requests: an answer or one sentence, never more.

``BNMONITOR_FUZZ=20 python -m pytest tests/end_to_end/test_fuzz.py`` tries twenty times as many.
"""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rich.console
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bnmonitor.cli import main
from bnmonitor.history import black_boxes as boxes
from bnmonitor.history import encode
from bnmonitor.history.schema import ABOUT, FACTS, FRAME, Schema, alert_tag
from bnmonitor.report.compare import compare
from bnmonitor.report.compare import terminal as compared
from bnmonitor.report.page import page
from bnmonitor.report.read import NoHistoryError, find, read
from bnmonitor.report.show import markdown, terminal
from bnmonitor.tensorboard_plugin.wire import LONGEST, BadRequestError, Query
from tests.histories import METRICS, Writer, an_alert, course, write
from tests.tensorboard_plugin.test_server import Asked, plain

MORE = int(os.environ.get("BNMONITOR_FUZZ", "1"))
NAMES = ("stem", "body.\x1b[2J\x07", "head")
fuzz = settings(
    max_examples=20 * MORE,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)

numbers = st.one_of(
    st.integers(-(10**30), 10**30), st.floats(), st.sampled_from([0, -1, 2**31, 2**63, 2**64, 1e308, float("inf")])
)
words = st.one_of(st.text(max_size=8), st.sampled_from(["\x1b]0;x\x07", "\u202e", "[red]", "<b>", "../..", ""]))
plains = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, words),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=3)),
    max_leaves=6,
)
texts = st.one_of(
    plains.map(json.dumps),
    st.text(max_size=20),
    st.just("[" * 100_000),
    st.just('{"a":' * 50_000),
    st.just("9" * 5000),
)


def damaged(data: st.DataObject, whole: bytes) -> bytes:
    """Some bytes changed, and the end cut off."""
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(0, 6))):
        at = data.draw(st.integers(0, len(changed) - 1))
        changed[at : at + data.draw(st.integers(1, 4))] = data.draw(st.binary(min_size=0, max_size=8))
        if not changed:
            return b""
    return bytes(changed[: data.draw(st.integers(0, len(changed)))] if data.draw(st.booleans()) else changed)


def read_all(path: Path) -> str:
    """Everything that bnmonitor reads from a history, or the sentence that refuses it."""
    try:
        reports = read(path)
        history, names = find(path)
    except NoHistoryError as error:
        return str(error)
    file = io.StringIO()
    console = rich.console.Console(file=file, width=100)
    console.print(terminal(reports))
    console.print(compared(compare((history, names[0]), (history, names[0]))))
    json.dumps([each.to_dict() for each in reports], allow_nan=False)
    markdown(reports)
    page(history, names[0]).encode("utf-8")
    return file.getvalue()


CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    directory = tmp_path_factory.mktemp("whole")
    write(directory, NAMES, range(0, 60, 10), sick=(1,), channels=3)
    [file] = directory.glob("*tfevents*")
    return file.read_bytes()


@fuzz
@given(data=st.data())
def test_a_damaged_event_file_gives_a_report_or_a_sentence(whole: bytes, tmp_path: Path, data: st.DataObject) -> None:
    file = tmp_path / "events.out.tfevents.0"
    file.write_bytes(damaged(data, whole))
    assert not CONTROL.search(read_all(file))


@fuzz
@given(data=st.data())
def test_a_history_may_contain_anything(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    directory = tmp_path_factory.mktemp("hostile")
    with Writer(directory, NAMES, 3) as writer:
        writer.frames([0, 10], course(3, 2))
        alert = an_alert(NAMES[1], 10)
        for name in data.draw(st.lists(st.sampled_from(sorted(alert)), max_size=3)):
            alert[name] = data.draw(plains)
        writer.add(10, data.draw(st.floats()), text(alert_tag("hostile"), json.dumps(alert)))
        writer.add(10, 1e9, text(alert_tag("worse"), data.draw(texts)))
        writer.add(10, 1e9, text(ABOUT, json.dumps({"state": data.draw(plains), "skipped": data.draw(plains)})))
        facts = [{"name": NAMES[1], **data.draw(st.dictionaries(words, plains, max_size=3))}, data.draw(plains)]
        writer.add(10, 1e9, text(FACTS + writer.schema.key, json.dumps(facts)))
        writer.add(10, 1e9, text(FACTS + "other", data.draw(texts)))
        about = json.dumps({"layers": data.draw(plains), "channels": data.draw(plains), "metrics": METRICS})
        shape = tuple(data.draw(st.lists(st.integers(0, 3), max_size=3)))
        description = data.draw(st.sampled_from([about, "[" * 100_000])).encode()
        step = data.draw(st.integers(-(2**63), 2**63 - 1))
        writer.add(step, data.draw(st.floats()), encode.floats(FRAME + "other", np.zeros(shape, "<f4"), description))
    assert not CONTROL.search(read_all(directory))


def text(tag: str, content: str) -> Any:
    """A value that holds text, be it JSON or not."""
    value = encode.plain(tag, None)
    value.tensor.string_val[0] = content.encode("utf-8", "replace")
    return value


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"layers": [], "metrics": [], "channels": [Infinity]}'])
def test_a_description_that_breaks_a_parser_counts_as_missing(content: bytes) -> None:
    assert Schema.decode(content) is None or content.startswith(b"{")


# -- black boxes -------------------------------------------------------------------------------------------------------


def a_box(path: Path, compress: bool = False, **more: Any) -> Path:
    save = np.savez_compressed if compress else np.savez
    arrays = {"steps": np.arange(3), "layers": np.array(["a"]), "channels": np.array([2]), "batch_var": np.ones((3, 2))}
    save(path, **{"alert": np.array(json.dumps(an_alert("a", 1))), **arrays, **more})
    return path


@fuzz
@given(data=st.data())
def test_a_damaged_black_box_gives_arrays_or_a_sentence(tmp_path: Path, data: st.DataObject) -> None:
    path = a_box(tmp_path / "step1-BN101-a.npz")
    path.write_bytes(damaged(data, path.read_bytes()))
    said = ""
    try:
        boxes.load(path)
    except ValueError as error:
        said = str(error).replace(str(path), "")
    assert not said or said.startswith(" is not a black box")
    assert len(said) < 300


def test_a_black_box_with_a_pickle_in_it_is_refused_and_nothing_is_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "sprung"),)

    path = tmp_path / "x.npz"
    np.savez(path, alert=np.array("{}"), steps=np.array([Trap()], dtype=object), layers=np.array(["a"]))
    with pytest.raises(ValueError, match="is not a black box"):
        boxes.load(path)
    assert not (tmp_path / "sprung").exists()


def test_a_black_box_that_unpacks_to_more_than_itself_is_refused(tmp_path: Path) -> None:
    path = a_box(tmp_path / "x.npz", compress=True, batch_var=np.zeros(1 << 22))
    with pytest.raises(ValueError, match=r"is not a black box.*compressed"):
        boxes.about(path)


@pytest.mark.parametrize("shape", ["(9999999999999,)", "(99999999, 99999999)", "(-1,)"])
def test_an_array_that_claims_terabytes_is_refused(tmp_path: Path, shape: str) -> None:
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    array = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + b"\0" * 64
    path = a_box(tmp_path / "x.npz")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("huge.npy", array)
    with pytest.raises(ValueError, match="is not a black box"):
        boxes.load(path)


def test_an_array_of_countless_values_without_bytes_is_refused(tmp_path: Path) -> None:
    header = "{'descr': '<U0', 'fortran_order': False, 'shape': (999999999,), }".ljust(117) + "\n"
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("layers.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())
    with pytest.raises(ValueError, match=r"is not a black box.*claims 999999999 bytes"):
        boxes.about(path)


def test_an_alert_that_is_nested_without_end_is_refused(tmp_path: Path) -> None:
    path = a_box(tmp_path / "x.npz", alert=np.array("[" * 100_000))
    with pytest.raises(ValueError, match="is not a black box"):
        boxes.load(path)


# -- checkpoints -------------------------------------------------------------------------------------------------------


def a_layer(name: str, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    prefix = f"{name}." if name else ""
    parts = {"running_mean": torch.zeros(3), "running_var": torch.ones(3), **more}
    return {f"{prefix}{part}": tensor for part, tensor in parts.items()}


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (a_layer("a." * 20_000 + "b"), "modules deep"),
        (a_layer("bn", running_mean=torch.zeros(1).expand(10**12)), "claims 4,000,000,000,000 bytes and holds 4"),
        (a_layer("\x1b[2J\x07", running_var=torch.ones(1).expand(3)), "claims 12 bytes and holds 4"),
    ],
    ids=["deep", "expanded", "control"],
)
def test_a_checkpoint_that_claims_what_no_layer_has_is_refused_in_a_sentence(
    tmp_path: Path, state: dict[str, torch.Tensor], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(state, tmp_path / "x.pt")
    assert main(["audit", str(tmp_path / "x.pt")]) == 2
    said = capsys.readouterr()
    assert says in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert not CONTROL.search(said.err)


layer_parts = st.dictionaries(
    st.sampled_from(["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]),
    st.builds(
        lambda shape, dtype, value: torch.full(shape, value).to(dtype),
        st.lists(st.integers(0, 4), max_size=3).map(tuple),
        st.sampled_from([torch.float32, torch.float16, torch.int64, torch.bool, torch.uint8]),
        st.sampled_from([0.0, 1.0, -1.0, 1e38, float("nan"), float("inf")]),
    ),
)


@fuzz
@given(name=st.one_of(words, st.text(max_size=30)), more=layer_parts)
def test_a_checkpoint_may_contain_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, more: dict[str, torch.Tensor]
) -> None:
    torch.save(a_layer(name.encode("utf-8", "replace").decode(), **more), tmp_path / "x.pt")
    assert main(["audit", str(tmp_path / "x.pt")]) in (0, 1, 2)
    said = capsys.readouterr()
    assert not CONTROL.search(said.out + said.err)


# -- the tab's server --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    directory = tmp_path_factory.mktemp("logs")
    write(directory / "run", NAMES, range(0, 60, 10), sick=(1,), channels=3)
    (directory.parent / "secret.npz").write_bytes(b"secret")
    folder = directory / "run" / "plugins" / "bnmonitor"
    folder.mkdir(parents=True)
    a_box(folder / "step1-BN101-a.npz")
    return Asked(directory)


values = st.one_of(
    words,
    numbers.map(str),
    st.sampled_from(
        ["run", "health", "batch_var", *NAMES, "../../secret.npz", "/etc/passwd", "step1-BN101-a.npz", "a"]
    ),
    st.just("9" * (LONGEST + 1)),
    st.just("٣"),
)


@settings(fuzz, max_examples=60 * MORE)
@given(
    route=st.sampled_from(["/runs", "/run", "/slice", "/layer", "/channels", "/channel", "/box"]),
    query=st.dictionaries(
        st.sampled_from(["run", "statistic", "layer", "file", "channel", "bins", "from", "to", "x"]), values, max_size=6
    ),
    known=st.booleans(),
)
def test_a_hostile_request_is_answered_in_a_sentence(
    tab: Asked, route: str, query: dict[str, str], known: bool
) -> None:
    given = {name: value.encode("utf-8", "replace").decode() for name, value in query.items()}
    answer = tab.ask(route, **({**given, "run": "run"} if known else given))
    assert answer.status_code in (200, 400, 404), answer.get_data(as_text=True)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    if answer.status_code != 200:
        assert answer.mimetype == "text/plain"
        said = plain(answer).decode()
        assert "\n" not in said
        assert len(said) < 1000 + 2 * LONGEST
        assert "secret" not in said.replace("secret.npz", "")


@given(text=st.text(max_size=30), least=st.integers(-5, 5), most=st.integers(5, 50))
def test_a_number_of_a_request_is_in_its_range_or_refused(text: str, least: int, most: int) -> None:
    found, said = 0, ""
    try:
        found = Query({"n": text}).number("n", least, most, 0)
    except BadRequestError as error:
        said = str(error)
    assert said.startswith("the parameter 'n' must be an int") if said else least <= found <= most
