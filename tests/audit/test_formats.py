"""Formats other than a plain state dict: what comes back, and one sentence for what is damaged."""

from __future__ import annotations

import io
import json
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bnmonitor.audit import UnreadableError, checkpoint_files, is_shipped, read_checkpoint
from bnmonitor.cli import main
from tests.audit import onnx_bytes
from tests.audit.files import (
    Net,
    State,
    Write,
    exported,
    keras,
    onnx,
    safetensors,
    scripted,
    sharded_bin,
    sharded_safetensors,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:DeprecationWarning")

LAYERS = {"stem.1", "block.bn1", "block.bn2", "head.0"}


@pytest.fixture(scope="module")
def state() -> State:
    model = Net(8)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.uniform_(module.weight)
            module.running_mean = torch.randn(8)
            module.running_var = torch.rand(8) + 0.1
            module.num_batches_tracked = torch.tensor(300)
    return model.state_dict()


def norms(path: Path) -> dict[str, nn.Module]:
    (model,) = read_checkpoint(path).values()
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.BatchNorm1d)}


@pytest.mark.parametrize("write", [safetensors, sharded_safetensors, sharded_bin, keras, onnx])
def test_every_layer_comes_back_with_its_values(tmp_path: Path, state: State, write: Write) -> None:
    found = norms(write(state, tmp_path))
    assert set(found) == LAYERS
    for name, layer in found.items():
        for part in ("weight", "bias", "running_mean", "running_var"):
            assert torch.equal(getattr(layer, part), state[f"{name}.{part}"])
        assert layer.eps == pytest.approx(1e-3 if write is keras else 1e-5)


def test_exported_programs_state_eps_and_momentum(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=0.002, momentum=0.03)).eval()
    torch.export.save(torch.export.export(model, (torch.randn(2, 3, 5, 5),)), tmp_path / "m.pt2")
    torch.jit.save(torch.jit.script(model), tmp_path / "scripted.pt")
    torch.jit.save(torch.jit.trace(model, torch.randn(2, 3, 5, 5)), tmp_path / "traced.pt")
    layer = {"1": onnx_bytes.layer_of(model[1])}
    (tmp_path / "m.onnx").write_bytes(onnx_bytes.model(layer, eps=0.002, momentum=0.97))
    for name in ("m.pt2", "scripted.pt", "traced.pt", "m.onnx"):
        (found,) = norms(tmp_path / name).values()
        assert (found.eps, found.momentum) == (pytest.approx(0.002), pytest.approx(0.03)), name
        assert is_shipped(tmp_path / name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_of_every_width_come_back(tmp_path: Path, state: State, dtype: torch.dtype) -> None:
    cast = {name: t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}
    save_file(cast, tmp_path / "m.safetensors")
    assert torch.equal(norms(tmp_path / "m.safetensors")["stem.1"].running_var, cast["stem.1.running_var"])
    assert torch.equal(norms(onnx(cast, tmp_path))["stem.1"].running_var, cast["stem.1.running_var"])


def test_values_of_an_onnx_file_may_be_fields_of_their_own(tmp_path: Path, state: State) -> None:
    (tmp_path / "m.onnx").write_bytes(onnx_bytes.model({"a.bn": onnx_bytes.layer_in(state, "head.0")}, typed=True))
    assert torch.equal(norms(tmp_path / "m.onnx")["a.bn"].running_var, state["head.0.running_var"])


def test_an_onnx_file_of_an_exporter_that_shares_renames_and_computes(tmp_path: Path) -> None:
    """Tensors are constants, or the same under two names; a node is the only one that names the layer."""
    part, tensor = onnx_bytes.part, onnx_bytes.tensor
    scale, half = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0], dtype=torch.float16)
    packed = b"".join(map(onnx_bytes.varint, half.view(torch.uint16).tolist()))

    def norm(*inputs: str, name: str = "", output: str = "") -> bytes:
        node = b"".join(part(1, each) for each in ("x", *inputs)) + part(4, "BatchNormalization") + part(7, "ai.onnx")
        return part(1, node + (part(3, name) if name else b"") + (part(2, output) if output else b"") + part(15, 1))

    constant = part(5, part(1, "value") + part(5, tensor("", scale)))
    graph = part(1, part(2, "gamma") + part(4, "Constant") + constant)
    graph += part(1, part(1, "gamma") + part(2, "beta") + part(4, "Identity"))
    graph += part(1, part(1, "x") + part(2, "y") + part(4, "Identity"))
    graph += norm("gamma", "beta", "m", "v", name="/net/bn/BatchNormalization")
    graph += norm("gamma", "beta", "m", "v", output="out")
    graph += norm("gamma", "beta", "m", "v")
    graph += norm("gamma", "beta", "y", "v", name="computed") + norm("gamma")
    graph += part(5, part(1, onnx_bytes.varint(2)) + part(2, 10) + part(8, "m") + part(5, packed))
    graph += part(5, tensor("v", scale.abs())) + part(5, tensor("w", torch.ones(3, 2)))
    graph += part(5, part(1, 2) + part(1, 1) + part(2, 8) + part(8, "names") + part(6, "a") + part(6, "b"))
    (tmp_path / "m.onnx").write_bytes(part(7, graph))
    found = norms(tmp_path / "m.onnx")
    assert set(found) == {"net.bn", "out", "norm2"}
    for layer in found.values():
        assert torch.equal(layer.weight, scale)
        assert torch.equal(layer.bias, scale)
        assert torch.equal(layer.running_mean, half)
        assert torch.equal(layer.running_var, scale.abs())
        assert (layer.eps, layer.momentum) == (1e-5, pytest.approx(0.1))


def test_a_pruned_gamma_is_multiplied_by_its_mask(tmp_path: Path) -> None:
    layer = nn.BatchNorm1d(3)
    nn.utils.prune.l1_unstructured(layer, "weight", 1)  # type: ignore[no-untyped-call]
    torch.save({f"bn.{name}": t for name, t in layer.state_dict().items()}, tmp_path / "m.pt")
    (found,) = norms(tmp_path / "m.pt").values()
    assert int((found.weight == 0).sum()) == 1


def test_a_folded_model_has_nothing_left_to_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = torch.jit.freeze(torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()))
    torch.jit.save(model, tmp_path / "m.pt")
    assert main(["audit", str(tmp_path / "m.pt")]) == 2
    said = capsys.readouterr().err
    assert "nothing is left to judge" in said
    assert said.count("\n") == 1


def test_an_index_stands_for_its_files(tmp_path: Path, state: State) -> None:
    index = sharded_safetensors(state, tmp_path)
    save_file(state, tmp_path / "whole.safetensors")
    assert checkpoint_files(tmp_path) == [index, tmp_path / "whole.safetensors"]


# -- damage to the file ------------------------------------------------------------------------------------------------


def header(change: Callable[[dict[str, object]], object]) -> Callable[[Path], Path]:
    def damage(path: Path) -> Path:
        whole = path.read_bytes()
        (size,) = struct.unpack("<Q", whole[:8])
        text = json.loads(whole[8 : 8 + size])
        changed = json.dumps(change(text) or text).encode()
        path.write_bytes(struct.pack("<Q", len(changed)) + changed + whole[8 + size :])
        return path

    return damage


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-40])
    return path


def no_json(path: Path) -> Path:
    path.write_bytes(struct.pack("<Q", 5) + b"hello")
    return path


def empty(path: Path) -> Path:
    path.write_bytes(b"")
    return path


SAFETENSORS = {
    "cut off": (cut, "lies outside the file"),
    "no JSON": (no_json, "its header is not JSON"),
    "empty": (empty, "is not a valid safetensors file"),
    "a list": (header(lambda _: ["a"]), "not a mapping"),  # type: ignore[arg-type,return-value]
    "no place": (header(lambda h: h.update({"bn.running_mean": {"dtype": "F32"}})), "does not say where"),
    "another shape": (header(lambda h: h["stem.1.bias"].update(shape=[9])), "not what its shape"),  # type: ignore[attr-defined]
    "a shape beyond all numbers": (
        header(lambda h: h.update({"a": {"dtype": "F32", "shape": [0, 10**30], "data_offsets": [0, 0]}})),
        "is not a valid safetensors file",
    ),
    "an overlap": (
        header(lambda h: h.update({"again": dict(h["stem.1.bias"])})),  # type: ignore[call-overload]
        "two of its tensors overlap",
    ),
}


@pytest.mark.parametrize("damage", SAFETENSORS)
def test_damaged_safetensors_give_a_sentence(tmp_path: Path, state: State, damage: str) -> None:
    change, why = SAFETENSORS[damage]
    save_file(state, tmp_path / "m.safetensors")
    with pytest.raises(UnreadableError, match=why) as caught:
        read_checkpoint(change(tmp_path / "m.safetensors"))
    assert "\n" not in str(caught.value)


EXPORTED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a size": (lambda meta: meta["sizes"][0].update(as_int=-1), "-1 is no size"),
    "a size of text": (lambda meta: meta["sizes"][0].update(as_int="4"), "'4' is no size"),
    "a length": (lambda meta: meta["sizes"][0].update(as_int=4000), "not as long as it claims"),
    "nothing": (lambda meta: meta.clear(), "damaged export: KeyError"),
}


def change_export(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Write an export again whose first weight is described otherwise."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in records if name.endswith("model_weights_config.json"))
    weights = json.loads(records[name])
    change(weights["config"]["0.weight"]["tensor_meta"])
    records[name] = json.dumps(weights).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, held in records.items():
            archive.writestr(name, held)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "m.pt2"
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    torch.export.save(torch.export.export(model, (torch.randn(2, 3, 5, 5),)), path)
    return path


@pytest.mark.parametrize("damage", EXPORTED)
def test_a_damaged_export_gives_a_sentence(damage: str, export: Path, tmp_path: Path) -> None:
    change, why = EXPORTED[damage]
    path = Path(shutil.copy(export, tmp_path))
    change_export(path, change)
    with pytest.raises(UnreadableError, match=why) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_a_weight_of_an_export_of_an_unknown_type_or_without_values_leaves_the_layers(
    export: Path, tmp_path: Path
) -> None:
    for change in (lambda meta: meta.update(dtype=99), lambda meta: meta["sizes"][0].update(as_int=0)):
        path = Path(shutil.copy(export, tmp_path))
        change_export(path, change)
        assert set(norms(path)) == {"1"}


def test_an_export_as_older_versions_of_pytorch_wrote_it(tmp_path: Path, state: State) -> None:
    """The tensors are a file of ``torch.save``, and the graph has a name of its own."""
    saved = io.BytesIO()
    torch.save(state, saved)
    names = {"p_mean": "head.0.running_mean"}
    inputs = [{"buffer": {"arg": {"name": "p_mean"}, "buffer_name": "head.0.running_mean"}}, {"user_input": {}}]
    call = [{"name": "running_mean", "arg": {"as_tensor": {"name": next(iter(names))}}}]
    call += [{"name": name, "arg": {"as_float": value}} for name, value in (("eps", 0.01), ("momentum", 0.2))]
    other = [{"name": "running_mean", "arg": {"as_none": True}}]
    nodes = [{"target": "torch.ops.aten.batch_norm.default", "inputs": each} for each in (call, other)]
    program = {"graph_module": {"graph": {"nodes": nodes}, "signature": {"input_specs": inputs}}}
    with zipfile.ZipFile(tmp_path / "m.pt2", "w") as archive:
        archive.writestr("serialized_state_dict.pt", saved.getvalue())
        archive.writestr("serialized_exported_program.json", json.dumps(program))
    found = norms(tmp_path / "m.pt2")
    assert set(found) == LAYERS
    assert torch.equal(found["stem.1"].running_var, state["stem.1.running_var"])
    assert (found["head.0"].eps, found["head.0"].momentum) == (0.01, 0.2)
    assert found["stem.1"].eps == 1e-5


def test_torchscript_whose_code_is_gone_keeps_its_layers_and_no_settings(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=0.002, momentum=0.03), nn.BatchNorm2d(4)).eval()
    torch.jit.save(torch.jit.script(model), tmp_path / "whole.pt")
    assert [layer.eps for layer in norms(tmp_path / "whole.pt").values()] == [0.002, 1e-5]
    with zipfile.ZipFile(tmp_path / "whole.pt") as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    for name, change in (
        ("gone.pt", lambda name, held: None if "batchnorm" in name and name.endswith(".py") else held),
        ("no_text.pt", lambda name, held: b"\xff\xfe" if "batchnorm" in name and name.endswith(".py") else held),
        ("no_number.pt", lambda name, held: held.replace(b"0.002", b"1e--5") if name.endswith(".py") else held),
    ):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for record, held in records.items():
                if (changed := change(record, held)) is not None:
                    archive.writestr(record, changed)
        assert [layer.eps for layer in norms(tmp_path / name).values()] == [1e-5, 1e-5], name


def test_a_damaged_index_gives_a_sentence(tmp_path: Path, state: State) -> None:
    index = sharded_safetensors(state, tmp_path)
    places = json.loads(index.read_text())
    for change, why in (
        ({"weight_map": {**places["weight_map"], "x": "../secret.safetensors"}}, "not a file beside it"),
        ({"weight_map": {**places["weight_map"], "x": "model-00003.safetensors"}}, "is missing"),
        ({"weight_map": {**places["weight_map"], "x": next(iter(places["weight_map"].values()))}}, "has no 'x'"),
        ({"weights": {}}, "no weight_map"),
        ([], "no weight_map"),
    ):
        index.write_text(json.dumps(change))
        with pytest.raises(UnreadableError, match=why):
            read_checkpoint(index)
    index.write_text("{")
    with pytest.raises(UnreadableError, match="not a valid index"):
        read_checkpoint(index)


@pytest.mark.parametrize("write", [onnx, exported, scripted])
def test_a_file_cut_anywhere_gives_a_sentence_or_layers(tmp_path: Path, write: Write) -> None:
    path = write(Net().state_dict(), tmp_path)
    whole = path.read_bytes()
    for part in range(1, 30):
        path.write_bytes(whole[: len(whole) * part // 30])
        try:
            found = read_checkpoint(path)
        except UnreadableError as error:
            assert "\n" not in str(error)  # noqa: PT017
        else:
            assert write is onnx or not found, part


def mean_of(*fields: bytes) -> bytes:
    """An ONNX file of a layer whose mean is an initializer of these fields."""
    part = onnx_bytes.part
    node = b"".join(part(1, each) for each in ("x", *onnx_bytes.ROLES)) + part(4, "BatchNormalization")
    rest = (onnx_bytes.tensor(role, torch.ones(2)) for role in onnx_bytes.ROLES if role != "running_mean")
    mean = b"".join(fields) + part(8, "running_mean")
    return part(7, part(1, node) + b"".join(part(5, each) for each in (mean, *rest)))


@pytest.mark.parametrize(
    ("whole", "why"),
    [
        (onnx_bytes.part(1, 8), "it has no graph"),
        (onnx_bytes.part(7, 8), "it has no graph"),
        (b"\x0b", "it is no protocol buffer"),
        (b"\x3a" + b"\xff" * 11, "no protocol buffer"),
        (mean_of(onnx_bytes.part(1, 2), onnx_bytes.part(2, 8)), "of a type that no layer has"),
        (mean_of(onnx_bytes.part(1, 2), onnx_bytes.part(2, 1), onnx_bytes.part(9, b"1234")), "has 4 bytes, which is"),
        (mean_of(onnx_bytes.part(1, 2), onnx_bytes.part(2, 1), onnx_bytes.part(4, b"1234")), "has 1 values, which is"),
        (mean_of(onnx_bytes.part(1, 1 << 50), onnx_bytes.part(2, 1)), "a shape is damaged"),
    ],
)
def test_damaged_onnx_gives_a_sentence(whole: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(whole)
    with pytest.raises(UnreadableError, match=why) as caught:
        read_checkpoint(tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)


def test_weights_of_an_onnx_file_are_not_sought_elsewhere(tmp_path: Path, state: State) -> None:
    held = onnx_bytes.layer_in(state, "head.0")
    for place, why in (("../secret", "outside its directory"), ("data.bin", "keeps its weights in")):
        (tmp_path / "m.onnx").write_bytes(onnx_bytes.model({"bn": held}, beside=place))
        with pytest.raises(UnreadableError, match=why):
            read_checkpoint(tmp_path / "m.onnx")
    (tmp_path / "data.bin").write_bytes(held["running_mean"].numpy().tobytes())
    found = norms(tmp_path / "m.onnx")
    assert torch.equal(found["bn"].running_mean, held["running_mean"])
