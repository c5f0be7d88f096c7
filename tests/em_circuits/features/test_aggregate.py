"""Sums over prompts against sums written out, and what is not defined is null."""

from __future__ import annotations

import statistics

import pytest
import torch
from few_features import keyed

from em_circuits.features import AggregateSettings, aggregate
from em_circuits.statistics import benjamini_hochberg
from em_circuits.table import FeatureTable

FEW = AggregateSettings(min_prompts=2, top_k=1, bootstrap=200, permutations=50)


def lines(tables: list[FeatureTable], settings: AggregateSettings = FEW) -> list[dict]:
    return aggregate(tables, settings).table.records()


def test_recurring_features_sum_positions_and_count_absence_as_zero() -> None:
    first, second = lines(
        [keyed((1, 4, 7, 1.0), (1, 5, 7, 2.0), (0, 2, 3, -1.0)), keyed((0, 9, 3, 0.5))]
    )
    assert (first["layer"], first["feature"], first["selected"], first["inactive"]) == (1, 7, 1, 1)
    assert (first["mean"], first["mean_selected"], first["same_sign"]) == (1.5, 3.0, 1.0)
    assert first["sd"] == pytest.approx(statistics.stdev([3, 0]))
    assert (second["mean"], second["same_sign"], second["n"]) == (-0.25, 0.5, 2)


def test_inactive_counts_as_zero_and_not_selected_is_left_out() -> None:
    there = [keyed((1, 4, 7, x)) for x in (1.0, 2.0, 6.0)]
    unknown = keyed((0, 1, 1, 0.1), unscored=((1, 3, 7),))
    absent = keyed((0, 1, 1, 0.1))
    line = lines([*there, unknown, absent])[0]
    states = [line[name] for name in ("selected", "not_selected", "inactive", "n")]
    assert states == [3, 1, 1, 4]
    assert line["mean"] == pytest.approx(statistics.mean([1, 2, 6, 0]))
    assert line["sd"] == pytest.approx(statistics.stdev([1, 2, 6, 0]))
    assert line["low"] < line["mean"] < line["high"]


def test_one_prompt_has_a_mean_and_nothing_that_needs_two() -> None:
    """B27: the NaN standard deviation of a single prompt went into the JSON."""
    (line,) = lines([keyed((1, 4, 7, 1.5))])
    assert (line["mean"], line["n"]) == (1.5, 1)
    assert [line[x] for x in ("sd", "low", "high", "p", "q", "stable")] == [None] * 6


def test_only_features_seen_often_are_tested_and_adjusted_together() -> None:
    tables = [keyed((1, 4, 7, 1.0), (0, 1, 1, -2.0), (2, 1, i, 5.0)) for i in range(6)]
    settings = FEW.model_copy(update={"min_prompts": 5, "permutations": 64})
    result = aggregate(tables, settings)
    assert (result.n_tested, result.n_permutations, result.exact) == (2, 64, True)
    summary = result.table.frame
    tested = summary["p"].notna()
    assert tested.tolist() == (summary["selected"] >= 5).tolist()
    # one evil and one safe token in six prompts: only all six and none reach the mean
    assert summary["p"][tested].tolist() == [2 / 64, 2 / 64]
    p = torch.from_numpy(summary["p"][tested].to_numpy(copy=True))
    assert summary["q"][tested].tolist() == benjamini_hochberg(p).tolist()


def test_keys_that_are_known_in_few_prompts_come_last() -> None:
    tables = [keyed((0, 1, 1, 1.0), unscored=((5, 1, 5),)) for _ in range(4)]
    tables.append(keyed((5, 1, 5, 100.0)))
    found = lines(tables)
    assert [(x["feature"], x["n"]) for x in found] == [(1, 5), (5, 1)]


def test_the_top_is_unstable_when_one_prompt_makes_it() -> None:
    tables = [keyed((0, 1, 1, 1.0), (0, 1, 2, 0.5)) for _ in range(3)]
    steady = aggregate(tables, FEW)
    assert (steady.stability.mean_overlap, steady.stability.least_overlap) == (1.0, 1.0)
    loud = aggregate([*tables, keyed((0, 1, 2, 9.0))], FEW)
    assert (loud.stability.mean_overlap, loud.stability.least_overlap) == (0.75, 0.0)
    top = loud.table.records()[0]
    assert (top["feature"], top["stable"]) == (2, 0.75)


def test_the_same_seed_gives_the_same_figures() -> None:
    generator = torch.Generator().manual_seed(0)
    tables = [
        keyed(*((0, 1, i, float(torch.randn(1, generator=generator))) for i in range(9)))
        for _ in range(8)
    ]
    assert lines(tables) == lines(tables)
    assert lines(tables) != lines(tables, FEW.model_copy(update={"seed": 1}))
