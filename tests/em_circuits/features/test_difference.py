"""Merged minus base of the same key in the same prompt."""

from __future__ import annotations

import numpy as np
import pytest
from few_features import keyed
from synthetic import Size, synthetic_graph

from em_circuits.features import activation_by_key, aggregate, change
from pivotal_tokens.errors import RequestError


def test_a_feature_that_one_model_lacks_counts_as_zero_there() -> None:
    base = keyed((0, 1, 1, 1.0), (0, 1, 2, 0.5))
    merged = keyed((0, 1, 1, 4.0), (2, 1, 3, 2.0))
    changed = change(base, merged)
    assert changed.features == ((0, 1), (0, 2), (2, 3))
    assert changed["contrast"].tolist() == [3.0, -0.5, 2.0]


def test_what_either_model_does_not_know_is_not_known() -> None:
    base = keyed((0, 1, 1, 1.0), unscored=((2, 1, 3), (0, 2, 1)))
    merged = keyed((0, 1, 1, 4.0), (2, 1, 3, 2.0))
    changed = change(base, merged)
    assert changed.features == ((0, 1), (2, 3))
    assert changed["contrast"][0] == 3.0 and np.isnan(changed["contrast"][1])
    assert changed["partial"].tolist() == [True, False]


def test_other_tokens_or_another_length_cannot_be_compared() -> None:
    with pytest.raises(RequestError, match="cannot be compared"):
        change(keyed((0, 1, 1, 1.0), n_pos=4), keyed((0, 1, 1, 1.0), n_pos=5))


def test_activations_are_known_for_unselected_features_too() -> None:
    graph = synthetic_graph(Size(n_features=20, n_unselected=15))
    found = activation_by_key(graph)
    assert float(found["contrast"].sum()) == pytest.approx(float(graph.activations.double().sum()))
    none = change(found, found)
    summary = aggregate([none, none], test=False).table.frame
    assert summary["mean"].abs().max() == 0 and summary["p"].isna().all()
    assert (summary["selected"] == 2).all()
