"""Which layers are roots, where other forwards of the step have no graph; and at how many places a layer is called."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from bnmonitor import Monitor
from bnmonitor.window import Place, Structure


def structure_of(model: nn.Module, step: Callable[[], Any]) -> Structure:
    """The structure after one step of training."""
    model.train()
    with Monitor(model, sinks=[], on_alert="log") as monitor:
        step().backward()
        monitor.step()
        window = monitor.window()
    assert window is not None
    assert window.facts.structure is not None
    return window.facts.structure


def places(model: nn.Module, step: Callable[[], Any]) -> dict[str, Place]:
    """The places of the layers after one step of training."""
    structure = structure_of(model, step)
    return dict(zip(structure.names, structure.places, strict=True))


def unit(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


def trunk() -> nn.Sequential:
    return nn.Sequential(unit(3, 8), unit(8, 8))


def images() -> Tensor:
    return torch.randn(8, 3, 8, 8)


ROOTS = {"0.1": True, "1.1": False}


@pytest.mark.parametrize("times", [1, 4])
def test_a_forward_without_gradient_before_the_training_forward_takes_no_root(times: int) -> None:
    model = trunk()

    def step() -> Any:
        with torch.no_grad():
            for _ in range(times):
                model(images())
        return model(images()).sum()

    found = places(model, step)
    assert {name: place.root for name, place in found.items()} == ROOTS
    assert found["0.1"].distance == 1
    assert found["0.1"].producers[0].kind == "convolution"


def test_a_teacher_in_training_mode_takes_no_root() -> None:
    model = nn.ModuleDict({"teacher": trunk().requires_grad_(False), "student": trunk()})

    def step() -> Any:
        with torch.no_grad():
            model["teacher"](images())
        return model["student"](images()).sum()

    found = places(model, step)
    assert found["student.0.1"].root
    assert found["student.0.1"].distance == 1
    assert not found["student.1.1"].root


def test_a_teacher_of_another_kind_takes_no_root() -> None:
    model = nn.ModuleDict({"teacher": nn.Sequential(unit(3, 16), unit(16, 4)), "student": trunk()})

    def step() -> Any:
        with torch.no_grad():
            target = model["teacher"](images()).mean()
        return (model["student"](images()) - target).square().sum()

    assert places(model, step)["student.0.1"].root


@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d(1), nn.Identity()])
def test_what_follows_a_part_without_graph_in_training_mode_is_no_root(pool: nn.Module) -> None:
    model = nn.ModuleDict({"body": trunk(), "pool": pool, "head": unit(8, 4)})

    def step() -> Any:
        with torch.no_grad():
            features = model["pool"](model["body"](images()))
        return model["head"](features).sum()

    found = places(model, step)["head.1"]
    assert (found.root, found.distance) == (False, -1)


def test_what_follows_a_reentrant_checkpoint_is_no_root() -> None:
    model = nn.Sequential(unit(3, 8), unit(8, 8), unit(8, 8))

    def step() -> Any:
        x = checkpoint(model[0], images().requires_grad_(), use_reentrant=True)
        return model[2](model[1](x)).sum()

    assert [place.root for place in places(model, step).values()][1:] == [False, False]


def test_a_copy_before_a_checkpointed_network_takes_no_root() -> None:
    student = nn.Sequential(unit(3, 8), unit(8, 8), unit(8, 8))
    model = nn.ModuleDict({"teacher": copy.deepcopy(student), "student": student})

    def step() -> Any:
        with torch.no_grad():
            model["teacher"](images())
        first, second, third = student
        return third(checkpoint(second, first(images()), use_reentrant=True)).sum()

    found = places(model, step)
    assert found["student.0.1"].root
    assert not found["student.2.1"].root


def test_two_inputs_of_one_encoder_are_one_place() -> None:
    model = trunk()
    found = places(model, lambda: (model(images()) + model(images()[:4]).mean()).sum())
    assert [place.places for place in found.values()] == [1, 1]


def test_a_block_that_follows_itself_has_two_places() -> None:
    model = nn.ModuleList([unit(3, 8), *[unit(8, 8)] * 3])

    def step() -> Any:
        x = images()
        for block in model:
            x = block(x)
        return x.sum()

    assert [place.places for place in places(model, step).values()] == [1, 3]


def test_a_norm_after_several_convolutions_has_several_places() -> None:
    model = nn.ModuleDict(
        {"body": trunk(), "a": nn.Conv2d(8, 4, 1), "b": nn.Conv2d(8, 4, 1), "norm": nn.BatchNorm2d(4)}
    )

    def step() -> Any:
        x = model["body"](images())
        return model["norm"](model["a"](x)).sum() + model["norm"](model["b"](x)).square().sum()

    assert places(model, step)["norm"].places == 2


def test_levels_of_a_pyramid_without_norms_are_several_places() -> None:
    model = nn.ModuleDict({"a": nn.Conv2d(3, 8, 3), "b": nn.Conv2d(8, 8, 3), "head": unit(8, 4)})

    def step() -> Any:
        one = F.relu(model["a"](images()))
        two = F.relu(model["b"](one))
        return model["head"](one).sum() + model["head"](two).sum()

    found = places(model, step)["head.1"]
    assert (found.root, found.places) == (True, 2)


@pytest.mark.parametrize("calls", [1, 5])
def test_a_shared_convolution_without_norm_counts_once(calls: int) -> None:
    model = nn.ModuleDict({"body": trunk(), "shared": nn.Conv2d(8, 8, 1), "tail": unit(8, 4)})

    def step() -> Any:
        x = model["body"](images())
        for _ in range(calls):
            x = F.relu(model["shared"](x))
        return model["tail"](x).sum()

    structure = structure_of(model, step)
    assert [bare.name for bare in structure.bare] == ["shared"]
    assert structure.normalized == 3


def test_a_shared_convolution_with_norm_counts_once() -> None:
    model = nn.ModuleDict({"body": trunk(), "shared": nn.Conv2d(8, 8, 1), "norm": nn.BatchNorm2d(8)})
    model["tail"] = unit(8, 4)

    def step() -> Any:
        x = model["body"](images())
        for _ in range(3):
            x = F.relu(model["norm"](model["shared"](x)))
        return model["tail"](F.relu(model["shared"](x))).sum()

    structure = structure_of(model, step)
    assert (structure.bare, structure.normalized) == ((), 4)


def test_real_and_generated_inputs_are_one_place() -> None:
    model = nn.ModuleDict({"generator": unit(4, 3), "discriminator": trunk()})

    def step() -> Any:
        fake = model["generator"](torch.randn(8, 4, 8, 8))
        judged = [model["discriminator"](x).mean() for x in (images(), fake.detach(), fake)]
        return torch.stack(judged).sum()

    assert {place.places for place in places(model, step).values()} == {1}


def test_a_network_of_blocks_with_skip_connections_on_real_and_generated_inputs_is_one_place() -> None:
    model = nn.ModuleDict({"generator": unit(4, 3), "stem": unit(3, 8), "a": unit(8, 8), "b": unit(8, 8)})

    def judge(x: Tensor) -> Any:
        x = model["stem"](x)
        x = x + model["a"](x)
        return (x + model["b"](x)).mean()

    def step() -> Any:
        return judge(images()) + judge(model["generator"](torch.randn(8, 4, 8, 8)))

    assert {place.places for place in places(model, step).values()} == {1}


def test_a_block_that_follows_itself_without_a_stem_has_several_places() -> None:
    model = nn.ModuleList([unit(3, 3)] * 3)

    def step() -> Any:
        x = images()
        for block in model:
            x = block(x)
        return x.sum()

    assert places(model, step)["0.1"].places == 3
