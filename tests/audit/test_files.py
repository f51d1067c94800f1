"""`bnmonitor audit`: how people keep their weights, and files that are odd or meant to do harm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from bnmonitor.audit import checkpoint
from bnmonitor.cli import main
from tests.audit.test_audit import NAMES, norm, trained


def names(path: Path) -> dict[str, tuple[str, ...]]:
    """The layers of each model of a checkpoint."""
    return {
        key: tuple(name for name, m in model.named_modules() if "running_mean" in m._buffers)
        for key, model in checkpoint.read_checkpoint(path).items()
    }


def under(prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in trained().state_dict().items()}


def average() -> dict[str, Any]:
    return dict(AveragedModel(trained()).state_dict())


def frozen() -> dict[str, Tensor]:
    """FrozenBatchNorm2d as detectron2 has it: no counter, gamma and beta among the buffers."""
    return {name: t for name, t in under("").items() if not name.endswith("num_batches_tracked")}


def cycle() -> dict[str, Any]:
    around: dict[str, Any] = {"model": under("")}
    around["self"] = around
    return around


SHAPES: dict[str, tuple[Callable[[], Any], str]] = {
    "plain": (lambda: under(""), ""),
    "of DistributedDataParallel": (lambda: under("module."), ""),
    "compiled": (lambda: under("_orig_mod."), ""),
    "compiled in DistributedDataParallel": (lambda: under("module._orig_mod."), ""),
    "with its optimizer": (lambda: {"model": under(""), "optimizer": {"state": {}, "param_groups": []}}, "model"),
    "an average": (lambda: {"ema": average()}, "ema"),
    "frozen": (lambda: {"model": frozen()}, "model"),
    "in a list": (lambda: [{"model": under("module.")}], "0.model"),
    "around in circles": (cycle, "model"),
    "numbered": (lambda: {0: under("")}, "0"),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_layers_are_named_as_in_the_model(tmp_path: Path, shape: str) -> None:
    make, key = SHAPES[shape]
    torch.save(make(), tmp_path / "a.pt")
    assert names(tmp_path / "a.pt") == {key: NAMES}


def test_a_module_of_that_name_beside_others_keeps_it(tmp_path: Path) -> None:
    torch.save(under("module.") | under("other."), tmp_path / "a.pt")
    [found] = names(tmp_path / "a.pt").values()
    assert set(found) == {f"{part}.{name}" for part in ("module", "other") for name in NAMES}


@pytest.mark.parametrize("which", ["model", "ema"])
def test_the_model_and_its_average_are_judged_apart(
    tmp_path: Path, which: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ill = trained()
    norm(ill, 1).running_var[2] = torch.nan
    kept = {"model": under(""), "ema": average()}
    kept[which] = {f"module.{name}": t for name, t in ill.state_dict().items()}
    torch.save(kept, tmp_path / "a.pt")
    assert main(["audit", str(tmp_path)]) == 1
    lines = {line.split(":")[1]: line for line in capsys.readouterr().out.splitlines()}
    assert [key for key, line in lines.items() if "BN101" in line] == [which]


ODD: dict[str, Callable[[Tensor], dict[str, Any]]] = {
    "sparse": lambda t: {"running_mean": t.to_sparse()},
    "complex": lambda t: {"running_mean": t.to(torch.complex64)},
    "meta": lambda t: {"running_var": t.to("meta")},
    "another shape": lambda t: {"running_mean": t[:3]},
    "four axes": lambda t: {"running_mean": t[None, :, None, None], "running_var": t[None, :, None, None]},
    "no axis": lambda t: {"running_mean": t[0], "running_var": t[0]},
    "gamma of another layer": lambda t: {"weight": t[:3]},
    "no channels": lambda t: dict.fromkeys(("running_mean", "running_var", "weight", "bias"), t[:0]),
    "no tensor": lambda t: {"running_var": "1"},
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("alone", [False, True])
def test_a_layer_that_is_none_is_left_out_and_said_to_be(
    tmp_path: Path, odd: str, alone: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    state = under("") if not alone else {name: t for name, t in under("").items() if name.startswith("1.")}
    torch.save({**state, **{f"1.{k}": t for k, t in ODD[odd](state["1.running_mean"]).items()}}, tmp_path / "a.pt")
    assert main(["audit", str(tmp_path / "a.pt")]) == (2 if alone else 0)
    said = capsys.readouterr()
    assert ("no normalization layer" in said.err) if alone else ("2 layers" in said.out)
    if odd != "no tensor":  # a name beside a tensor's that happens to be running_var
        assert "has a " in (said.err if alone else said.out.partition("not checked: layer 1")[2])


def test_a_layer_that_lost_one_of_its_statistics_is_said_to_be_unjudged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {f"module.{name}": t for name, t in under("").items()}
    del state["module.1.running_var"]
    torch.save(state, tmp_path / "a.pt")
    assert main(["audit", str(tmp_path / "a.pt")]) == 0
    assert "not checked: layer 1: has a running_mean and no running_var" in capsys.readouterr().out
    assert main(["audit", str(tmp_path)]) == 0
    assert capsys.readouterr().out.endswith("can show · 1 layer not checked\n")


@pytest.mark.parametrize(
    "prefix", ["a..b.", "training.", "forward.", "__class__.", "\x1b[31m.", "模型.🙂.", "1.inner."]
)
def test_any_name_will_do(tmp_path: Path, prefix: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({**under(""), **under(prefix)}, tmp_path / "a.pt")
    assert main(["audit", str(tmp_path / "a.pt"), "--rows", "9"]) == 0
    told = capsys.readouterr().out
    assert "6 layers" in told
    assert "\x1b[31m" not in told


def test_a_directory_tells_of_files_without_a_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(under(""), tmp_path / "a.pt")
    torch.save({"x": torch.zeros(3)}, tmp_path / "b.pt")
    assert main(["audit", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "b.pt: holds no normalization layer" in lines[1]


def test_factories_that_make_nothing_to_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "odd_factories.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def bare(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())\n"
        "def meta():\n    with torch.device('meta'):\n        return nn.BatchNorm2d(4)\n"
        "def lazy(): return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d())\n"
        "def fails(): raise ValueError('one\\ntwo')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name, code in {"bare": 0, "lazy": 0, "meta": 2, "fails": 2}.items():
        assert main(["audit", f"odd_factories:{name}"]) == code
        said = capsys.readouterr()
        assert said.err.count("\n") == (code == 2), said.err
