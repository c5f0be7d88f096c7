"""Contrast by token id, both directions, and what has no contrast says so."""

from __future__ import annotations

import pytest
import torch

from em_circuits.features import FeatureScores, parse_features, rank
from pivotal_tokens.errors import RequestError

SCORES = FeatureScores(
    method="gradient",
    coordinates=torch.tensor([[0, 1, 7], [1, 2, 3], [1, 3, 3]]),
    activations=torch.tensor([1.0, 2.0, 3.0]),
    token_ids=torch.tensor([10, 11, 12, 13]),
    scores=torch.tensor([[1.0, -2.0, 0.0], [3.0, -4.0, 0.5], [1.0, 1.0, 1.0], [9.0, 9.0, 9.0]]),
)


def test_contrast_is_mean_evil_minus_mean_safe() -> None:
    ranking = rank(SCORES, {10: "evil", 11: "evil", 12: "safe", 13: "unsure", 99: "evil"})
    assert [(f.layer, f.position, f.feature) for f in ranking.features] == [
        (0, 1, 7),
        (1, 3, 3),
        (1, 2, 3),
    ]
    assert [f.contrast for f in ranking.features] == [1.0, -0.75, -4.0]
    first = ranking.features[0]
    assert (first.evil_mean, first.safe_mean, first.activation) == (2.0, 1.0, 1.0)
    assert (first.welch_t, first.hedges_g) == (None, None)  # one safe token has no spread
    assert ranking.unmatched == (99,)
    assert ranking.bottom(1)[0].contrast == -4.0
    assert [f.contrast for f in ranking.largest(2)] == [-4.0, 1.0]


def test_probability_does_not_confound_the_contrast() -> None:
    """B02: with the same scores for every token there is no contrast, whatever their p."""
    flat = FeatureScores(
        "gradient", *(SCORES.coordinates, SCORES.activations, SCORES.token_ids), torch.ones(4, 3)
    )
    ranking = rank(flat, {10: "evil", 11: "safe"})
    assert [f.contrast for f in ranking.features] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("labels", [{}, {10: "evil"}, {10: "safe", 11: "unsure"}])
def test_one_side_alone_is_no_contrast(labels: dict) -> None:
    with pytest.raises(RequestError, match="no contrast"):
        rank(SCORES, labels)


def test_feature_choices_resolve_in_order_of_importance() -> None:
    ranking = rank(SCORES, {10: "evil", 12: "safe"})
    assert parse_features("top:2").resolve(ranking) == ((0, 1, 7), (1, 3, 3))
    assert parse_features("bottom:1").resolve(ranking) == ((1, 2, 3),)
    assert parse_features("abs:1").resolve(ranking) == ((1, 2, 3),)
    named = parse_features("2/11/431, 3/5/7")
    assert named.resolve(None) == ((2, 11, 431), (3, 5, 7))
    assert not named.needs_ranking


@pytest.mark.parametrize(
    "text", ["", "top", "top:0", "top:-1", "first:3", "1/2", "1/2/x", "1/2/3,"]
)
def test_what_is_no_choice_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="--features"):
        parse_features(text)
