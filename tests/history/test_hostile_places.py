"""Hostile and damaged places: every reader ends, names what it leaves out, and reads the rest."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto

from bnmonitor.audit import UnreadableError, read_checkpoint
from bnmonitor.cli import main
from bnmonitor.history.run import open_history
from bnmonitor.history.source import Files
from tests.histories import write

STEPS = range(6)


def a_run(directory: Path) -> Path:
    write(directory, ("a", "b"), STEPS, channels=4)
    return directory


def event_file(run: Path) -> Path:
    (file,) = (path for path in run.iterdir() if "tfevents" in path.name)
    return file


def read(path: Path) -> tuple[dict[str, int], list[str]]:
    """Frames by run, and a line for each thing that was left out."""
    history = open_history(path)
    assert isinstance(history.source, Files)
    frames = {name: len(run.frames) for name, run in history.all().items()}
    return frames, [f"{error.filename}: {error.strerror}" for error in history.source.unreadable]


def test_links_that_make_a_loop_end_and_each_run_is_read_once(tmp_path: Path) -> None:
    a_run(tmp_path / "run")
    for name in ("loop", "other"):
        (tmp_path / name).symlink_to(".")
        (tmp_path / "run" / name).symlink_to("..")
    (tmp_path / "latest").symlink_to("run")
    assert read(tmp_path) == ({"run": len(STEPS)}, [])


def test_a_link_to_a_directory_elsewhere_is_followed(tmp_path: Path) -> None:
    a_run(tmp_path / "elsewhere")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "run").symlink_to(tmp_path / "elsewhere")
    assert read(tmp_path / "logs") == ({"run": len(STEPS)}, [])


@pytest.mark.parametrize("kind", ["pipe", "device", "broken link"])
def test_what_is_no_file_is_named_and_left_out(tmp_path: Path, kind: str) -> None:
    place = a_run(tmp_path / "run") / "events.out.tfevents.9.x"
    if kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to("/dev/zero" if kind == "device" else "/nowhere")
    frames, left_out = read(tmp_path)
    assert frames == {"run": len(STEPS)}
    (line,) = left_out
    assert line.startswith(f"{place}: ")


def test_a_pipe_without_a_writer_ends_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bnmonitor.history.event_files._PATIENCE", 0.01)
    os.mkfifo(tmp_path / "pipe.ckpt")
    assert main(["report", str(tmp_path / "pipe.ckpt")]) == 2
    assert "pipe" in capsys.readouterr().err
    with pytest.raises(UnreadableError, match="it is a pipe, a device or a directory, not a file"):
        read_checkpoint(tmp_path / "pipe.ckpt")


@pytest.mark.parametrize(
    ("shape", "content"),
    [
        ([-2, -3], b"\0" * 24),
        ([-1, -1], b"\0" * 4),
        ([1], b"\0\0\0"),
        ([0, 2**62], b""),
        ([2**31, 2**31, 2, 0], b""),
        ([1] * 70, b"\0" * 4),
        ([2**32, 2**32], b""),
        ([2**40], b"\0" * 4),
        ([2], b"\0" * 4),
    ],
)
def test_a_damaged_tensor_is_named_and_the_rest_is_read(tmp_path: Path, shape: list[int], content: bytes) -> None:
    file = event_file(a_run(tmp_path / "run"))
    dims = TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in shape])
    value = Summary.Value(tag="bnmonitor/frame/abc", tensor=TensorProto(dtype=1, tensor_shape=dims))
    value.tensor.tensor_content = content
    data = Event(step=7, wall_time=1.0, summary=Summary(value=[value])).SerializeToString()
    with file.open("ab") as events:
        events.write(struct.pack("<Q", len(data)) + b"\0" * 4 + data + b"\0" * 4)
    a_run(tmp_path / "healthy")
    frames, left_out = read(tmp_path)
    assert frames == {"run": len(STEPS), "healthy": len(STEPS)}
    assert left_out == [f"{file}: the value of bnmonitor/frame/abc at step 7 is damaged"]


@pytest.mark.parametrize(
    "tail", [struct.pack("<Q", 2**63) + b"\0" * 4, struct.pack("<Q", 2**64 - 1) + b"\1" * 8, b"\0" * 4096]
)
def test_a_damaged_end_keeps_what_is_before_it(tmp_path: Path, tail: bytes) -> None:
    with event_file(a_run(tmp_path / "run")).open("ab") as events:
        events.write(tail)
    assert read(tmp_path) == ({"run": len(STEPS)}, [])


def test_a_sparse_file_of_a_terabyte_is_read_at_once(tmp_path: Path) -> None:
    os.truncate(event_file(a_run(tmp_path / "run")), 2**40)
    assert read(tmp_path) == ({"run": len(STEPS)}, [])
