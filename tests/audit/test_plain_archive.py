"""Archives of plain types and tensors are read without ``torch.load``, and as ``torch.load`` reads them."""

from __future__ import annotations

import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bnmonitor.audit.checkpoint import _checked_entries, read_checkpoint
from bnmonitor.audit.plain_archive import NotPlainError, read_plain


def plain(path: Path) -> Any:
    return read_plain(path, _checked_entries(path))


def same(a: Any, b: Any) -> bool:
    if isinstance(b, torch.Tensor):
        return (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride()) and torch.equal(a, b)
    if isinstance(b, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in b)
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(b, list | tuple) else bool(a == b)


def values() -> dict[str, Any]:
    whole = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    dtypes = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool)
    return {
        "a view": whole[1:3, ::2],
        "its base": whole.t(),
        "a number": torch.tensor(3.0),
        "empty": torch.empty(0, 3),
        "a parameter": nn.Parameter(torch.randn(3)),
        "a module": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).state_dict(),
        "ordered": OrderedDict(b=1, a=[(1, 2.5), None, True, "text", -(1 << 70)]),
        **{str(dtype): torch.arange(5).to(dtype) for dtype in dtypes},
    }


def test_what_torch_saved_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    torch.save(values(), tmp_path / "a.pt")
    read = plain(tmp_path / "a.pt")
    assert same(read, torch.load(tmp_path / "a.pt", weights_only=True))
    read["a number"].add_(1)
    assert same(plain(tmp_path / "a.pt")["a number"], torch.tensor(3.0)), "the file was written to"


@pytest.mark.parametrize("form", ["state_dict", "Lightning's"])
def test_a_usual_checkpoint_needs_no_torch_load(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    model(torch.randn(8, 3)).sum().backward()
    optimizer = torch.optim.Adam(model.parameters())
    optimizer.step()
    whole = {"epoch": 1, "state_dict": model.state_dict(), "optimizer_states": [optimizer.state_dict()], "loops": {}}
    torch.save(model.state_dict() if form == "state_dict" else whole, tmp_path / "a.ckpt")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("torch.load was called")

    monkeypatch.setattr(torch, "load", refuse)
    [read] = read_checkpoint(tmp_path / "a.ckpt").values()
    assert same(read.state_dict(), {k: v for k, v in model.state_dict().items() if k.startswith("1.")})


def rewritten(path: Path, change: Any) -> None:
    """Write an archive again with other records: ``change`` gets the name and the bytes of each."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            archive.writestr(name, change(name, data))


DAMAGE: dict[str, tuple[str, Any]] = {
    "a global": ("data.pkl", lambda data: data.replace(b"collections\nOrderedDict", b"posix\nsystem")),
    "an opcode of the registry": ("data.pkl", lambda data: data[:2] + b"\x82\x01" + data[2:]),
    "a short storage": ("data/0", lambda data: data[:-4]),
    "another byte order": ("byteorder", lambda data: b"big"),
    "another kind of reference": ("data.pkl", lambda data: data.replace(b"storage", b"stowage")),
    "a cut pickle": ("data.pkl", lambda data: data[: len(data) // 2]),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_anything_else_is_left_to_torch_load(tmp_path: Path, how: str) -> None:
    torch.save(nn.BatchNorm1d(4).state_dict(), tmp_path / "a.pt")
    assert next(iter(plain(tmp_path / "a.pt"))) == "weight"
    record, change = DAMAGE[how]
    rewritten(tmp_path / "a.pt", lambda name, data: change(data) if name.endswith(f"/{record}") else data)
    with pytest.raises(NotPlainError):
        plain(tmp_path / "a.pt")


def test_an_archive_that_was_packed_again_is_left_to_torch_load(tmp_path: Path) -> None:
    torch.save(nn.BatchNorm1d(4).state_dict(), tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    with pytest.raises(NotPlainError, match="is compressed"):
        plain(tmp_path / "a.pt")


def test_twenty_thousand_layers_are_read_under_their_names(tmp_path: Path) -> None:
    state = {f"l{i}.running_{k}": torch.full((1,), float(i)) for i in range(20_000) for k in ("mean", "var")}
    torch.save(state, tmp_path / "a.pt")
    assert same(plain(tmp_path / "a.pt"), state)
    [read] = read_checkpoint(tmp_path / "a.pt").values()
    assert list(read._modules) == [f"l{i}" for i in range(20_000)]
    assert read.get_submodule("l19999").running_mean.item() == 19_999
