"""Graph scores are circuit-tracer's; error scores have known answers on a toy graph."""

import dataclasses

import pytest
import torch
from circuit_tracer.graph import compute_graph_scores
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import all_paths
from synthetic import Size, graph_at, graph_of, synthetic_graph

from em_circuits.influence import Method, error_direct_score, error_influence_share, graph_scores
from pivotal_tokens.errors import RequestError


@pytest.mark.parametrize("seed", range(3))
def test_replacement_and_completeness_are_circuit_tracers(upstream, seed):
    graph = synthetic_graph(Size(n_features=300, n_layers=5, n_pos=7, n_logits=4), seed=seed)
    replacement, completeness = compute_graph_scores(upstream(graph))
    found = graph_scores(graph)
    assert found.replacement == pytest.approx(replacement, rel=1e-5)
    assert found.completeness == pytest.approx(completeness, rel=1e-5)


def toy():
    """One feature, errors and tokens at one position, two logits."""
    graph = graph_at([(1, 0)], n_layers=2, n_pos=1, n_logits=2, density=0.0)
    layout, matrix = graph.layout, graph.edges.to_dense()
    feature, token = 0, layout.token_index(0)
    low, high = layout.error_index(0, 0), layout.error_index(1, 0)
    matrix[feature, low], matrix[feature, token] = -1.0, 3.0
    first, second = layout.logit_index(0), layout.logit_index(1)
    matrix[first, feature], matrix[first, high], matrix[first, token] = 4.0, -2.0, 2.0
    matrix[second, low], matrix[second, token] = 1.0, 1.0
    return graph_of(matrix, layout, graph.active, graph.selected)


def test_the_direct_error_score_has_two_modes():
    graph = toy()
    ids = graph.targets.token_ids.tolist()
    assert error_direct_score(graph, mode="mean") == (2 + 1) / 2
    assert error_direct_score(graph, mode="ratio") == pytest.approx(3 / 10)
    assert error_direct_score(graph, mode="mean", token_ids=ids[:1]) == 2
    assert error_direct_score(graph, mode="ratio", token_ids=[ids[1], 999]) == 0.5


def test_an_error_score_of_no_target_is_an_error():
    with pytest.raises(RequestError, match="None of the tokens"):
        error_direct_score(toy(), mode="mean", token_ids=[999])
    with pytest.raises(RequestError, match="None of the tokens"):
        error_influence_share(toy(), token_ids=[])


def test_the_multi_hop_error_share_counts_what_comes_through_features():
    graph = toy()
    ids = graph.targets.token_ids.tolist()
    # Of the first logit: feature 1/2 (a quarter of it error), error 1/4, token 1/4.
    assert error_influence_share(graph, token_ids=ids[:1]) == pytest.approx(1 / 8 + 1 / 4)
    assert error_influence_share(graph, token_ids=ids[1:]) == pytest.approx(1 / 2)
    assert error_influence_share(graph) == pytest.approx((3 / 8 + 1 / 2) / 2)


def test_one_minus_the_error_share_is_replacement_for_equal_probabilities():
    graph = synthetic_graph(Size(n_features=100))
    targets = dataclasses.replace(graph.targets, probabilities=torch.full((3,), 0.2))
    graph = dataclasses.replace(graph, targets=targets)
    assert 1 - error_influence_share(graph) == pytest.approx(graph_scores(graph).replacement)


def test_a_graph_without_edges_has_no_scores():
    graph = graph_at([(0, 0)], n_layers=1, n_pos=2, n_logits=1, density=0.0)
    assert graph_scores(graph).replacement is None
    assert graph_scores(graph).completeness == 1.0
    assert error_influence_share(graph) is None
    assert error_direct_score(graph, mode="ratio") == 0.0


def by_walking(graph, weights, nodes):
    """Absolute influence of some nodes on weighted logits, path by path."""
    return sum(
        product
        for node in range(nodes.start, nodes.stop)
        for _, product in all_paths(graph, weights, Method.ABSOLUTE, node)
    )


@settings(deadline=None, max_examples=30)
@given(
    places=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), max_size=6),
    seed=st.integers(0, 10_000),
    density=st.sampled_from([0.3, 1.0]),
)
def test_scores_of_any_graph_are_sums_over_its_paths(places, seed, density):
    graph = graph_at(places, n_layers=3, n_pos=2, n_logits=2, seed=seed, density=density)
    layout, ones = graph.layout, torch.ones(2, dtype=torch.float64)
    errors, tokens = (by_walking(graph, ones, n) for n in (layout.errors, layout.tokens))
    share = error_influence_share(graph)
    expected = errors / (errors + tokens) if errors + tokens else None
    assert share == (expected if expected is None else pytest.approx(expected, rel=1e-9))
    p = graph.targets.probabilities.double()
    errors, tokens, features = (
        by_walking(graph, p, n) for n in (layout.errors, layout.tokens, layout.features)
    )
    found = graph_scores(graph)
    if errors + tokens:
        assert found.replacement == pytest.approx(tokens / (errors + tokens), rel=1e-6)
    whole = float(p.sum()) + errors + tokens + features
    assert found.completeness == pytest.approx(1 - errors / whole, rel=1e-6)
    rows = graph.edges.to_dense()[layout.logits].double().abs()
    named = [layout.error_index(la, pos) for la in range(3) for pos in range(2)]
    direct = float(rows[:, named].sum())
    assert error_direct_score(graph, mode="mean") == pytest.approx(direct / 2)
    assert error_direct_score(graph, mode="ratio") == pytest.approx(
        direct / max(float(rows.sum()), 1e-12)
    )
