"""The same feature in another prompt, and its three states."""

from __future__ import annotations

import numpy as np
from few_features import keyed

from em_circuits.features import aggregate
from em_circuits.table import FeatureTable


def keys_of(*tables: FeatureTable) -> dict[tuple[int, ...], dict]:
    """What is known of every key over some prompts."""
    found = aggregate(tables).table
    return {tuple(f): row for f, row in zip(found.features, found.records(), strict=True)}


def test_a_key_is_a_layer_and_an_id_wherever_it_stands_in_a_prompt() -> None:
    """B25: subset index 0 is feature 7 here and feature 3 there."""
    first, second = keyed((1, 4, 7, 1.0), (1, 5, 7, 2.0)), keyed((0, 2, 3, -1.0))
    assert first.features == ((1, 7),) and second.features == ((0, 3),)
    assert first["contrast"].tolist() == [3.0] and first.per_target.tolist()[0] == [3.0]
    found = keys_of(first, second)
    assert set(found) == {(0, 3), (1, 7)}
    assert (found[1, 7]["mean"], found[0, 3]["mean"]) == (1.5, -0.5)


def test_by_position_counts_from_the_end_and_a_short_prompt_has_no_far_positions() -> None:
    found = keys_of(
        keyed((1, 9, 7, 1.0), (1, 2, 7, 5.0), n_pos=10, by_position=True),
        keyed((1, 4, 7, 2.0), n_pos=5, by_position=True),
    )
    last, far = found[1, -1, 7], found[1, -8, 7]
    assert (last["selected"], last["n"], last["mean"]) == (2, 2, 1.5)
    assert (far["selected"], far["inactive"], far["n"], far["mean"]) == (1, 0, 1, 5.0)


def test_the_first_position_of_a_prompt_is_none_that_features_have() -> None:
    found = keys_of(
        keyed((1, 1, 7, 5.0), n_pos=6, by_position=True),
        keyed((0, 1, 1, 1.0), n_pos=5, by_position=True),
    )
    assert found[1, -5, 7]["n"] == 1  # position 0 of the shorter prompt


def test_not_selected_is_unknown_and_partly_selected_says_so() -> None:
    first = keyed((1, 4, 7, 1.0), unscored=((1, 5, 7), (0, 5, 3)))
    assert first.features == ((0, 3), (1, 7))
    assert np.isnan(first["contrast"]).tolist() == [True, False]
    assert first["partial"].tolist() == [False, True]
    found = keys_of(first, keyed((0, 2, 3, -1.0), (1, 2, 7, 1.0)))
    assert (found[0, 3]["not_selected"], found[0, 3]["n"]) == (1, 1)
    assert (found[1, 7]["partial"], found[1, 7]["selected"]) == (1, 2)
