"""Kept against excluded layers: a difference with its interval, not a ratio."""

from __future__ import annotations

import pytest
from few_features import keyed

from em_circuits.features import AggregateSettings, compare_layers, without_layers

FEW = AggregateSettings(bootstrap=300)


def test_the_difference_of_means_is_taken_prompt_by_prompt() -> None:
    tables = [
        keyed((0, 1, 1, -2.0), (0, 1, 2, 4.0), (3, 1, 1, 1.0)),
        keyed((0, 1, 1, 5.0), (3, 1, 1, -2.0), (3, 1, 2, 2.0)),
        keyed((0, 1, 1, 100.0)),
    ]
    found = compare_layers(tables, {3}, FEW)
    assert (found.prompts, found.kept_mean, found.excluded_mean) == (2, 4.0, 1.5)
    assert found.difference == pytest.approx(2.5)
    assert (found.low, found.high) == (2.0, 3.0)


def test_one_prompt_has_no_interval_and_no_features_no_difference() -> None:
    one = compare_layers([keyed((0, 1, 1, 1.0), (3, 1, 1, 2.0))], {3}, FEW)
    assert (one.difference, one.low, one.high) == (-1.0, None, None)
    none = compare_layers([keyed((0, 1, 1, 1.0))], {3}, FEW)
    assert (none.prompts, none.difference) == (0, None)


def test_without_layers_forgets_scored_and_unknown_keys() -> None:
    kept = without_layers(keyed((0, 1, 1, 1.0), (3, 1, 1, 2.0), unscored=((3, 1, 9),)), {3})
    assert kept.features == ((0, 1),) and kept["contrast"].tolist() == [1.0]
