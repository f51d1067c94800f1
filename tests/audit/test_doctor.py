"""Twenty damaged and twenty sound checkpoints of each seed: what is damaged is named, what is sound is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bnmonitor.audit import audit, locate
from bnmonitor.results import Alert, Severity
from tests.audit.files import (
    DAMAGED,
    SEEDS,
    SOUND,
    Write,
    exported,
    exported_with_momentum,
    plain,
    scripted,
    state_of,
)


def found(path: Path) -> list[Alert]:
    return [alert for each in locate(str(path)) for alert in audit(each.model, settings=each.real).alerts]


def seeds(write: Write) -> tuple[int, ...]:
    """Exports take a second each, and differ in no number from the state they are made of."""
    return SEEDS[:1] if write in (exported, exported_with_momentum, scripted) else SEEDS


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:DeprecationWarning")
@pytest.mark.parametrize("damage", DAMAGED)
def test_damage_is_named_by_rule_and_layer(tmp_path: Path, damage: str) -> None:
    make, write, code, layer = DAMAGED[damage]
    for seed in seeds(write):
        serious = [a for a in found(write(make(seed), tmp_path)) if a.severity > Severity.INFO]
        named = {(a.code, (a.layer or "").removeprefix("model.")) for a in serious}
        assert (code, layer) in named, (seed, [str(a) for a in serious])


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:DeprecationWarning")
@pytest.mark.parametrize("kind", SOUND)
def test_a_sound_file_has_neither_warning_nor_error(tmp_path: Path, kind: str) -> None:
    make, write = SOUND[kind]
    for seed in seeds(write):
        path = write(make(seed), tmp_path)
        layers = {len(audit(each.model, settings=False)) for each in locate(str(path))}
        assert layers == {4}
        assert [str(a) for a in found(path) if a.severity > Severity.INFO] == []


def test_there_are_twenty_of_each() -> None:
    assert min(len(DAMAGED), len(SOUND)) >= 20


def test_a_branch_that_grows_from_zero_is_no_dead_one(tmp_path: Path) -> None:
    state = state_of(0)
    state["block.bn2.weight"][:] = torch.linspace(1e-5, 5e-2, 16)
    (note,) = [a for a in found(plain(state, tmp_path)) if a.code == "BN701"]
    assert note.severity is Severity.INFO
    assert "may have begun there" in note.message
