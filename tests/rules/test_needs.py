"""The needs of rules, the facts of a run, and that a rule runs as soon as its needs are met."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, TensorDataset, WeightedRandomSampler

from bnmonitor import Finding, Monitor, Rule, Severity
from bnmonitor.context import RunFacts
from bnmonitor.context.loaders import describe
from bnmonitor.rules import NEEDS, Conditions, absent_needs, unmet
from bnmonitor.testing import make_window
from bnmonitor.window import Facts, Loader, Window

torch.set_num_threads(1)
DATA = TensorDataset(torch.randn(50, 3), torch.arange(50) % 2)
WORDS = {need.word for need in NEEDS}
LAYERS = make_window().layers
ALL_THERE = Conditions(
    layers=LAYERS,
    unsampled="",
    untraced="",
    unprobed="",
    exchange_failure="",
    optimizers=True,
    copies=False,
    loader=True,
    scaler=True,
    validated=True,
    probe=True,
    ranks=True,
    shares=True,
)


@dataclass(frozen=True, kw_only=True)
class Traced(Rule):
    """Reports that the graph is there."""

    code: ClassVar[str] = "XY100"
    name: ClassVar[str] = "traced"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[frozenset[str]] = frozenset({"dataflow"})

    def check(self, window: Window) -> list[Finding]:
        assert window.facts.structure is not None
        return [
            Finding(severity=self.severity, layer=0, first_step=0, value=1, threshold=0, message="seen", advice="none")
        ]


def a_model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def train(monitor: Monitor, model: nn.Module, steps: int = 1) -> None:
    for _ in range(steps):
        model(torch.randn(32, 3)).square().mean().backward()
        monitor.step()


# -- the vocabulary ----------------------------------------------------------------------------------------------------


def test_nothing_is_missing_where_everything_is_there() -> None:
    assert absent_needs(ALL_THERE) == {}
    assert unmet(WORDS, {}) == ""


def test_every_need_has_a_word_of_its_own_and_a_meaning() -> None:
    assert len(WORDS) == len(NEEDS)
    assert all(need.meaning for need in NEEDS)


@pytest.mark.parametrize(
    ("absent", "need", "says"),
    [
        ({"layers": replace(LAYERS, tracking=(False,))}, "buffers", "running statistics"),
        ({"layers": replace(LAYERS, affine=(False,))}, "affine", "gamma"),
        ({"unsampled": "no samples here"}, "samples", "no samples here"),
        ({"shares": False}, "exchange", "share_ranks"),
        ({"exchange_failure": "the network is down"}, "exchange", "and the network is down"),
        ({"untraced": "no graph here"}, "dataflow", "no graph here"),
        ({"optimizers": False}, "optimizer", "optimizer="),
        ({"loader": False}, "loader", "train_loader="),
        ({"loader": None}, "loader", "are not"),
        ({"scaler": False}, "scaler", "scaler="),
        ({"validated": False}, "validation", "monitor.evaluation()"),
        ({"probe": False}, "probe", "probe=True"),
        ({"unprobed": "no probe here"}, "probe", "no probe here"),
        ({"ranks": False}, "ranks", "several processes"),
    ],
)
def test_each_missing_need_is_reported_with_the_way_to_meet_it(absent: dict[str, Any], need: str, says: str) -> None:
    reasons = absent_needs(replace(ALL_THERE, **absent))
    assert reasons.keys() == {need} <= WORDS
    assert says in unmet({need}, reasons)
    assert unmet(WORDS - {need}, reasons) == ""


@pytest.mark.parametrize(
    ("absent", "needs"),
    [
        ({"unsampled": "no samples", "loader": False}, {"samples", "loader", "batch_size"}),
        ({"copies": True}, {"whole", "optimizer"}),
        ({"layers": replace(LAYERS, split=(0,))}, {"gradients", "whole"}),
        ({"layers": replace(LAYERS, split=(0,)), "untold": "not yet"}, {"affine", "gradients", "whole"}),
    ],
    ids=["no batch size", "copies", "split and told", "split"],
)
def test_condition_that_several_needs_depend_on(absent: dict[str, Any], needs: set[str]) -> None:
    reasons = absent_needs(replace(ALL_THERE, **absent))
    assert reasons.keys() == needs
    assert all(why.startswith(("needs ", "no samples")) for why in reasons.values())


def test_rule_with_an_unknown_need_is_refused_at_construction() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Misspelled(Traced):
        needs: ClassVar[frozenset[str]] = frozenset({"data-flow"})

    with pytest.raises(ValueError, match=r"needs 'data-flow', which is not known; did you mean 'dataflow'"):
        Monitor(a_model(), rules=[Misspelled()], sinks=[])


def test_rule_runs_as_soon_as_its_need_is_met() -> None:
    model = a_model()
    with Monitor(model, rules=[Traced()], select=(), on_alert="log", sinks=[]) as monitor:
        assert "none was seen yet" in monitor.skipped["traced"]
        assert monitor.summary().skipped == monitor.skipped
        train(monitor, model)
        assert monitor.skipped == {}
        assert [a.code for a in monitor.alerts] == ["XY100"]


def test_rule_that_needs_the_graph_is_skipped_without_samples_and_says_why() -> None:
    model = a_model()
    rules = [Traced()]
    with Monitor(model, rules=rules, select=(), sample_every_n_steps=0, on_alert="log", sinks=[]) as monitor:
        train(monitor, model, 11)
        assert "sample_every_n_steps is 0" in monitor.skipped["traced"]
        assert monitor.alerts == ()


# -- loaders -----------------------------------------------------------------------------------------------------------


class Stream(IterableDataset[torch.Tensor]):
    def __iter__(self) -> Any:
        return iter(torch.randn(50, 3))


@pytest.mark.parametrize(
    ("loader", "expected", "leftover"),
    [
        (DataLoader(DATA, 16), Loader(batch_size=16, samples=50, drop_last=False, shuffled=False), 2),
        (
            DataLoader(DATA, 16, shuffle=True, drop_last=True),
            Loader(batch_size=16, samples=50, drop_last=True, shuffled=True),
            0,
        ),
        (DataLoader(DATA, 25), Loader(batch_size=25, samples=50, drop_last=False, shuffled=False), 0),
        (
            DataLoader(DATA, 16, sampler=RandomSampler(DATA, num_samples=33)),
            Loader(batch_size=16, samples=33, drop_last=False, shuffled=True),
            1,
        ),
        (
            DataLoader(DATA, 16, sampler=WeightedRandomSampler([1.0] * 50, 40)),
            Loader(batch_size=16, samples=40, drop_last=False),
            8,
        ),
        (DataLoader(Stream(), 16), Loader(batch_size=16, drop_last=False), None),
        (DataLoader(DATA, batch_sampler=[[0, 1], [2]]), Loader(), None),
        ({"only": DataLoader(DATA, 50)}, Loader(batch_size=50, samples=50, drop_last=False, shuffled=False), 0),
    ],
    ids=["plain", "drop_last", "even", "sampler", "weighted", "stream", "own batches", "nested"],
)
def test_loader_shows_the_size_of_its_last_batch(loader: Any, expected: Loader, leftover: int | None) -> None:
    assert describe(loader) == expected
    assert expected.leftover == leftover


def test_epoch_that_ends_early_never_sees_the_last_batch() -> None:
    loader = describe(DataLoader(DATA, 16), batches=3)
    assert loader is not None
    assert (loader.complete, loader.leftover) == (False, 0)
    loader = describe(DataLoader(DATA, 16), batches=4)
    assert loader is not None
    assert (loader.complete, loader.leftover) == (True, 2)


@pytest.mark.parametrize("several", [[torch.randn(4, 3)], {"a": DataLoader(DATA), "b": DataLoader(DATA)}, iter(())])
def test_several_loaders_give_no_batch_size_and_the_reason_says_so(several: Any) -> None:
    assert describe(several) is None
    assert RunFacts(train_loader=several).unreadable


@pytest.mark.parametrize(
    ("argument", "value", "says"),
    [
        ("train_loader", 7, "train_loader must be a torch DataLoader or another iterable, got int"),
        ("val_loader", 7, "val_loader must be"),
        ("scaler", 2.0, "scaler must be a torch.amp.GradScaler, got float"),
        ("accumulate_grad_batches", 0, "accumulate_grad_batches must be an int of at least 1, got 0$"),
        ("accumulate_grad_batches", True, "accumulate_grad_batches must be an int of at least 1, got True$"),
    ],
)
def test_bad_fact_gets_one_sentence(argument: str, value: Any, says: str) -> None:
    with pytest.raises((TypeError, ValueError), match=says):
        Monitor(a_model(), sinks=[], **{argument: value})


# -- the scaler --------------------------------------------------------------------------------------------------------


def scaled(steps: int, overflow_at: int) -> tuple[RunFacts, list[float]]:
    """Train in scaled gradients on the CPU, with an infinite loss at one step."""
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    run, values = RunFacts(scaler=scaler), []
    for step in range(steps):
        optimizer.zero_grad()
        factor = torch.inf if step == overflow_at else 1.0
        scaler.scale((weight * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        run.step(step)
        values.append(float(weight.detach()))
    return run, values


@pytest.mark.parametrize("at", [0, 3])
def test_step_that_the_scaler_skipped_is_known_by_its_scale(at: int) -> None:
    run, values = scaled(6, at)
    assert values[at] == (values[at - 1] if at else 1.0), "the injection took place"
    scales, skipped = run.scales(range(6))
    assert scales == (1024.0,) * at + (512.0,) * (6 - at)
    assert skipped == tuple(step == at for step in range(6))
    assert run.scales([at, 5, 99])[1] == (True, False, False)


def test_without_a_scaler_there_are_no_scales() -> None:
    run = RunFacts()
    run.step(0)
    assert run.scales([0]) == ((), ())


def test_scaler_that_is_switched_off_skips_nothing() -> None:
    run = RunFacts(scaler=torch.amp.GradScaler("cpu", enabled=False))
    for step in range(3):
        run.step(step)
    assert run.scales(range(3))[1] == (False,) * 3


# -- Lightning ---------------------------------------------------------------------------------------------------------


def test_trainer_provides_its_loaders_and_its_accumulation() -> None:
    import lightning.pytorch as pl

    from bnmonitor import BatchNormMonitor

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = a_model()

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            return self.model(batch[0]).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def fit(**arguments: Any) -> Monitor:
        callback = BatchNormMonitor(sinks=[], on_alert="log", select=("all",))
        quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = pl.Trainer(max_epochs=1, accelerator="cpu", callbacks=[callback], **quiet, **arguments)
        trainer.fit(Module(), DataLoader(DATA, 16, shuffle=True))
        return callback.monitor

    def facts_of(monitor: Monitor) -> Facts:
        window = monitor.window()
        assert window is not None
        return window.facts

    monitor = fit(accumulate_grad_batches=2)
    facts = facts_of(monitor)
    assert facts.train_loader == Loader(batch_size=16, samples=50, drop_last=False, shuffled=True)
    assert facts.train_loader.leftover == 2
    assert (facts.accumulate, facts.scales) == (2, ())
    assert not [why for why in monitor.skipped.values() if "training loader" in why or "DataLoader" in why]
    cut = facts_of(fit(limit_train_batches=2)).train_loader
    assert cut is not None
    assert cut.leftover == 0
