"""Contrast by token id, both directions, and what has no contrast says so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from subjects import Subject
from synthetic import Size, synthetic_graph

from em_circuits.contrast import Contrast
from em_circuits.feature import Feature
from em_circuits.features import choose_features, stored_scores
from em_circuits.interventions import live_scores
from em_circuits.scoring import Scoring
from em_circuits.table import FeatureTable
from pivotal_tokens.errors import RequestError


def table(scores: torch.Tensor) -> FeatureTable:
    return FeatureTable.of(
        torch.tensor([[0, 1, 7], [1, 2, 3], [1, 3, 3]]),
        by="gradient",
        targets=[10, 11, 12, 13],
        per_target=scores,
        activation=torch.tensor([1.0, 2.0, 3.0]),
        measured=[False] * 3,
    )


SCORES = table(torch.tensor([[1.0, -2.0, 0.0], [3.0, -4.0, 0.5], [1.0, 1.0, 1.0], [9.0, 9.0, 9.0]]))


def test_contrast_is_mean_evil_minus_mean_safe() -> None:
    ranking = SCORES.ranked(Contrast((10, 11, 99), (12,)))
    assert ranking.features == ((0, 1, 7), (1, 3, 3), (1, 2, 3))
    assert ranking["contrast"].tolist() == [1.0, -0.75, -4.0]
    first = ranking.records()[0]
    assert (first["evil_mean"], first["safe_mean"], first["activation"]) == (2.0, 1.0, 1.0)
    assert (first["welch_t"], first["hedges_g"]) == (None, None)  # one safe token has no spread
    assert ranking.bottom(1)["contrast"].tolist() == [-4.0]
    assert ranking.largest(2)["contrast"].tolist() == [-4.0, 1.0]


def test_probability_does_not_confound_the_contrast() -> None:
    """B02: with the same scores for every token there is no contrast, whatever their p."""
    ranking = table(torch.ones(4, 3)).ranked(Contrast((10,), (11,)))
    assert ranking["contrast"].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("labels", [{}, {10: "evil"}, {10: "safe", 11: "unsure"}, {98: "evil"}])
def test_one_side_alone_is_no_contrast(labels: dict) -> None:
    with pytest.raises(RequestError, match="no contrast"):
        SCORES.ranked(Contrast.from_labels(labels))


def test_a_truncated_graph_says_which_features_have_no_score() -> None:
    graph = synthetic_graph(Size(n_features=20, n_unselected=15))
    words = Contrast((3,), (10,))
    gradient = stored_scores(graph, "gradient").contrasted(words)
    assert not np.isnan(gradient["contrast"]).any()
    direct = stored_scores(graph, "direct").contrasted(words)
    assert np.isnan(direct["contrast"]).sum() == 15
    assert direct.coordinates.tolist() == graph.active.tolist()
    known = direct.ranked(words).coordinates.tolist()
    assert sorted(known) == graph.selected_features.tolist()


def test_the_first_editions_methods_are_called_otherwise_now(caplog) -> None:
    assert Scoring("refined") is Scoring.GRADIENT_ABLATION
    assert Scoring("forward") is Scoring.GREEDY
    assert "is now called greedy" in caplog.text
    with pytest.raises(RequestError, match="choose one of gradient"):
        Scoring("backward")


def test_what_runs_the_model_is_in_no_graph() -> None:
    with pytest.raises(RequestError, match="runs the model"):
        stored_scores(synthetic_graph(Size()), "measured")


@pytest.mark.parametrize("by", ["gradient", "greedy", "gradient+ablation"])
def test_a_choice_is_the_head_of_the_ranking_by_its_method(subject: Subject, by: str) -> None:
    model, state, words = subject.model, subject.state(), subject.groups
    ranking = live_scores(model, state, words, by).ranked(words)
    chosen = choose_features("top:3", model, state, words, by=by)
    assert chosen.features == ranking.features[:3] and chosen.by == by
    largest = choose_features("abs:2", model, state, words, by=by)
    assert largest.features == ranking.largest(2).features


def test_features_are_chosen_by_name_without_a_contrast(subject: Subject) -> None:
    state = subject.state()
    layer, position, feature = state.active[-1].tolist()
    back = position - state.n_pos
    named = choose_features(
        f"{layer}/{back}/{feature},0/1/1", subject.model, state, Contrast((), ())
    )
    assert named.features == (Feature(layer, position, feature), Feature(0, 1, 1))
    assert named.by == "name"
    fires = state.active[(state.active[:, 0] == layer) & (state.active[:, 2] == feature)]
    anywhere = choose_features(f"{layer}/{feature}", subject.model, state, subject.groups)
    assert anywhere.coordinates.tolist() == fires.tolist()
    with pytest.raises(RequestError, match="has positions 0 to"):
        choose_features("0/999/1", subject.model, state, subject.groups)
