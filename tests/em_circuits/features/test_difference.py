"""Merged minus base of the same key in the same prompt."""

from __future__ import annotations

import pytest
import torch
from few_features import block
from synthetic import Size, synthetic_graph

from em_circuits.features import KeyedScores, activation_block, aggregate, change
from pivotal_tokens.errors import RequestError


def test_a_feature_that_one_model_lacks_counts_as_zero_there() -> None:
    base = block((0, 1, 1, 1.0), (0, 1, 2, 0.5))
    merged = block((0, 1, 1, 4.0), (2, 1, 3, 2.0))
    keyed = KeyedScores.of([change(base, merged)])
    assert keyed.coordinates.tolist() == [[0, 1, 0], [0, 2, 0], [2, 3, 0]]
    assert keyed.values(keyed.blocks[0]).tolist() == [3.0, -0.5, 2.0]


def test_what_either_model_does_not_know_is_not_known() -> None:
    base = block((0, 1, 1, 1.0), unscored=((2, 1, 3), (0, 2, 1)))
    merged = block((0, 1, 1, 4.0), (2, 1, 3, 2.0))
    changed = change(base, merged)
    assert changed.contrast.tolist() == [3.0]
    assert changed.partial.tolist() == [True]
    assert len(changed.unknown) == 1


def test_other_tokens_or_another_length_cannot_be_compared() -> None:
    with pytest.raises(RequestError, match="cannot be compared"):
        change(block((0, 1, 1, 1.0), n_pos=4), block((0, 1, 1, 1.0), n_pos=5))


def test_activations_are_known_for_unselected_features_too() -> None:
    graph = synthetic_graph(Size(n_features=20, n_unselected=15))
    found = activation_block(graph)
    assert float(found.contrast.sum()) == pytest.approx(float(graph.activations.double().sum()))
    none = change(found, found)
    summary = aggregate(KeyedScores.of([none, none]), test=False).summary
    assert summary.mean.abs().max() == 0 and bool(summary.p.isnan().all())
    assert torch.equal(summary.selected, torch.full_like(summary.selected, 2))
