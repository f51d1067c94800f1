"""The table of statistics and what reads it: the measures, the sinks, the summary and the terminal."""

from __future__ import annotations

import dataclasses

import torch

from bnmonitor.history.statistics import BY_NAME, CHANNEL, LAYER, logarithmic
from bnmonitor.measures import BY_CHANNEL, BY_LAYER
from bnmonitor.results import LayerSummary
from bnmonitor.summary import METRICS, summarize
from bnmonitor.testing import make_sample, make_window


def test_every_statistic_has_a_function_and_every_function_a_row() -> None:
    assert BY_LAYER.keys() | {"health"} == {statistic.name for statistic in LAYER}
    assert BY_CHANNEL.keys() == {statistic.name for statistic in CHANNEL}


def test_what_a_run_has_recorded_keeps_its_names() -> None:
    assert [s.name for s in LAYER][:6] == ["health", "batch_var", "running_var", "batch_offset", "offset", "mean_lag"]
    tags = {"bn_health": "health", "bn_batch_var": "batch_var", "bn_running_gap": "mean_lag"}
    assert {s.tag: s.name for s in LAYER if s.tag} == tags


def test_every_attribute_of_a_row_that_the_table_names_holds_the_number_of_the_column() -> None:
    window = make_window(batch_mean=0.05, gamma=[0.5, -0.25, 2.0])
    summary = summarize(window, (), {})
    [row] = summary.rows
    fields = {field.name for field in dataclasses.fields(LayerSummary)}
    named = {s.row: s.name for s in LAYER if s.row}
    assert named.keys() <= fields
    for attribute, name in named.items():
        value, column = getattr(row, attribute), summary.table[0, METRICS.index(name)]
        value = value[-1] if attribute == "batch_var" else value
        torch.testing.assert_close(torch.tensor(value), column, equal_nan=True)
    assert abs(row.running_gap - 0.05) < 1e-5
    assert row.gamma_min == 0.25


def test_a_sampled_statistic_is_unknown_without_a_sample_and_known_with_one() -> None:
    without = make_window()
    with_one = make_window(sample=make_sample(without.layers))
    for statistic in CHANNEL:
        missing = BY_CHANNEL[statistic.name](without, slice(0, 3)).isnan()
        known = BY_CHANNEL[statistic.name](with_one, slice(0, 3)).isfinite()
        assert missing.all() == statistic.sampled, statistic.name
        assert known.all(), statistic.name


def test_a_scale_belongs_to_a_table_and_not_to_a_name() -> None:
    assert logarithmic("gamma_grad", LAYER)
    assert not logarithmic("gamma_grad", CHANNEL)
    assert not logarithmic("no such name", LAYER)


def test_a_statistic_without_a_name_of_its_own_somewhere_goes_by_the_next_longer_one() -> None:
    assert (BY_NAME["mean_lag"].title, BY_NAME["mean_lag"].short) == ("running gap", "gap")
    assert (BY_NAME["batch_var"].title, BY_NAME["batch_var"].short) == ("batch σ²", "batch σ²")
    assert (BY_NAME["beta"].title, BY_NAME["beta"].short) == ("beta", "beta")
