from __future__ import annotations

import argparse
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from bnmonitor.audit import UnreadableError, checkpoint_files, read_checkpoint
from bnmonitor.layers import discover


def net() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))
    model(torch.randn(8, 3, 9, 9))
    return model


def layers_of(model: nn.Module) -> dict[str, dict[str, torch.Tensor]]:
    found = discover({"": model})
    return {n: m.state_dict() for n, m in zip(found.table.names, found.modules, strict=True)}


def same(read_back: nn.Module, model: nn.Module) -> bool:
    a, b = layers_of(read_back), layers_of(model)
    return list(a) == list(b) and all(torch.equal(a[n][k], b[n][k]) for n in b for k in b[n])


@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_comes_back(tmp_path: Path, zipped: bool) -> None:
    model = net()
    torch.save(model.state_dict(), tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    (key,) = (found := read_checkpoint(tmp_path / "m.pt"))
    assert key == ""
    assert same(found[""], model)


def test_safetensors_come_back_in_natural_order(tmp_path: Path) -> None:
    model = nn.Sequential(*(nn.BatchNorm1d(3) for _ in range(12)))
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    assert same(read_checkpoint(tmp_path / "m.safetensors")[""], model)


def test_every_state_dict_of_a_checkpoint_is_found_under_its_key(tmp_path: Path) -> None:
    model, average = net(), net()
    holds = {"epoch": 3, "state_dict": model.state_dict(), "ema": {"shadow": average.state_dict()}, "opt": [{}]}
    torch.save(holds, tmp_path / "m.ckpt")
    found = read_checkpoint(tmp_path / "m.ckpt")
    assert list(found) == ["state_dict", "ema.shadow"]
    assert same(found["state_dict"], model)
    assert same(found["ema.shadow"], average)


def test_names_of_wrappers_are_left_out(tmp_path: Path) -> None:
    state = {f"_orig_mod.{name}": t for name, t in net().state_dict().items()}
    torch.save(state, tmp_path / "m.pt")
    assert list(layers_of(read_checkpoint(tmp_path / "m.pt")[""])) == ["1", "4"]


def test_what_is_no_normalization_layer_is_left_out(tmp_path: Path) -> None:
    torch.save({"a.running_mean": torch.zeros(3), "b.weight": torch.ones(2), "running_mean": "text"}, tmp_path / "m.pt")
    assert read_checkpoint(tmp_path / "m.pt") == {}


def test_layers_without_affine_or_counter_come_back(tmp_path: Path) -> None:
    torch.save({"n.running_mean": torch.zeros(3), "n.running_var": torch.ones(3)}, tmp_path / "m.pt")
    (layer,) = discover({"": read_checkpoint(tmp_path / "m.pt")[""]}).modules
    assert layer.weight is None
    assert layer.num_batches_tracked is None


def test_hyperparameters_of_usual_classes_are_no_obstacle(tmp_path: Path) -> None:
    torch.save({"state_dict": net().state_dict(), "hyper_parameters": argparse.Namespace(a=1)}, tmp_path / "m.ckpt")
    assert list(read_checkpoint(tmp_path / "m.ckpt")) == ["state_dict"]


class Trap:
    """Makes a directory when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle", "pickle2"])
def test_a_file_that_would_run_code_is_refused_in_a_sentence(tmp_path: Path, how: str) -> None:
    holds, path = {"state_dict": net().state_dict(), "x": Trap(tmp_path / "sprung")}, tmp_path / "evil.pt"
    if how.startswith("pickle"):
        path.write_bytes(pickle.dumps(Trap(tmp_path / "sprung"), protocol=2 if how == "pickle2" else 4))
    else:
        torch.save(holds, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(UnreadableError, match=r"evil\.pt") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "sprung").exists()
    if how != "pickle":
        assert "mkdir" in str(caught.value)


def test_a_pickled_model_is_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.save(net(), tmp_path / "m.pt")
    with pytest.raises(UnreadableError, match=r"Sequential.*state_dict"):
        read_checkpoint(tmp_path / "m.pt")


def test_an_archive_that_unpacks_to_more_than_itself_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * (64 << 20))
    with pytest.raises(UnreadableError, match="claims to unpack"):
        read_checkpoint(tmp_path / "bomb.pt")


def test_a_header_that_claims_ten_gigabytes_is_refused(tmp_path: Path) -> None:
    save_file(net().state_dict(), tmp_path / "m.safetensors")
    whole = (tmp_path / "m.safetensors").read_bytes()
    (tmp_path / "m.safetensors").write_bytes((10 << 30).to_bytes(8, "little") + whole[8:])
    with pytest.raises(UnreadableError, match="its header claims 10,737,418,240 bytes"):
        read_checkpoint(tmp_path / "m.safetensors")


def test_a_missing_file_and_a_directory_are_told(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match="No such file"):
        read_checkpoint(tmp_path / "none.pt")
    with pytest.raises(UnreadableError, match="directory"):
        read_checkpoint(tmp_path)


def test_a_directory_lists_its_checkpoints(tmp_path: Path) -> None:
    for name in ("b/epoch10.ckpt", "b/epoch9.ckpt", "a.safetensors", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [p.name for p in checkpoint_files(tmp_path)] == ["a.safetensors", "epoch9.ckpt", "epoch10.ckpt"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    directory = tmp_path_factory.mktemp("saved")
    state = net().state_dict()
    torch.save(state, directory / "zip.pt")
    torch.save(state, directory / "legacy.pt", _use_new_zipfile_serialization=False)
    save_file(state, directory / "m.safetensors")
    return {p.name: p.read_bytes() for p in directory.iterdir()}


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_a_damaged_file_gives_a_sentence_or_layers(
    saved: dict[str, bytes], tmp_path: Path, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(saved)))
    whole = bytearray(saved[name])
    for _ in range(data.draw(st.integers(0, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / name
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    said = ""
    found: dict[str, nn.Module] = {}
    try:
        found = read_checkpoint(path)
    except UnreadableError as error:
        said = str(error)
    assert said or all(isinstance(m, nn.Module) for m in found.values())
    assert "\n" not in said
    assert len(said) < 400 + len(str(path))
