"""The experiments run, a claim is decided by its interval, and pages and pictures are those of the results."""

from __future__ import annotations

import json
import math
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.guide.experiment import (
    Claim,
    Context,
    Experiment,
    Interval,
    Measured,
    Metric,
    Results,
    added,
    label,
    measured,
    number,
)
from benchmarks.guide.experiments import EXPERIMENTS
from benchmarks.guide.pages import PICTURES, page, pages, unexpected
from benchmarks.guide.pictures import MODES, draw

BYTES = 1_500_000
"""The most that all pictures may take."""


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda each: each.name)
def test_an_experiment_measures_what_its_page_shows(experiment: Experiment) -> None:
    keys = list(experiment.settings)
    key = keys[len(keys) // 2]
    found = json.loads(json.dumps(measured(experiment, key, Context(0, tiny=True)), allow_nan=False))
    assert set(found["values"]) >= {metric.name for metric in experiment.metrics}
    for claim in experiment.claims:
        assert {claim.left, claim.right} <= set(keys)
        assert {claim.metric, claim.against or claim.metric} <= set(found["values"])
    for panel in experiment.panels:
        assert panel.metric in found["courses" if panel.course else "values"]
    for x, y in found["courses"].values():
        assert len(x) == len(y) > 0
    assert set(experiment.maps) <= set(keys)


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda each: each.name)
def test_the_results_are_of_several_seeds_and_of_every_setting(experiment: Experiment) -> None:
    results = Results.read(experiment)
    assert results.seeds >= 5
    assert list(results.data["settings"]) == [label(key) for key in experiment.settings]
    for key in experiment.settings:
        assert all(len(results.values(key, metric.name)) == results.seeds for metric in experiment.metrics)
    for key in experiment.maps:
        kept = results.setting(key)["map"]
        assert [len(row) for row in kept["values"]] == [len(kept["layers"])] * len(kept["steps"])


def test_the_pages_say_what_was_measured() -> None:
    stale = [path.name for path, text in pages().items() if path.read_text("utf-8") != text]
    assert not stale, f"run `python -m benchmarks.guide --pages`: {', '.join(stale)}"


def test_the_texts_were_written_for_these_results() -> None:
    assert list(unexpected()) == [], "read the text again, and say in its last line what it was written for"


def test_another_number_makes_another_page() -> None:
    experiment = next(each for each in EXPERIMENTS if each.name == "depth")
    before = Results.read(experiment)
    data = json.loads(json.dumps(before.data))
    data["settings"]["BatchNorm | 10"]["values"]["accuracy"] = [12.34] * before.seeds
    after = page(experiment, Results(experiment, data))
    assert after.count("12.3") >= 3  # in the sentence, the verdicts and the table
    assert page(experiment, before) != after


def test_the_pictures_are_there_and_small(tmp_path: Path) -> None:
    wanted = {f"{each.name}-{mode}.svg" for each in EXPERIMENTS for mode in MODES}
    assert {path.name for path in PICTURES.iterdir()} == wanted
    assert sum(path.stat().st_size for path in PICTURES.iterdir()) <= BYTES
    experiment = EXPERIMENTS[0]
    draw(experiment, Results.read(experiment), "dark", tmp_path / "drawn.svg")
    assert "<image" in (tmp_path / "drawn.svg").read_text("utf-8")


# -- what is decided ---------------------------------------------------------------------------------------------------


def decided(left: list[float], right: list[float], *, less: bool = False, log: bool = False) -> str:
    keys = (("a", 1.0), ("b", 1.0))
    claim = Claim("a beats b", "score", *keys, less=less)
    experiment = Experiment(
        name="made-up",
        axis="x",
        settings={key: {} for key in keys},
        measure=lambda context: Measured({}),
        metrics=(Metric("score", "score", log=log),),
        claims=(claim,),
        panels=(),
        maps=(),
    )
    data = {
        "seeds": list(range(len(left))),
        "settings": {
            label(key): reduce(
                added, [{"values": {"score": v}, "courses": {}, "causes": [], "map": None} for v in values], None
            )
            for key, values in zip(keys, (left, right), strict=True)
        },
    }
    return Results(experiment, data).verdict(claim).outcome


def test_a_claim_holds_if_the_interval_of_the_paired_difference_is_on_its_side() -> None:
    assert decided([3, 4, 5.1], [1, 2, 3]) == "holds"
    assert decided([1, 2, 3], [3, 4, 5.1]) == "does not hold"
    assert decided([1, 2, 3], [3, 4, 5.1], less=True) == "holds"
    assert decided([1, 2, 3], [1.5, 1.5, 3.5]) == "not shown"
    assert decided([1, 10, 100], [2, 20, 201], less=True, log=True) == "holds"
    assert decided([1, 10, 100], [2, 20, 201], less=True) == "not shown"


def test_what_cannot_be_decided_is_not_shown() -> None:
    assert decided([3], [1]) == "not shown"
    assert decided([2, 2, 2], [2, 2, 2]) == "not shown"
    assert decided([3, math.nan, 5], [1, 2, 3]) == "not shown"


def test_intervals_are_those_of_student() -> None:
    found = Interval.of([1.0, 2.0, 3.0])
    assert found.mean == 2
    assert found.high - found.mean == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)
    middle = Interval.of([1.0, 100.0], Metric("x", "x", log=True))
    assert middle.mean == pytest.approx(10)
    assert str(Interval.of([1.0])) == "1.00"
    assert str(Interval.of([1.0, math.nan])) == "not finite"
    assert [number(v) for v in (123.4, 0.01234, 0.0, 2.5e6)] == ["123", "0.0123", "0", "2.5e+06"]
